"""Layer paths: cached decoding is recomputation without a cache, the identity is dense, and nothing stays behind."""

import pytest
import torch
from transformers import DynamicCache

from harness.contract.decoder import Row
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.model.paths.routed_cache import RoutedCache
from harness.model.surgery import without_blocks
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests.model.conftest import usual, variants
from tests.model.dropping import assert_same, logits, snapshot

ROUTES = {
    "ends": ((0, 1, 1, 0), (2, 1, 0, 1), (1, 1, 1, 2)),
    "extremes": ((0, 0, 0, 0), (1, 2, 1, 1), (0, 2, 2, 0)),
}
STEPS, LENGTHS = 7, (12, 9, 5)


@pytest.fixture
def prompts():
    """Three rows of unequal length, padded on the left, longer than the sliding windows."""
    ids = torch.randint(3, 259, (3, LENGTHS[0]), generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[0] * (LENGTHS[0] - length) + [1] * length for length in LENGTHS])
    return ids * mask, mask


@torch.no_grad()
def generate(decoder, ids, mask, steps=STEPS):
    decoder.module.generation_config.eos_token_id = None
    return decoder.module.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=steps,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )


@torch.no_grad()
def recomputed(decoder, ids, path):
    """Logits of one unpadded row without a cache, the layers called in the path's order by the stack's own loop."""
    handles = []
    for block, count in zip(decoder.anatomy.blocks, path, strict=True):

        def again(module, args, kwargs, output, count=count):
            stream = args[0] if args else kwargs["hidden_states"]
            if count == 0:
                return (stream, *output[1:]) if isinstance(output, tuple) else stream
            if count == 2:
                rest = {**dict(zip(NAMES[type(module)], args[1:], strict=False)), **kwargs}
                return type(module).forward(module, output[0] if isinstance(output, tuple) else output, **rest)
            return output

        handles.append(block.module.register_forward_hook(again, with_kwargs=True))
    try:
        return logits(decoder, ids)
    finally:
        for handle in handles:
            handle.remove()


class _Names(dict):
    def __missing__(self, kind):
        import inspect

        return list(inspect.signature(kind.forward).parameters)[2:]


NAMES = _Names()


@variants("name", ROUTES)
def test_cached_decoding_equals_recomputation_of_each_row(decoder, prompts, name):
    ids, mask = prompts
    paths = ROUTES[name]
    with routed(decoder, FixedPaths(paths)):
        made = generate(decoder, ids, mask)
    cache = made.past_key_values
    assert cache.seen == LENGTHS[0] + STEPS - 1
    for row, (length, path) in enumerate(zip(LENGTHS, paths, strict=True)):
        whole = made.sequences[row : row + 1, LENGTHS[0] - length :]
        expected = recomputed(decoder, whole, path)[0, length - 1 : -1]
        actual = torch.stack([step[row] for step in made.logits])
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for slot, layer in enumerate(cache.layers):
        running = sum(path[slot % 4] > slot // 4 for path in paths)
        assert (layer.keys.shape[0] if layer.is_initialized else 0) == running


@usual
def test_the_identity_is_dense_bit_for_bit(decoder, prompts):
    ids, mask = prompts
    outputs, states = logits(decoder, ids, attention_mask=mask), generate(decoder, ids, mask).sequences
    with torch.no_grad():  # installs the hooks that collect hidden states, for good
        decoder.module(input_ids=ids, output_hidden_states=True)
    before = snapshot(decoder)
    with routed(decoder, FixedPaths(((1, 1, 1, 1),))):
        assert list(decoder.module.state_dict()) == list(before["state"])
        assert torch.equal(logits(decoder, ids, attention_mask=mask), outputs)
        assert torch.equal(generate(decoder, ids, mask).sequences, states)
        with torch.no_grad():
            hidden = decoder.module(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        assert len(hidden) == 5
    assert_same(before, snapshot(decoder))
    assert torch.equal(logits(decoder, ids, attention_mask=mask), outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_permuted_rows_give_permuted_outputs(family, prompts):
    decoder, (ids, mask), order = tiny_decoder(family), prompts, [2, 0, 1]
    paths = ROUTES["ends"]
    with routed(decoder, FixedPaths(paths)):
        expected = logits(decoder, ids, attention_mask=mask)
    with routed(decoder, FixedPaths(tuple(paths[row] for row in order))):
        actual = logits(decoder, ids[order], attention_mask=mask[order])
    torch.testing.assert_close(actual, expected[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("dropped", [(0,), (1, 3)], ids=str)
def test_a_constant_table_equals_surgery(family, dropped, prompts):
    decoder, (ids, mask) = tiny_decoder(family), prompts
    path = tuple(int(layer not in dropped) for layer in range(4))
    with without_blocks(decoder, dropped):
        expected = generate(decoder, ids, mask)
    with routed(decoder, FixedPaths((path,))):
        actual = generate(decoder, ids, mask)
        with torch.no_grad():
            first = decoder.module(input_ids=ids[:1])
            second = decoder.module(input_ids=ids[:1, :1], past_key_values=first.past_key_values).logits
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), rtol=1e-5, atol=1e-5)
    with without_blocks(decoder, dropped), torch.no_grad():
        first = decoder.module(input_ids=ids[:1])
        direct = decoder.module(input_ids=ids[:1, :1], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(second, direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", [(0, 1, 1, 1), (1, 2, 1, 1), (1, 1, 1, 1)])
def test_a_plain_cache_is_refused(path):
    decoder = tiny_decoder("llama")
    ids = torch.tensor([[5, 6, 7]])
    with routed(decoder, FixedPaths((path,))), pytest.raises(MethodError, match="DynamicCache cannot hold"):
        decoder.module(input_ids=ids, past_key_values=DynamicCache(config=decoder.config))
    logits(decoder, ids)


@pytest.mark.parametrize("out", [0, 1, 3])
def test_layers_that_another_method_took_out_are_on_no_path(out, prompts):
    """A controller that decides layer by layer is not asked about them; answers are those of a path without them."""
    path, asked = (1, 2, 1, 1), []

    class OneByOne(FixedPaths):
        def decide(self, layer, hidden, prompts):
            asked.append(layer)
            return [(self.paths[0][layer],)] * len(prompts.spans)

    decoder, (ids, mask) = tiny_decoder("llama"), prompts
    with routed(decoder, OneByOne((path,))), without_blocks(decoder, {out}):
        written = generate(decoder, ids, mask)
    assert asked == [layer for layer in range(4) if layer != out]
    left = tuple(0 if layer == out else count for layer, count in enumerate(path))
    with routed(decoder, FixedPaths((left,))):
        expected = generate(decoder, ids, mask)
    assert torch.equal(written.sequences, expected.sequences)
    assert torch.allclose(torch.stack(written.logits), torch.stack(expected.logits), atol=1e-5)


def test_a_continuation_does_not_choose_the_path(prompts):
    """The rows' prompts are what the context says they are, and a prompt met again goes its old way."""
    decoder, (ids, _) = tiny_decoder("llama"), prompts
    seen = []

    class Looks(FixedPaths):
        def decide(self, layer, hidden, prompts):
            seen.append(prompts.spans)
            return super().decide(layer, hidden, prompts)

    rows = tuple(Row("t", i, (0,), length - 3, length) for i, length in enumerate(LENGTHS))
    with routed(decoder, Looks(ROUTES["ends"])) as engine:
        with decoder.serving(rows, "score"):
            logits(decoder, ids)
        with decoder.serving(rows, "generate"):
            logits(decoder, ids)
        other = torch.cat([ids[:1, : LENGTHS[0] - 3], ids[1:2, :5]], 1)
        engine._controller = Looks(((1, 1, 1, 1),))
        with decoder.serving(rows[:1], "score"):
            logits(decoder, other)
        assert engine.last_paths == [ROUTES["ends"][0]]
    assert seen[0] == ((0, 9), (0, 6), (0, 2))
    assert seen[1] == ((0, 12), (3, 12), (7, 12))


def test_rows_of_one_prompt_take_one_path_where_decisions_differ(prompts):
    class Alternates(FixedPaths):
        def decide(self, layer, hidden, prompts):
            return [(row % 2,) for row in range(len(hidden))]

    decoder, (ids, _) = tiny_decoder("llama"), prompts
    with routed(decoder, Alternates(((1,) * 4,))) as engine:
        logits(decoder, ids[[0, 0, 1, 1]])
        assert engine.last_paths == [(0,) * 4] * 4
        logits(decoder, ids[[2, 1]])
        assert engine.last_paths == [(0,) * 4] * 2
        decoding = decoder.serving([Row("t", 0, (0,), 12, 12)], "generate", processed=12)
        with decoding, pytest.raises(MethodError, match="use_cache=False is not offered"):
            logits(decoder, ids[:1])


def test_what_is_not_supported_is_refused_by_name():
    decoder = tiny_decoder("llama")
    decoder.module.config.model_type = "novel"
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM \\(model_type 'novel'\\)"):
        routed(decoder, FixedPaths(((1,) * 4,))).__enter__()
    decoder = tiny_decoder("llama")
    with (
        routed(decoder, FixedPaths(((1,) * 4,))),
        pytest.raises(MethodError, match="another method"),
        routed(decoder, FixedPaths(((1,) * 4,))),
    ):
        pass
    with (
        without_blocks(decoder, (1,)),
        pytest.raises(MethodError, match="all of the model's layers"),
        routed(decoder, FixedPaths(((1,) * 4,))),
    ):
        pass


def test_rows_of_a_cache_stay_where_they_are():
    cache = RoutedCache(tiny_decoder("llama").config, 2)
    for move in (cache.reorder_cache, cache.crop, cache.batch_select_indices, cache.batch_repeat_interleave):
        with pytest.raises(MethodError, match="no beams"):
            move(1)
