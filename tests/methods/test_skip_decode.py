"""SkipDecode: the paper's schedule by hand, and decoding that equals recomputation with the same layers masked."""

import pytest
import torch

from harness.core.errors import MethodError
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.methods.early_exit.skip_decode import SkipDecode
from harness.model.surgery import without_blocks
from harness.model.tokens.token_depth import Tokens
from harness.testing.serve import TEXTS, generate, score
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests.methods.exit_reference import assert_dense, depths


def test_the_schedule_falls_from_the_prompt_to_the_length():
    """24 layers, from 22 to 11 as for OPT-1.3B in the paper, over 9 positions from a prompt of 12 tokens on."""
    method = SkipDecode(most=22 / 24, least=11 / 24, length=21)
    positions = torch.arange(24)[None]
    tokens = Tokens(positions >= 11, (positions - 11).clamp(min=0), positions)
    falling = [22, 21, 20, 18, 17, 16, 15, 13, 12, 11]  # 22 - 11 t / 9
    assert (24 - method._skipped(24, tokens))[0].tolist() == [22] * 11 + falling + [11] * 3


def test_rows_of_a_batch_have_their_own_prompts():
    method = SkipDecode(least=0, length=10)
    steps = torch.tensor([[0, 1, 2], [0, 1, 2]])
    positions = steps + torch.tensor([[3], [7]])
    skipped = method._skipped(6, Tokens(steps >= 0, steps, positions))
    assert skipped.tolist() == [[0, 1, 2], [0, 3, 6]]


@torch.no_grad()
def reference(decoder, tokens, prompt, method):
    """One forward without a cache, in which every layer's output is taken by the tokens that run it."""
    layers = len(decoder.anatomy.blocks)
    steps = [max(place - prompt + 1, 0) for place in range(len(tokens))]
    falls = [min(step / max(method.length - prompt, 1), 1) for step in steps]
    depth = [round(layers * (method.most - (method.most - method.least) * fall)) for fall in falls]

    def masked(block):
        first = max(method.warmup, 0)
        skips = torch.tensor([first <= block.index < first + layers - count for count in depth])

        def choose(module, args, kwargs, output):
            states = args[0] if args else kwargs["hidden_states"]
            return torch.where(skips[:, None], states, output[0] if isinstance(output, tuple) else output)

        return block.module.register_forward_hook(choose, with_kwargs=True)

    handles = [masked(block) for block in decoder.anatomy.blocks]
    logits = decoder.module(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_and_scoring_equal_masked_recomputation(family):
    decoder, method = tiny_decoder(family, layers=6), SkipDecode(least=0.2, most=0.9, warmup=2, length=19)
    with method.attach(decoder, method.prepare(decoder, None)):
        written = generate(decoder, TEXTS[:3], steps=10)
        scored = score(decoder, TEXTS[:3])
    for row, text in enumerate(TEXTS[:3]):
        tokens = [*text.prompt, *written.tokens[row][:-1]]
        expected = reference(decoder, tokens, len(text.prompt), method)[len(text.prompt) - 1 :]
        torch.testing.assert_close(written.logits[row], expected, rtol=1e-6, atol=1e-5)
        expected = reference(decoder, list(text.tokens), len(text.prompt), method)
        torch.testing.assert_close(scored.row(row), expected, rtol=1e-6, atol=1e-5)


def test_nothing_is_filled_and_less_is_run_and_kept():
    decoder, method = tiny_decoder("llama", layers=8), SkipDecode(least=0.25, length=20)
    dense = generate(decoder, TEXTS[:1], steps=12)
    with method.attach(decoder, method.prepare(decoder, None)):
        written = generate(decoder, TEXTS[:1], steps=12)
    assert depths(written.segments[0]) == [7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2]  # 8 - 6 t / 11
    shape = ModelShape.of(decoder)
    flops = [executed_flops(shape, answers.segments[0]) for answers in (written, dense)]
    assert "fill" not in flops[0].extra
    assert flops[0].total < flops[1].total


@pytest.mark.parametrize("settings", [{"least": 1}, {"least": 1, "warmup": 3, "length": 1}])
def test_a_depth_that_does_not_fall_is_dense(settings):
    assert_dense(tiny_decoder("llama"), SkipDecode(**settings))


def test_layers_that_are_out_are_not_counted():
    decoder, method = tiny_decoder("llama", layers=6), SkipDecode(least=0.5, length=14)
    with without_blocks(decoder, [0, 3]), method.attach(decoder, method.prepare(decoder, None)):
        written = generate(decoder, TEXTS[:1], steps=6)
    assert depths(written.segments[0]) == [4, 3, 3, 2, 2]


def test_a_warmup_of_all_layers_skips_none():
    assert_dense(tiny_decoder("llama"), SkipDecode(least=0, warmup=4, length=12))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"least": 0.8, "most": 0.6}, "skip-decode: least=0.8 is more than most=0.6"),
        ({"warmup": 0}, "skip-decode: warmup=0 is not valid"),
        ({"least": -0.1}, "skip-decode: least=-0.1 is not valid"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings, says):
    with pytest.raises(MethodError, match=says):
        SkipDecode(**settings)
