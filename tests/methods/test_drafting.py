"""Methods that draft: what they are refused for, what they say of themselves, and whose work is counted."""

import json

import pytest
import torch

from harness.contract.decoder import Row
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.study import Study
from harness.core.errors import HarnessError, MethodError
from harness.measure.audit import count_flops
from harness.measure.drafts import drafts
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.methods.lossless.assistant import Assistant
from harness.methods.lossless.layer_skip import LayerSkip
from harness.methods.lossless.self_spec import SelfSpec
from harness.model.speculation.verification import speculated
from harness.testing.tiny import tiny_decoder, tiny_model, tiny_tokenizer

PROMPT = torch.randint(3, 259, (1, 12), generator=torch.Generator().manual_seed(1))
OPTIONS = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def llama():
    return tiny_decoder("llama")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of the model that ``tiny_decoder`` gives."""
    folder = tmp_path_factory.mktemp("assistant")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write(decoder, **options):
    with torch.no_grad():
        return decoder.module.generate(PROMPT, **OPTIONS | options)[0].tolist()


def run(method, decoder):
    """As a run does it, up to the first text."""
    stack, study = parse(method), Study(("The keeper of the light wrote down every ship. " * 9,), "a test")
    stack.check_order()
    stack.check_model(lambda: decoder)
    with stack.attached(decoder, lambda index: stack.parts[index].prepare(decoder, study)):
        pass


def test_layer_skip_writes_what_dense_writes(llama):
    dense = write(llama)
    for layers in (1, 2, 3):
        with LayerSkip(exit=layers, draft=5).attach(llama, Prepared()):
            assert write(llama) == dense


@pytest.mark.parametrize("unit", ["block", "attention"])
def test_self_spec_writes_what_dense_writes_and_says_what_it_chose(llama, unit):
    dense = write(llama)
    method = SelfSpec(unit=unit, samples=2, length=32)
    state = method.prepare(llama, Study(("The keeper of the light wrote down every ship. " * 4,), "a test"))
    best = max(state.facts["tried"], key=lambda part: part["speedup"])
    assert {name: state.facts[name] for name in best} == best
    assert 1 <= best["draft"] <= 6
    assert json.loads(json.dumps(state.facts)) == state.facts | {
        "out": list(state.facts["out"]),
        "tried": [part | {"out": list(part["out"])} for part in state.facts["tried"]],
    }
    with method.attach(llama, state):
        assert write(llama) == dense


def test_layers_that_are_named_are_left_out(llama):
    method = SelfSpec(layers=(3, 1), draft=2)
    assert method.label == "self-spec:draft=2,layers=1/3"
    assert method.prepare(llama, Study((), "nothing")).facts == {"out": [1, 3], "draft": 2}


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("layer-skip:exit=4", "layer-skip: exit=4 is out of range for this model; from 1 to 3"),
        ("layer-skip:exit=0", "exit='0' is not valid"),
        ("layer-skip:draft=-1", "draft='-1' is not valid"),
        ("layer-skip:exit=1,draft=256", "layer-skip: a draft of 256 tokens is longer than the model's 256 positions"),
        ("ngram:tokens=999", "ngram: a draft of 999 tokens is longer than the model's 256 positions: from 0 to 255"),
        ("self-spec:layers=1/1", "names a layer twice"),
        ("self-spec:layers=7", "self-spec: there is no layer 7; the model's layers are 0 to 3"),
        ("self-spec:layers=0", "needs the attention of layer 0"),
        ("assistant:model=nowhere", "assistant: model=nowhere is no folder with a model"),
        ("assistant", "assistant needs model: write assistant:model=VALUE"),
        ("calm+layer-skip", "layer-skip drafts by some of the layers .*, and calm decides which layers run: run them"),
        ("kv-evict+self-spec", "self-spec drafts by .*, and kv-evict decides what the cache has: run them apart"),
        ("streaming+layer-skip", "streaming gives none back as it was: run them apart"),
        ("ngram+layer-skip:exit=1", "another method drafts already"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(llama, method, says):
    with pytest.raises(HarnessError, match=says) as caught:
        run(method, llama)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["layer-skip:exit=2", "self-spec:layers=2"])
def test_sampling_and_batches_are_refused(llama, method):
    stack = parse(method)
    with stack.attached(llama, lambda index: stack.parts[index].prepare(llama, Study((), "nothing"))):
        with pytest.raises(MethodError, match=f"{stack.name} drafts for greedy decoding, and sample was asked for"):
            write(llama, do_sample=True)
        with pytest.raises(MethodError, match=f"{stack.name} drafts for one row, and the batch has 2"):
            llama.module.generate(PROMPT.expand(2, -1), **OPTIONS)


def test_a_draft_ends_where_the_models_positions_do(llama):
    ends = []

    def draft(context, count):
        ends.append(len(context) + count)
        return [7] * count

    prompt = PROMPT[:, :1].expand(1, 250)
    with speculated(llama, draft, 8), torch.no_grad():
        llama.module.generate(prompt, max_length=260, do_sample=False, pad_token_id=0)
    assert set(ends) == {255}  # and the model's own token after them


def test_a_model_is_its_own_assistant(llama, checkpoint):
    """All guesses are right, and PyTorch counts what was charged."""
    dense, before, shape = write(llama), set(llama.module.state_dict()), ModelShape.of(llama)
    rows = [Row("", 0, (0,), 12, 12)]
    with (
        Assistant(model=checkpoint, draft=3).attach(llama, Prepared()),
        Tracer(llama) as tracer,
        llama.serving(rows, "generate"),
    ):
        assert ModelShape.of(llama).bytes >= 1.9 * shape.bytes
        shape = ModelShape.of(llama)
        text, counted = count_flops(lambda: write(llama))
        segments = tracer.collect()[0]
    assert text == dense
    assert set(llama.module.state_dict()) == before
    assert executed_flops(shape, segments).total == counted
    of = drafts(shape, segments)
    assert of.acceptance == [1.0, 1.0, 1.0]
    assert of.verifications == 5
    assert of.draft_flops == executed_flops(shape, segments).extra["draft"] > 0
    layers = sum(layer.attention.bytes + layer.mlp.bytes for layer in shape.layers)
    assert of.passes_per_token == pytest.approx((5 + 14 * (1 + shape.head.bytes / layers)) / 19)


def test_an_assistant_with_another_vocabulary_is_refused(llama, checkpoint, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        MethodError, match=r"has another vocabulary than the model .*: give one with the same tokenizer"
    ):
        Assistant(model=tmp_path).attach(llama, Prepared()).__enter__()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MethodError, match="has no safetensors files, and pickled weights are not read"):
        Assistant(model=tmp_path).check_model(llama)
