"""Rooflines of a real model's shape on named machines, against a table worked out by hand."""

from dataclasses import replace

import pytest

from harness.core.errors import UnknownNameError
from harness.measure.accelerators import accelerator, names, prices
from harness.measure.flops import causal_flops, executed_flops
from harness.measure.roofline import dollars, energy_bound, roofline
from harness.measure.segment import Segment
from harness.measure.shape import LayerShape, Linears, ModelShape
from harness.measure.traffic import traffic

D, FF, HEADS, KV, WIDTH, VOCABULARY, DEPTH = 4096, 14336, 32, 8, 128, 128256, 32


def llama_3_8b() -> ModelShape:
    attention = D * HEADS * WIDTH * 2 + 2 * D * KV * WIDTH
    layer = LayerShape(
        attention=Linears(macs=attention, bytes=2 * attention),
        mlp=Linears(macs=3 * D * FF, bytes=2 * 3 * D * FF),
        pair_macs=2 * HEADS * WIDTH,
        cache_width=2 * KV * WIDTH,
        window=None,
    )
    return ModelShape(
        layers=(layer,) * DEPTH,
        head=Linears(macs=D * VOCABULARY, bytes=2 * D * VOCABULARY),
        other=Linears(macs=0, bytes=0),
        embedding_bytes=0,
        kv_element_bytes=2,
        parameters=8_030_261_248,
        bytes=2 * 8_030_261_248,
    )


def segment(phase, queries, context) -> Segment:
    ran, read = (queries,) * DEPTH, (1.0,) * DEPTH
    return Segment(phase, queries, 0, context, 1, 1, ran, ran, 1, read, read, 1.0)


PREFILL, DECODE = segment("prefill", 512, 512), segment("decode", 1, 1024)
TABLE = {  # milliseconds of a prefill of 512 and of a decode step at 1,024, one maximum for the whole step
    "a100-sxm-80": (153, 23.13, 7.427),
    "h100-sxm": (295, 7.294, 4.520),
    "h200-sxm": (206, 7.294, 3.155),
    "mi300x": (247, 5.520, 2.857),
    "rtx4090": (164, 43.69, 15.02),
    "l4": (403, 59.64, 50.48),
}


def test_counts_of_a_published_shape():
    shape = llama_3_8b()
    assert shape.layers[0].attention.macs + shape.layers[0].mlp.macs == 218_103_808
    assert executed_flops(shape, [PREFILL]).total == 7_285_315_207_168
    assert causal_flops(shape, [PREFILL]).total == 7_216_729_948_160
    assert executed_flops(shape, [DECODE]).total == 15_546_187_776
    moved = traffic(shape, [PREFILL])
    assert moved.weights + moved.kv == pytest.approx(1.5076e10, rel=1e-4)
    moved = traffic(shape, [DECODE])
    assert moved.weights + moved.kv == pytest.approx(1.5144e10, rel=1e-4)


@pytest.mark.parametrize("name", TABLE)
def test_golden_times(name):
    ridge, prefill, decode = TABLE[name]
    shape, machine = llama_3_8b(), accelerator(name)
    assert machine.peak("bfloat16") / machine.bandwidth == pytest.approx(ridge, abs=0.6)
    for step, milliseconds in ((PREFILL, prefill), (DECODE, decode)):
        moved = traffic(shape, [step])
        flops = causal_flops(shape, [step]).total
        bound = max(flops / machine.peak("bfloat16"), (moved.weights + moved.kv) / machine.bandwidth)
        assert bound * 1e3 == pytest.approx(milliseconds, rel=1e-3)
        by_part = roofline(shape, [step], machine, "bfloat16").total
        assert bound <= by_part * (1 + 1e-9)
        assert by_part < 1.2 * bound


def test_a_run_of_steps_is_the_sum_of_the_steps():
    shape, machine = llama_3_8b(), accelerator("h100-sxm")
    steps = [segment("decode", 1, context) for context in range(100, 108)]
    together = replace(steps[0], forwards=8)
    assert roofline(shape, [together], machine, "bfloat16").total == pytest.approx(
        roofline(shape, steps, machine, "bfloat16").total
    )


def test_lighter_weights_are_faster_where_memory_binds():
    shape, machine = llama_3_8b(), accelerator("h100-sxm")
    layer = shape.layers[0]
    halved = layer.model_copy(
        update={
            part: getattr(layer, part).model_copy(update={"bytes": getattr(layer, part).bytes // 2})
            for part in ("attention", "mlp")
        }
    )
    lighter = shape.model_copy(update={"layers": (halved,) * DEPTH})
    for step, ratio in ((DECODE, 0.55), (PREFILL, 1.0)):
        dense, light = (roofline(one, [step], machine, "bfloat16").total for one in (shape, lighter))
        assert light / dense == pytest.approx(ratio, abs=0.03)


def test_peaks_are_dense_and_have_sources():
    for name in names():
        machine = accelerator(name)
        assert machine.source
        assert machine.peaks
        assert machine.bandwidth > 1e11
    assert accelerator("h100-sxm").peak("bfloat16") == 989.4e12  # the data sheet's 1,979 is sparse
    assert accelerator("v100-sxm-32").peak("bfloat16") == accelerator("v100-sxm-32").peaks["float16"]
    with pytest.raises(UnknownNameError, match="h100-sxm"):
        accelerator("h100-smx")


def test_money_and_power():
    assert dollars(3600, 5.12) == pytest.approx(5.12)
    assert dollars(1800, 5.12) == pytest.approx(2.56)
    assert prices().usd_per_hour["a100-sxm-80"] == 5.12
    assert energy_bound(2.0, accelerator("h100-sxm")) == 1400
    assert energy_bound(2.0, accelerator("m1-max")) is None
