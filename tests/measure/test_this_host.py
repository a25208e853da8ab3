"""The peaks of this host are measured, and a run that beats them says that they are no bound."""

import pytest
import torch

from harness.measure import this_host
from harness.measure.accelerators import Accelerator
from harness.measure.shape import ModelShape
from harness.measure.this_host import SIZES, Sizes, measured_peaks
from harness.run.modelled import checked, rooflines
from harness.testing.tiny import tiny_decoder

SMALL = Sizes(product=32, copied=1 << 16, calls=4)


def test_peaks_are_what_the_work_took(monkeypatch):
    """Product, matrix-vector product and copy take 8, 2 and 1 ms for four calls each."""
    series = iter([8e-3] * 6 + [2e-3] * 6 + [1e-3] * 6)

    def seconds(_, call):
        call()
        return next(series)

    monkeypatch.setattr(this_host, "seconds", seconds)
    machine = measured_peaks(torch.device("cpu"), torch.float32, SMALL)
    assert machine.peaks == {"float32": pytest.approx(2 * 32**3 * 4 / 8e-3)}
    # a copy reads and writes; the faster of both is the bound
    assert machine.bandwidth == pytest.approx(2 * (1 << 16) * 4 / 1e-3)
    assert machine.source.startswith("measured here: ")
    assert "product" in machine.source
    assert "copy" in machine.source


def test_a_gpu_is_given_several_large_products_at_once():
    assert SIZES["cuda"].product >= 8192
    assert SIZES["cuda"].calls > 1


def test_a_bound_is_not_checked_by_requests_without_traces(dense_segment):
    shape = ModelShape.of(tiny_decoder("llama", layers=4))
    machine = Accelerator(name="this-host", peaks={"float32": 1e15}, bandwidth=1e15, source="s")
    ran = dense_segment(4, 9, phase="score", head=9)
    requests = [request(ran, [1e9]), {"prompt_tokens": 9, "new_tokens": 0, "run": {"latency": [1e9]}}]
    line = {"rows": [{"requests": [(0, 0)], "segments": [ran.to_json()]}]}
    section = rooflines([line], shape, [(machine, None)], "float32", requests)["this-host"]
    assert section.doubts == ["not checked: what ran for the measured requests was not kept"]
    # those of requests that are measured later take the place of these
    fast = checked({"this-host": section}, [request(ran, [1e9]), request(ran, [1e-30])], shape)["this-host"]
    assert "1 of 2 measured requests took less" in fast.doubts[0]
    assert checked({"this-host": section}, [request(ran, [1e9])], shape)["this-host"].doubts == []


def request(segment, seconds):
    return {"prompt_tokens": 9, "new_tokens": 0, "run": {"latency": seconds}, "segments": [segment.to_json()]}


@pytest.mark.parametrize(
    ("name", "peak", "doubted"), [("this-host", 1e3, True), ("this-host", 1e15, False), ("x", 1e3, False)]
)
def test_a_bound_that_a_run_beats_is_doubted(dense_segment, name, peak, doubted):
    shape = ModelShape.of(tiny_decoder("llama", layers=4))
    machine = Accelerator(name=name, peaks={"float32": peak}, bandwidth=1e15, source="s")
    ran = dense_segment(4, 9, phase="score", head=9)
    requests = [request(ran, [0.5, 0.4]), request(ran, [1e9, 1e9])]
    line = {"rows": [{"requests": [(0, 0)], "segments": [ran.to_json()]}]}
    section = rooflines([line], shape, [(machine, None)], "float32", requests)[name]
    assert bool(section.doubts) == doubted
    if doubted:
        assert "1 of 2 measured requests took less" in section.doubts[0]
