"""CALM exits where it is confident enough, by every measure, and certifies its threshold or says that it cannot."""

import logging
import math

import pytest
import torch

from harness.contract.study import Study
from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.audit import audit
from harness.measure.extra import Extra
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.methods.early_exit.agreement import inconsistency, observed
from harness.methods.early_exit.calm import Calm
from harness.methods.early_exit.certificate import CANDIDATES
from harness.testing.serve import TEXTS, generate, score
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests.methods.exit_reference import TEXT, assert_dense, cosine, depths, leaving, written

FIT = {"samples": 20, "length": 24}
MEASURES = {
    "softmax": {"confidence": "softmax", "threshold": 0.04},
    "vocabulary": {"confidence": "softmax", "threshold": 0.2, "vocabulary": 6, **FIT},
    "saturation": {"confidence": "saturation", "threshold": 0.9},
    "classifier": {"confidence": "classifier", "threshold": 0.01, **FIT},
}


def idle():
    """A model whose layers after the second do nothing: its exits there are without risk."""
    decoder = tiny_decoder("llama", layers=6)
    with torch.no_grad():
        for block in decoder.anatomy.blocks[2:]:
            block.attention.modules[0].o_proj.weight.zero_()
            block.mlp.modules[0].down_proj.weight.zero_()
    return decoder


def reference(decoder, method, prepared):
    """The confidence and the falling threshold, written out again, in double precision where it is cheap."""
    anatomy, cap = decoder.anatomy, getattr(decoder.config, "final_logit_softcapping", None)

    def sure(layer, before, after):
        if (layer + 1) % method.every or layer == len(anatomy.blocks) - 1:
            return None
        if method.confidence == "saturation":
            confidence = cosine(before, after)
        elif method.confidence == "classifier":
            at = prepared.facts["layers"].index(layer)
            weight, bias = prepared.tensors["weights"][at].double(), prepared.tensors["biases"][at].double()
            confidence = torch.sigmoid(after.double() @ weight + bias)
        else:
            logits = anatomy.head(anatomy.final_norm(after)).double()
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            logits = logits[..., prepared.tensors["vocabulary"]] if method.vocabulary else logits
            first, second = logits.softmax(-1).sort(-1, descending=True).values.unbind(-1)[:2]
            confidence = first - second
        step = (torch.arange(after.shape[1]) - (sure.prompt - 1)).clamp(min=0).double()
        falling = 0.9 * method.threshold + 0.1 * torch.exp(-method.decay * step / method.horizon)
        return confidence >= (falling.clamp(0, 1) if method.decay else method.threshold)

    return sure


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "gpt_neox", "gemma3"])
def test_exits_equal_masked_recomputation(family, measure):
    decoder = tiny_decoder(family, layers=6)
    method = Calm(**MEASURES[measure], every=1, decay=2.0, horizon=8)
    prepared = method.prepare(decoder, TEXT)
    text, sure = TEXTS[1], reference(decoder, method, prepared)
    sure.prompt = len(text.prompt)
    with method.attach(decoder, prepared):
        scored, generated = score(decoder, [text]).row(0), generate(decoder, [text], steps=8)
        ran = depths(generated.segments[0])
    with leaving(decoder, sure.prompt, sure) as found:
        expected = written(decoder, text.tokens)
        whole = written(decoder, (*text.prompt, *generated.tokens[0][:-1]))
    torch.testing.assert_close(scored, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(generated.row(0), whole[sure.prompt - 1 :], rtol=1e-6, atol=1e-5)
    assert ran == found["ran"][0, sure.prompt :].tolist()


@pytest.mark.parametrize("measure", MEASURES)
def test_some_tokens_exit_and_some_do_not(measure):
    """So that the comparisons above compare something."""
    decoder, ran = tiny_decoder("llama", layers=6), []
    method = Calm(**MEASURES[measure], every=1, decay=2.0, horizon=8)
    with method.attach(decoder, method.prepare(decoder, TEXT)):
        for text in TEXTS:
            ran += depths(generate(decoder, [text], steps=8).segments[0])
    assert len(set(ran)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_threshold_one_is_dense_bit_for_bit(family):
    assert_dense(tiny_decoder(family), Calm(threshold=1, every=1))


def test_checks_are_counted_by_what_they_multiply():
    """Llama of width 32 and 259 tokens: after the first of four layers everything leaves, at three decode steps."""
    decoder = tiny_decoder("llama")
    shape, fill, costs = ModelShape.of(decoder), 3 * 32 * 32, {}
    for measure, settings in MEASURES.items():
        method = Calm(**{**settings, "threshold": 0}, every=1, decay=0)
        with method.attach(decoder, method.prepare(decoder, TEXT)):
            prefill, *decode = generate(decoder, TEXTS[:1]).segments[0]
        flops = executed_flops(shape, decode)
        assert flops.extra["fill"] == 3 * 2 * fill
        exits = prefill.extra.get("exit", Extra())
        costs[measure] = (flops.head // 6, flops.extra.get("exit", 0) // 6, prefill.head, exits.tokens)
    head = 32 * 259
    assert costs == {
        "softmax": (2 * head, 0, 2, 0),
        "vocabulary": (head, 32 * 6, 1, 1),
        "saturation": (head, 3 * 32, 1, 1),
        "classifier": (head, 32, 1, 1),
    }


@pytest.mark.parametrize("measure", MEASURES)
def test_the_formulas_count_what_the_operators_multiply(measure):
    decoder = tiny_decoder("qwen2")
    method = Calm(**MEASURES[measure], every=1)
    with method.attach(decoder, method.prepare(decoder, TEXT)):

        def serve():
            return [segment for run in (score, generate) for row in run(decoder, TEXTS).segments for segment in row]

        assert audit(decoder, serve).ratio == 1


@pytest.mark.parametrize(("every", "start", "layers"), [(1, 0, [0, 1, 2, 3, 4]), (2, 0, [1, 3]), (2, 0.5, [3])])
def test_where_checks_are_made(every, start, layers):
    facts = Calm(threshold=0.5, every=every, start=start).prepare(tiny_decoder("llama", layers=6), TEXT).facts
    assert facts == {"threshold": 0.5, "layers": layers}


def test_the_vocabulary_is_what_the_model_predicts_most_often():
    decoder = tiny_decoder("llama")
    chosen = Calm(**MEASURES["vocabulary"], every=1).prepare(decoder, TEXT).tensors["vocabulary"]
    windows = list(TEXT.windows(decoder, count=20, length=24))
    counts = torch.zeros(259)
    with torch.no_grad():
        for window in windows:
            for token in decoder.module(window).logits[0].argmax(-1).tolist():
                counts[token] += 1
    assert sorted(counts[chosen].tolist()) == sorted(counts.topk(6).values.tolist())


def test_classifiers_learn_what_can_be_learned():
    """On a model whose last layers do nothing, the prediction never changes, and every classifier says so."""
    decoder = idle()
    method = Calm(confidence="classifier", every=1, threshold=0.9, decay=0, **FIT)
    with method.attach(decoder, method.prepare(decoder, TEXT)):
        assert set(depths(generate(decoder, TEXTS[:1], steps=6).segments[0])) <= {1, 2}


@pytest.mark.parametrize("confidence", ["softmax", "saturation", "classifier"])
def test_what_is_without_risk_is_certified(confidence):
    method = Calm(confidence=confidence, every=2, delta=0.3, samples=16, length=10)
    facts = method.prepare(idle(), TEXT).facts
    assert facts["threshold"] == CANDIDATES[-1] == 0
    assert [each["threshold"] for each in facts["tested"]] == list(CANDIDATES)
    assert all(each["risk"] == 0 for each in facts["tested"])
    assert facts["windows"] == (12 if confidence == "classifier" else 16)


def test_what_cannot_be_certified_runs_dense_and_says_so(caplog):
    """Adjacent states that are equal say nothing of the layer behind them, which changes every prediction."""
    decoder = tiny_decoder("llama", layers=6)
    with torch.no_grad():
        decoder.anatomy.blocks[2].attention.modules[0].o_proj.weight.zero_()
        decoder.anatomy.blocks[2].mlp.modules[0].down_proj.weight.zero_()
    method = Calm(confidence="saturation", every=3, decay=0, delta=0.3, samples=16, length=10)
    prepared = method.prepare(decoder, TEXT)
    assert prepared.facts["threshold"] == 1
    assert [each["threshold"] for each in prepared.facts["tested"]] == [0.9999]
    assert prepared.facts["tested"][0]["risk"] > 0.5
    dense = generate(decoder, TEXTS)
    with caplog.at_level(logging.WARNING, "harness"), method.attach(decoder, prepared):
        ours = generate(decoder, TEXTS)
    assert "no threshold is certified" in caplog.text
    assert "on 16 windows" in caplog.text
    assert ours.segments == dense.segments
    assert all(map(torch.equal, ours.logits, dense.logits))


@pytest.mark.parametrize("with_text", [False, True])
def test_risks_compare_the_second_half_of_every_window(with_text):
    """Two batches of windows; the model in between is one whose head predicts one token alone."""
    decoder = tiny_decoder("llama")
    windows = list(TEXT.windows(decoder, count=10, length=12))
    batches = observed(decoder, windows)
    assert [len(batch.ids) for batch in batches] == [8, 2]
    assert inconsistency(decoder, batches, with_text=with_text) == [0] * 10
    with torch.no_grad():
        dense = torch.cat([decoder.module(window).logits.argmax(-1) for window in windows])
        decoder.anatomy.head.weight.copy_(decoder.anatomy.head.weight.roll(1, 0))  # every prediction is another
    ids, changed = torch.cat(windows)[:, 6:], (dense[:, 5:-1] + 1) % 259
    right, still = (dense[:, 5:-1] == ids).float().mean(1), (changed == ids).float().mean(1)
    expected = (right - still).clamp(min=0).tolist() if with_text else [1.0] * 10
    assert inconsistency(decoder, batches, with_text=with_text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"threshold": "1.2"}, "threshold='1.2' is not valid"),
        ({"threshold": "sure"}, "threshold='sure' is not valid"),
        ({"confidence": "hope"}, "confidence='hope' is not valid.*'softmax', 'saturation' or 'classifier'"),
        ({"every": 0}, "every=0 is not valid"),
        ({"delta": 0}, "delta=0 is not valid.*greater than 0"),
        ({"epsilon": 1}, "epsilon=1 is not valid.*less than 1"),
        ({"vocabulary": 1}, "vocabulary=1 has no second token"),
        ({"vocabulary": 8, "confidence": "saturation"}, "vocabulary=8 is for confidence=softmax, not saturation"),
        ({"decay": -1}, "decay=-1 is not valid"),
        ({"horizon": 0}, "horizon=0 is not valid"),
        ({"length": 3}, "length=3 is not valid"),
    ],
)
def test_nonsense_is_refused(args, says):
    with pytest.raises(MethodError, match=says):
        Calm.from_args(args)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"every": 6}, "every=6 and start=0 leave no layer to check in a model of 4"),
        ({"start": 1}, "every=4 and start=1 leave no layer"),
        ({"every": 1, "vocabulary": 300}, "vocabulary=300 is more than the model's 259 tokens"),
        (
            {"every": 1, "length": 26},
            r"delta=0.1 at epsilon=0.05 takes at least 29 windows of 26 .* a sentence gives 27",
        ),
        ({"every": 1, "vocabulary": 9, "samples": 36}, "takes at least 37 windows of 64 tokens.*or tolerate more"),
        ({"every": 1, "confidence": "classifier", "threshold": 0.5, "length": 256}, None),
    ],
)
def test_what_does_not_fit_model_or_text_is_refused(args, says):
    decoder, method = tiny_decoder("llama"), Calm(**args)
    if says is None:
        assert method.prepare(decoder, TEXT).tensors["weights"].shape == (3, 32)
        with pytest.raises(MethodError, match=r"fitting its confidence takes at least 1 windows of 256.*gives 0"):
            method.prepare(decoder, Study(("Few words.",), "a note"))
        return
    with pytest.raises(MethodError, match=says):
        method.prepare(decoder, TEXT)


def test_thresholds_come_round():
    for value, written_as in (("certified", "calm"), (0.5, "calm:threshold=0.5"), ("0.5", "calm:threshold=0.5")):
        method = Calm(threshold=value)
        assert method.label == written_as
        assert Calm.from_args(method.params()) == method
    assert not math.isnan(Calm(threshold="1").threshold)


def test_a_projection_before_the_head_is_refused(monkeypatch):
    decoder = tiny_decoder("opt")
    monkeypatch.setattr(decoder.anatomy.parent, "project_out", torch.nn.Identity())
    method = Calm(threshold=0.5, every=1)
    with pytest.raises(UnsupportedModelError, match=r"OPTForCausalLM.*project_out"):
        method.attach(decoder, method.prepare(decoder, TEXT))
