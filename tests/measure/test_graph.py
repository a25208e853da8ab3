"""Captured steps, without a GPU: the steps are those that a graph would record, played by running them."""

from contextlib import nullcontext

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.core.errors import CaptureError
from harness.measure.capture import Compiled, CudaGraphs, ForbiddenError, Operations
from harness.measure.graph import Agreement, Captured, captured_with
from harness.measure.serve import CostRequest
from harness.methods.early_exit.skip_decode import SkipDecode
from harness.methods.pruning.layer_drop import LayerDrop
from harness.methods.quantization.int8_dynamic import Int8Dynamic
from harness.methods.routing.random_skip import RandomSkip
from harness.methods.routing.static_path import StaticPath
from harness.testing.tiny import tiny_decoder
from tests.captures import Failing, Replayed, Stuck
from tests.methods.test_host_waits import METHODS

WRITTEN = tuple(
    CostRequest("t", number, tuple(range(5, 5 + length)), length, 5) for number, length in enumerate((9, 14))
)
SCORED = (CostRequest("t", 0, tuple(range(5, 16)), 6, 0), CostRequest("t", 1, tuple(range(9, 20)), 8, 0, read=7))
STATIC = {
    "layer-drop": (LayerDrop(layers={1}), Prepared(facts={"dropped": [["block", 1]]})),
    "int8-dynamic": (Int8Dynamic(), Prepared()),
    "static-path": (StaticPath(skip=1), Prepared(facts={"path": [1, 0, 2, 1]})),
    "random-skip": (RandomSkip(executed=0.5, first=0, last=0), Prepared()),
    **{name: METHODS[name][:2] for name in ("dr-llm", "polar")},
}
DEPENDENT = {"random-skip", "dr-llm", "polar"}


def attached(model, name):
    if name == "dense":
        return nullcontext()
    method, prepared = STATIC[name]
    return method.attach(model, prepared)


@pytest.mark.parametrize("name", ["dense", *STATIC])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_captured_steps_write_what_the_model_writes(family, name):
    """Token for token, also where windows slide, and on any path; after other texts, and a second time."""
    model, capture = tiny_decoder(family), Replayed()
    with attached(model, name):
        steps = Captured(model, capture, 19, name in DEPENDENT)
        for request in (*WRITTEN, WRITTEN[0]):
            assert steps.agreement(request) == Agreement(5, 0)
            served = steps.serve(request)
            assert served.tokens == (1, 2, 3, 4, 5)
            assert list(served.times) == sorted(served.times)
    assert model.context is None
    assert capture.recorded <= (1 if name in DEPENDENT else 2) + len(WRITTEN)


@pytest.mark.parametrize("name", ["dense", "layer-drop", "static-path"])
def test_scored_texts_are_captured_by_their_length(name):
    model, capture = tiny_decoder("llama"), Replayed()
    with attached(model, name):
        steps = Captured(model, capture, 12, name in DEPENDENT)
        agreement = steps.agreement(SCORED[0]) + steps.agreement(SCORED[1])
        for request in SCORED:
            assert steps.serve(request).tokens == (0,)
    assert agreement == Agreement(11 + 5, 0)  # of the second, what its context and each token of the rest predict
    assert capture.recorded == 3


def test_what_graphs_leave_in_their_shared_memory_is_read_before_the_next_is_played():
    """Intermediate tensors of all graphs share memory: one that is played may write over what another gave."""
    capture = Replayed()
    steps = Captured(tiny_decoder("llama"), capture, 12, False)
    record = capture.record

    def shared(run, before):
        play = record(run, before)

        def played():
            for reading in steps._readings.values():
                reading.logits.zero_()
            play()

        return played

    capture.record = shared
    assert steps.agreement(SCORED[1]) == Agreement(5, 0)


def test_a_step_that_goes_another_way_is_seen():
    """What a graph would go on doing after the model does otherwise shows in the tokens."""

    agreement = Captured(tiny_decoder("llama"), Stuck(), 16, False).agreement(WRITTEN[0])
    assert agreement.tokens == 5
    assert agreement.differences > 0


@pytest.mark.parametrize("name", ["calm softmax", "mue"])
def test_a_decision_for_every_token_is_refused(name):
    model, (method, prepared, *_) = tiny_decoder("llama"), METHODS[name]
    with method.attach(model, prepared), pytest.raises(CaptureError, match="decided anew for every token"):
        Captured(model, Replayed(), 16, method.input_dependent)


def test_a_depth_that_falls_is_refused():
    """Its places are read on the host, and its steps differ: either is reason enough."""
    model = tiny_decoder("llama")
    with SkipDecode(least=0.25, length=13).attach(model, Prepared()), pytest.raises(CaptureError, match="steps differ"):
        Captured(model, Replayed(), 16, False).agreement(WRITTEN[0])


def test_a_cache_that_loses_tokens_is_refused():
    from harness.methods.cache.streaming import Streaming

    model = tiny_decoder("llama")
    with Streaming(window=4).attach(model, Prepared()), pytest.raises(CaptureError, match="so its size changes"):
        Captured(model, Replayed(), 16, False)


def test_what_reads_to_decide_cannot_score():
    model, (method, prepared, *_) = tiny_decoder("llama"), METHODS["dr-llm"]
    with method.attach(model, prepared), pytest.raises(CaptureError, match="a scored text is only read"):
        Captured(model, Replayed(), 16, True).agreement(SCORED[0])


def test_sampling_is_refused():
    request = CostRequest("t", 0, WRITTEN[0].tokens, 9, 7, options={"do_sample": True})
    with pytest.raises(CaptureError, match="do_sample=True, and captured steps write the likeliest"):
        Captured(tiny_decoder("llama"), Replayed(), 16, False).agreement(request)


def test_a_wait_in_a_step_is_seen():
    """Torch's reads of single values, sizes that follow from values, and indices of bools."""
    values = torch.arange(4.0)
    for look in (lambda: values.sum().item(), lambda: bool(values.any()), values.nonzero, lambda: values[values > 1]):
        with Operations() as operations:
            look()
        assert operations.waits
    with Operations() as operations:
        values[torch.tensor([1, 2])] + values.sum()
    assert not operations.waits
    assert ("sum", ((4,),)) in operations.done


def test_a_forbidden_wait_gives_way_to_the_next_way():
    model, tried = tiny_decoder("llama"), []

    def make(capture):
        tried.append(type(capture))
        return Captured(model, capture, 21, False)

    error = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    *_, agreement = captured_with([lambda: Failing(error), Replayed], make, WRITTEN)
    assert tried == [Failing, Replayed]
    assert agreement == Agreement(10, 0)
    with pytest.raises(ForbiddenError, match="the host waits for the device"):
        captured_with([lambda: Failing(error)], make, WRITTEN)


def after(error, cause):
    """An error that was raised while another one was handled."""
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "out of memory while its steps were captured: give fewer",
        ),
        (
            after(
                RuntimeError("CUDA error: operation failed due to a previous error during capture"),
                torch.OutOfMemoryError("CUDA out of memory. Tried"),
            ),
            "out of memory while its steps were captured: give fewer",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out of memory while its steps were captured: give fewer",
        ),
        (
            RuntimeError("CUDA error: invalid argument.\nmore"),
            "its steps could not be captured: CUDA error: invalid arg",
        ),
        (
            RuntimeError("called a synchronizing CUDA operation"),
            "the host waits for the device in the middle of a step",
        ),
    ],
)
def test_what_goes_wrong_in_a_capture_is_a_sentence(error, sentence):
    with pytest.raises(CaptureError, match=sentence) as raised:
        Captured(tiny_decoder("llama"), Failing(error), 21, False).agreement(WRITTEN[0])
    assert "\n" not in str(raised.value)


def test_without_a_gpu_there_is_no_graph():
    with pytest.raises(CaptureError, match="graphs need CUDA; here the model is on cpu"):
        CudaGraphs(torch.device("cpu"))
    assert Compiled.reads is False
