"""MuE exits where it says: quantiles of adjacent cosines, from a layer on, several in a row."""

import pytest
import torch

from harness.contract.study import Study
from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.methods.early_exit.mue import MuE
from harness.model.surgery import without_blocks
from harness.testing.serve import TEXTS, Text, generate, score
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests.methods.exit_reference import TEXT, assert_dense, cosine, depths, leaving, written

SMALL = {"samples": 4, "length": 48}


def test_thresholds_are_quantiles_of_adjacent_cosines():
    decoder, cosines = tiny_decoder("llama", layers=8), {}
    facts = MuE(quantile=0.75, **SMALL).prepare(decoder, TEXT).facts
    for window in TEXT.windows(decoder, count=4, length=48):

        def keep(layer, before, after):
            cosines.setdefault(layer, []).append(cosine(before, after)[0])

        with leaving(decoder, 10**6, keep):
            written(decoder, window[0].tolist())
    expected = {layer: torch.cat(values).quantile(0.75).item() for layer, values in cosines.items()}
    assert facts["tokens"] == 4 * 48
    assert [layer for layer, _ in facts["thresholds"]] == [1, 2, 3, 4, 5, 6]
    assert dict(facts["thresholds"]) == pytest.approx({layer: expected[layer] for layer in range(1, 7)}, abs=1e-6)


@pytest.mark.parametrize(("start", "first"), [(0, 0), (0.25, 0), (0.3, 1), (0.5, 1), (1, None)])
def test_every_token_runs_the_first_layers(start, first):
    facts = MuE(threshold=0.5, start=start).prepare(tiny_decoder("llama"), TEXT).facts
    assert facts["thresholds"] == ([] if first is None else [[layer, 0.5] for layer in range(first, 3)])


@pytest.mark.parametrize("hits", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_exits_equal_masked_recomputation(family, hits):
    """Scored and generated: each token leaves where the reference lets it leave, and the logits agree."""
    decoder = tiny_decoder(family, layers=6)
    method = MuE(quantile=0.6 / hits**2, start=0, hits=hits, **SMALL)
    prepared = method.prepare(decoder, TEXT)
    thetas = dict(prepared.facts["thresholds"])
    text = TEXTS[1]
    with method.attach(decoder, prepared):
        scored, generated = score(decoder, [text]).row(0), generate(decoder, [text], steps=8)
        ran = depths(generated.segments[0])

    def sure(layer, before, after):
        return cosine(before, after) >= thetas[layer] if layer in thetas else None

    with leaving(decoder, len(text.prompt), sure, hits) as reference:
        expected = written(decoder, text.tokens)
        whole = written(decoder, (*text.prompt, *generated.tokens[0][:-1]))
    torch.testing.assert_close(scored, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(generated.row(0), whole[len(text.prompt) - 1 :], rtol=1e-6, atol=1e-5)
    assert ran == reference["ran"][0, len(text.prompt) :].tolist()
    assert min(ran) < 6


def test_rows_leave_apart():
    """Beside others, padded on either side, each row does what it does alone."""
    decoder, method = tiny_decoder("qwen3", layers=6), MuE(quantile=0.6, start=0, **SMALL)
    with method.attach(decoder, method.prepare(decoder, TEXT)):
        together, scored = generate(decoder, TEXTS, steps=6), score(decoder, TEXTS)
        for row, text in enumerate(TEXTS):
            alone = generate(decoder, [text], steps=6)
            assert depths(together.segments[row]) == depths(alone.segments[0])
            assert together.tokens[row] == alone.tokens[0]
            torch.testing.assert_close(scored.row(row), score(decoder, [text]).row(0), rtol=1e-6, atol=1e-5)
        assert len({tuple(depths(segments)) for segments in together.segments}) > 1


@pytest.mark.parametrize(
    ("family", "settings"),
    [*((family, {"quantile": 1}) for family in FAMILIES), ("opt", {"threshold": 1}), ("gpt2", {"start": 1})],
)
def test_never_exiting_is_dense_bit_for_bit(family, settings):
    assert_dense(tiny_decoder(family), MuE(**settings))


def test_checks_and_fills_are_counted():
    """threshold=-1 leaves after the first layer: one cosine of 3 x 32, fills of 2 x 32 x 16 in the other three."""
    decoder, method = tiny_decoder("llama"), MuE(threshold=-1, start=0)
    with method.attach(decoder, method.prepare(decoder, TEXT)):
        (prefill, *decode), (scored,) = generate(decoder, TEXTS[:1]).segments[0], score(decoder, TEXTS[:1]).segments[0]
    flops = executed_flops(ModelShape.of(decoder), decode)
    assert sum(segment.forwards for segment in decode) == 3
    assert flops.extra == {"exit": 2 * 3 * 96, "fill": 2 * 3 * 3 * 1024}
    assert prefill.extra["exit"].macs == 96
    assert prefill.attention == (9,) * 4
    # the prompt's last token and the five of the continuation, masked: all layers run
    assert (scored.extra["exit"].tokens, scored.extra["exit"].macs, scored.fill) == (6, 6 * 96, ())
    assert scored.mlp == (14,) * 4


def test_layers_out_of_the_model_are_not_looked_at():
    decoder, method = tiny_decoder("llama", layers=6), MuE(quantile=0.5, start=0, **SMALL)
    with without_blocks(decoder, [1, 2]):
        prepared = method.prepare(decoder, TEXT)
        assert [layer for layer, _ in prepared.facts["thresholds"]] == [0, 3, 4]
        with method.attach(decoder, prepared):
            generate(decoder, TEXTS[:2])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"quantile": 1.5}, "quantile=1.5 is not valid.*less than or equal to 1"),
        ({"threshold": "2"}, "threshold='2' is not valid.*less than or equal to 1"),
        ({"threshold": 0.9, "quantile": 0.5}, "quantile=0.5 contradicts threshold=0.9"),
        ({"start": -0.1}, "start=-0.1 is not valid"),
        ({"hits": 0}, "hits=0 is not valid"),
        ({"samples": 0}, "samples=0 is not valid"),
        ({"length": 1}, "length=1 is not valid"),
    ],
)
def test_nonsense_is_refused(args, says):
    with pytest.raises(MethodError, match=says):
        MuE.from_args(args)


def test_a_short_text_is_refused_with_what_it_takes():
    decoder, text = tiny_decoder("llama"), Study(("A few words.",), "a note")
    with pytest.raises(MethodError, match=r"quantile=0.9 takes 100 tokens.*32 windows of 256 from a note have 12"):
        MuE().prepare(decoder, text)


def test_activations_that_overflow_are_refused():
    decoder = tiny_decoder("llama")
    with torch.no_grad():
        decoder.anatomy.blocks[1].mlp.modules[0].down_proj.weight[0, 0] = float("nan")
    with pytest.raises(MethodError, match="after layer 1 is not a number"):
        MuE(quantile=0.5, **SMALL).prepare(decoder, TEXT)


def test_a_model_that_it_cannot_run_on_is_refused_at_once(monkeypatch):
    decoder = tiny_decoder("llama")
    monkeypatch.setattr(type(decoder.module.config), "model_type", "novel")
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*'novel'"):
        MuE(quantile=0.5, **SMALL).prepare(decoder, TEXT)


def test_a_prompt_of_one_token_can_leave():
    decoder, method = tiny_decoder("llama"), MuE(threshold=-1, start=0)
    with method.attach(decoder, method.prepare(decoder, TEXT)):
        found = generate(decoder, [Text((7,))], steps=3)
    with leaving(decoder, 1, lambda *_: torch.tensor(True)):
        expected = written(decoder, (7, *found.tokens[0][:-1]))
    torch.testing.assert_close(found.row(0), expected, rtol=1e-6, atol=1e-5)
