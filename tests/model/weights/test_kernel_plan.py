"""What computes a stack's linear layers is settled from shapes alone, and attached methods do as it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import SpecError, UnknownNameError
from harness.measure.shape import ModelShape
from harness.model.weights import int8, weight_only
from harness.model.weights.computations import Layer
from harness.model.weights.formats import NumberFormat
from harness.model.weights.int8 import DENSE_PRODUCT
from harness.model.weights.kernel_plan import KernelPlan, check_asked, plan_kernels
from harness.model.weights.linear import kernel_counts, sites
from harness.model.weights.savings import savings
from harness.testing.tiny import tiny_decoder
from tests.kernels_here import EXACT, timed

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """On every machine int8-dynamic has one kernel."""
    monkeypatch.setattr(int8, "PRODUCTS", (EXACT,))


def plan(text, asked=None, family="llama"):
    return plan_kernels(parse(text).parts, tiny_decoder(family), "cpu", asked)


def test_every_linear_layer_has_a_kernel_by_its_place(tmp_path):
    with timed(tmp_path):
        settled = plan("int8-dynamic:head=true")
        assert set(settled.by_place) == {site.place for site in sites(tiny_decoder("llama"), head=True)}
        assert {"0.self_attn.q_proj", "3.mlp.down_proj", "head"} < set(settled.by_place)
        assert set(settled.by_place.values()) == {EXACT.name}
        assert settled.by_layer[0]["48x32 float32"] == EXACT.name
        assert not settled.notes
        assert settled.saves
    assert plan("wanda") == plan("dense") == KernelPlan()


def test_where_dense_is_faster_it_is_taken_and_said(tmp_path):
    slow = {EXACT.name: (3.0, 0.95)}
    with timed(tmp_path, **slow):
        settled = plan("int8-dynamic:linears=*.mlp.*")
    assert set(settled.by_place.values()) == {DENSE_PRODUCT}
    (note,) = settled.notes
    assert "int8-dynamic multiplies 12 of 12 linear layers densely, as no kernel is 10% faster than dense here" in note
    assert "takes 3 times dense's time at 1 token, 3 at 8, 0.95 at 32 and 0.95 times at 128 (48x32 float32)" in note
    assert settled.saves  # nothing was asked for


def test_what_is_asked_for_is_taken_and_said_where_it_is_slower(tmp_path):
    with timed(tmp_path / "slow", **{EXACT.name: (1.5, 1.0)}):
        settled = plan("int8-dynamic", asked=EXACT.name)
        assert set(settled.by_place.values()) == {EXACT.name}
        assert not settled.saves
        (note,) = settled.notes
        assert f"{EXACT.name} takes 1.5 times dense's time at 1 token, 1.5 at 8, 1 at 32 and 1 times at 128" in note
        assert "was asked for" in note
    with timed(tmp_path / "fast"):
        settled = plan("int8-dynamic", asked=EXACT.name)
        assert (settled.notes, settled.saves) == ([], True)
        assert settled.by_layer == plan("int8-dynamic").by_layer
        assert (settled.asked, plan("int8-dynamic").asked) == (EXACT.name, None)
        assert plan("block-sparse", asked=EXACT.name).asked is None  # it has no such kernel
    with timed(tmp_path / "even", **{EXACT.name: (0.95, 1.0)}):
        settled = plan("int8-dynamic", asked=EXACT.name)
        assert settled.saves  # not slower
        assert len(settled.notes) == 1


def test_what_is_faster_at_few_tokens_computes_those_alone(tmp_path):
    stack = parse("int8-dynamic:linears=*.mlp.*+int4-weight-only:linears=*.self_attn.*,group=16")
    number = NumberFormat(4, 16, symmetric=False, scale="float16")
    able = weight_only.computations(Layer(32, 32, "float32"), "cpu", number).able
    if not able:
        pytest.skip("the kernels cannot be compiled here")
    own = able[0].name
    unpacked = own.replace(",", " unpacked,", 1)
    slow = {EXACT.name: (0.3, 1.2), own: (0.3, 1.2), unpacked: (1.4, 0.98)}
    with timed(tmp_path, **slow):
        decoder = tiny_decoder("llama")
        settled = plan_kernels(stack.parts, decoder, "cpu")
        for each in settled.by_layer:
            assert len(set(each.values())) == 1
        kept, packed = settled.by_layer[0]["48x32 float32"], settled.by_layer[1]["32x32 float32"]
        assert kept == f"{EXACT.name}; {DENSE_PRODUCT} from 16 tokens"
        assert packed == f"{own}; {unpacked} from 16 tokens"
        assert settled.notes == [
            f"int8-dynamic multiplies 12 of 12 linear layers by {kept}: memory none, decode real, prefill float",
            f"int4-weight-only multiplies 16 of 16 linear layers by {packed}: memory real, decode real, prefill float",
        ]
        assert settled.saves
        check_asked(packed, stack.parts, decoder, "cpu")
        later = packed.replace("16 tokens", "64 tokens")
        asked = plan_kernels(stack.parts, decoder, "cpu", later)
        assert set(asked.by_layer[1].values()) == {later} != set(asked.by_layer[0].values())
        assert not asked.saves
        assert f"{later} takes 0.3 times dense's time at 1 token, 0.3 at 8, 1.2" in asked.notes[1]
        dense = ModelShape.of(decoder)
        with stack.applied(decoder, Preparation(States(tmp_path), TEXT), settled.by_place):
            assert kernel_counts(decoder) == {kept: 12, packed: 16}
            shape = ModelShape.of(decoder)
            assert savings(stack, decoder) is Savings.REAL
            logits = [decoder.module(torch.arange(length)[None] + 5).logits for length in (4, 40)]
    mlp, attention = shape.layers[0].mlp, shape.layers[0].attention
    assert mlp.read(1) == mlp.read(15) < dense.layers[0].mlp.bytes / 3
    assert dense.layers[0].mlp.bytes < mlp.read(16) == mlp.read(128)  # its floats, and their scales
    assert attention.read(1) == attention.read(128) < dense.layers[0].attention.bytes / 2  # no float copy
    assert (shape.parameters, mlp.macs) == (dense.parameters, dense.layers[0].mlp.macs)
    assert torch.allclose(logits[0], logits[1][:, :4], atol=1e-3)


@pytest.mark.parametrize("asked", ["dense", DENSE_PRODUCT])
def test_dense_may_be_asked_for_and_times_nothing(asked, tmp_path):
    with timed(tmp_path):
        settled = plan("int8-dynamic", asked=asked)
    assert set(settled.by_place.values()) == {DENSE_PRODUCT}
    assert (settled.notes, settled.saves, settled.asked) == ([], True, asked)
    assert not list(tmp_path.iterdir())


def test_a_method_takes_what_is_asked_for_if_it_has_it(tmp_path, kernel_sets):
    stack = "int8-dynamic:linears=*.mlp.*+block-sparse:linears=*.self_attn.*"
    with timed(tmp_path):
        settled = plan(stack, asked="block-sparse int8 16x1, plain C")
    int8, sparse = settled.by_layer
    assert set(int8.values()) == {EXACT.name}
    assert set(sparse.values()) == {"block-sparse int8 16x1, plain C"}


def zeros(text):
    return sorted({label.partition(", ")[2] for label in plan(text).by_layer[0]})


def test_zeros_are_those_that_are_declared(tmp_path):
    with timed(tmp_path):
        assert zeros("block-sparse") == ["80% zero in blocks of 16x1"]
        assert zeros("block-sparse:pattern=4x1,sparsity=0.5/0.5/0.5/0.93") == [
            "50% zero in blocks of 4x1",
            "90% zero in blocks of 4x1",
        ]
        assert zeros("wanda:pattern=16x1,sparsity=0.3+block-sparse") == ["30% zero in blocks of 16x1"]
        assert zeros("wanda:pattern=16x1,sparsity=0.3,linears=*.mlp.*+block-sparse") == [
            "0% zero in blocks of 16x1",
            "30% zero in blocks of 16x1",
        ]
        assert zeros("wanda:sparsity=0+block-sparse") == ["80% zero in blocks of 16x1"]
        assert zeros("wanda:sparsity=0.3+block-sparse:sparsity=0.6") == ["60% zero in blocks of 16x1"]
        assert zeros("layer-drop:layers=1+block-sparse") == ["80% zero in blocks of 16x1"]


@pytest.mark.parametrize("dropped", ["layer-drop:layers=1/2+", ""])
def test_attached_methods_do_as_planned_whatever_is_dropped_before(dropped, tmp_path):
    stack = parse(f"{dropped}int8-dynamic")
    decoder = tiny_decoder("llama")
    by_layer = [EXACT.name, DENSE_PRODUCT, DENSE_PRODUCT, EXACT.name]
    mixed = {site.place: by_layer[site.layer] for site in sites(decoder, ["*.mlp.*"])}
    with (
        timed(tmp_path / "times", **{EXACT.name: (9.0, 9.0)}),
        stack.applied(decoder, Preparation(States(tmp_path), TEXT), mixed),
    ):
        counts = kernel_counts(decoder)
        assert decoder.kernels == mixed
    assert counts[EXACT.name] == 6  # of the first and the last layer
    assert decoder.kernels == {}


def test_shapes_and_types_are_all_that_is_read(tmp_path: Path):
    decoder = tiny_decoder("llama")
    with timed(tmp_path):
        expected = plan_kernels(parse("block-sparse").parts, decoder, "cpu")
        decoder.module.to("meta")
        assert plan_kernels(parse("block-sparse").parts, decoder, "cpu") == expected
        decoder.module.to(torch.bfloat16)
        assert (
            "48x32 bfloat16, 80% zero in blocks of 16x1"
            in plan_kernels(parse("block-sparse").parts, decoder, "cpu").by_layer[0]
        )


def test_on_another_device_nothing_is_timed_and_the_reason_is_said(tmp_path):
    with timed(tmp_path):
        for method, why in (
            ("int8-dynamic", "exact int8: it is for a CPU"),
            ("block-sparse", "the kernel in Triton"),
        ):
            settled = plan_kernels(parse(method).parts, tiny_decoder("llama"), "cuda:0")
            (note,) = settled.notes
            assert note.startswith(f"{method} multiplies densely: {why}")
            assert "the model is on cuda:0" in note
    assert not list(tmp_path.iterdir())


def refused(asked, *methods, device="cpu"):
    parts = [part for method in methods for part in parse(method).parts]
    with pytest.raises((SpecError, UnknownNameError)) as refusal:
        check_asked(asked, parts, tiny_decoder("llama"), device)
    return str(refusal.value)


def test_a_kernel_that_some_layers_cannot_take_may_be_asked_for(monkeypatch, tmp_path):
    """Of the tiny Llama the last linear layer of a block alone has 48 inputs, and the others 32."""
    narrow = replace(EXACT, multiple=32)
    monkeypatch.setattr(int8, "PRODUCTS", (narrow,))
    wider = parse("int8-dynamic:linears=*.self_attn.*/*.down_proj").parts
    check_asked(EXACT.name, wider, tiny_decoder("llama"), "cpu")
    with timed(tmp_path):
        (names,) = plan_kernels(wider, tiny_decoder("llama"), "cpu", EXACT.name).by_layer
    assert names == {"32x32 float32": EXACT.name, "16x32 float32": DENSE_PRODUCT, "32x48 float32": DENSE_PRODUCT}
    assert "multiples of 32 inputs" in refused(EXACT.name, "int8-dynamic:linears=*.down_proj")


def test_what_nobody_has_is_refused_with_what_there_is(monkeypatch, kernels):
    near = refused(f"{EXACT.name}x", "int8-dynamic")
    assert near.startswith(f"unknown kernel '{EXACT.name}x'. Did you mean")
    assert f"Here there are: dense; {DENSE_PRODUCT}; " in near
    assert EXACT.name in near
    assert "unknown kernel" in refused(EXACT.name, "block-sparse", "dense")
    assert "none of the methods has kernels" in refused("dense", "wanda", "dense")
    monkeypatch.setenv("HARNESS_ISA", "plain")
    sentence = refused("block-sparse int8 16x1, avx512-vnni", "block-sparse")
    assert "avx512-vnni: " in sentence
    assert "HARNESS_ISA=plain leaves" in sentence or "this processor has no" in sentence
    assert "block-sparse int8 16x1, plain C" in sentence
    assert "exact int8: it is for a CPU, and the model is on cuda:0" in refused(
        EXACT.name, "int8-dynamic", device="cuda:0"
    )
    for right in ("dense", DENSE_PRODUCT, "block-sparse int8 16x1, plain C"):
        check_asked(right, parse("block-sparse").parts, tiny_decoder("llama"), "cpu")
