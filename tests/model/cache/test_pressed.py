"""The cache engine: decoding reads exactly what stays, as a dense forward without a cache does under the same mask."""

from copy import deepcopy

import pytest
import torch
from transformers import DynamicCache

from harness.contract.decoder import Row
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.cache.pressed import pressed
from harness.model.cache.pressed_cache import PressedCache
from harness.model.surgery import without_branches
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import POSITIONS, tiny_decoder
from tests.model.conftest import usual, variants

PROMPT, STEPS = 12, 5


def texts(rows=2, length=PROMPT + STEPS, seed=1):
    return torch.randint(3, 259, (rows, length), generator=torch.Generator().manual_seed(seed))


def scattered(entries):
    """Other entries in each layer and head, half of them, and another number in each layer."""
    generator = torch.Generator().manual_seed(entries.layer)
    scores = torch.rand(entries.keys.shape[1], len(entries), generator=generator)
    return entries.select(scores.expand(len(entries.rows), -1, -1), len(entries) // 2 + entries.layer)


def ends(entries):
    return entries.ends(1, 6)


class Kept:
    """A press that notes which tokens' entries stay, and of how many, by layer and row: [kv heads, kept]."""

    def __init__(self, press):
        self.press, self.now = press, {}

    def __call__(self, entries):
        index = self.press(entries)
        for row, positions, chosen in zip(entries.rows, entries.positions, index, strict=True):
            self.now[entries.layer, row] = positions.gather(-1, chosen), int(positions.max()) + 1
        return index


@torch.no_grad()
def cached(decoder, press, ids, lengths, when=("prefill",), parts=(PROMPT,)):
    """Logits of the last prompt token and of each step, [rows, 1 + steps, vocabulary], and what was kept after each.

    Args:
        ids: [rows, prompt and steps]; shorter prompts are padded on the left.
        parts: where the parts end in which the prompt is read.
    """
    padding = PROMPT - torch.tensor(lengths)
    mask = (torch.arange(ids.shape[1]) >= padding[:, None]).long()
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    kept, logits, history, cache, start = Kept(press), [], [], None, 0
    rows = [Row("text", row, (0,), length, length) for row, length in enumerate(lengths)]
    with pressed(decoder, kept, when, name="mine"), decoder.serving(rows, "generate", PROMPT):
        for end in (*parts, *range(PROMPT + 1, ids.shape[1] + 1)):
            output = decoder.module(
                input_ids=ids[:, start:end] * mask[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=position_ids[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            cache, start = output.past_key_values, end
            if end >= PROMPT:
                logits.append(output.logits[:, -1])
                history.append(dict(kept.now))
    return torch.stack(logits, 1), history, cache


@torch.no_grad()
def recomputed(decoder, ids, row, length, history):
    """The reference for a row: no cache, and a mask by which each step reads what stayed before it, and itself."""
    text = ids[row : row + 1, PROMPT - length :]
    handles = []
    for block in decoder.anatomy.blocks:

        def mask(module, args, kwargs, layer=block.index):
            heads, groups = decoder.config.num_attention_heads, getattr(module, "num_key_value_groups", 1)
            readable = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).tril().repeat(1, heads, 1, 1)
            if (own := kwargs["attention_mask"]) is not None:
                readable &= own if own.dtype == torch.bool else own == 0
            for query, kept in enumerate(history[:-1], start=length):
                if (layer, row) in kept:
                    positions, tokens = kept[layer, row]
                    gone = torch.ones(len(positions), tokens, dtype=torch.bool).scatter(1, positions, value=False)
                    readable[0, :, query, :tokens] &= ~gone.repeat_interleave(groups, 0)
            if torch.equal(readable, readable[:, :1].expand_as(readable)):  # XGLM takes one mask for all heads
                readable = readable[:, :1]
            if decoder.config._attn_implementation == "eager":
                readable = torch.where(readable, 0.0, torch.finfo(torch.float32).min)
            return args, {**kwargs, "attention_mask": readable}

        handles.append(block.attention.modules[0].register_forward_pre_hook(mask, with_kwargs=True))
    try:
        return decoder.module(text, use_cache=False).logits[0, length - 1 :][: len(history)]
    finally:
        for handle in handles:
            handle.remove()


def require_equal(decoder, logits, ids, lengths, history):
    for row, length in enumerate(lengths):
        expected = recomputed(decoder, ids, row, length, history)
        torch.testing.assert_close(logits[row], expected, atol=2e-3, rtol=2e-3)


@variants("when", [("prefill",), ("prefill", "decode")])
def test_decoding_reads_what_stays(decoder, when):
    """On every layout, with rows of unequal length, other entries in each layer, head and row."""
    ids, lengths = texts(3), (12, 9, 12)
    press = scattered if when == ("prefill",) else ends
    logits, history, cache = cached(decoder, press, ids, lengths, when)
    assert isinstance(cache, PressedCache)
    require_equal(decoder, logits, ids, lengths, history)
    assert any(positions.shape[1] < tokens for positions, tokens in history[-1].values())


def test_after_every_step_alone():
    decoder, ids = tiny_decoder("llama"), texts(2)
    logits, history, _ = cached(decoder, ends, ids, (12, 9), ("decode",))
    require_equal(decoder, logits, ids, (12, 9), history)
    assert not history[0]


def test_a_prompt_may_be_read_in_parts():
    for family in ("llama", "gemma3_text"):
        decoder = tiny_decoder(family)
        whole, history, _ = cached(decoder, scattered, texts(), (12, 9))
        parts, again, _ = cached(decoder, scattered, texts(), (12, 9), parts=(5, 6, PROMPT))
        torch.testing.assert_close(parts, whole, atol=2e-3, rtol=2e-3)
        assert {key: kept[1] for key, kept in again[0].items()} == {key: kept[1] for key, kept in history[0].items()}


def test_several_tokens_may_follow_at_once():
    """As where answer choices are scored against a context: each token reads what stayed, and nothing after it."""
    for family in ("llama", "mistral", "gemma2"):
        decoder, ids = tiny_decoder(family), texts(1)
        logits, *_ = cached(decoder, scattered, ids, (PROMPT,))
        with torch.no_grad(), pressed(decoder, scattered, name="mine"):
            cache = decoder.module(ids[:, :PROMPT], use_cache=True).past_key_values
            once = decoder.module(ids[:, PROMPT:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(once, logits[:, 1:], atol=2e-3, rtol=2e-3)


@usual
def test_what_holds_everything_is_dense_by_every_bit(decoder):
    ids, mask = texts(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.long)
    mask[0, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    options |= {"attention_mask": mask, "return_dict_in_generate": True, "eos_token_id": None}
    dense = decoder.module.generate(ids * mask, **options)
    with pressed(decoder, lambda entries: entries.ends(4, 1 << 30), ("prefill", "decode"), name="mine"):
        written = decoder.module.generate(ids * mask, **options)
    assert isinstance(written.past_key_values, PressedCache)
    assert torch.equal(torch.stack(written.logits), torch.stack(dense.logits))


@torch.no_grad()
def test_generate_uses_the_cache_and_its_positions_continue():
    """Outside an evaluation too, where a prompt may be read in parts of a fixed size."""
    decoder, ids, seen = tiny_decoder("llama"), texts(1, PROMPT), []
    decoder.module.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(int(kwargs["position_ids"][0, -1])), with_kwargs=True
    )
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for parts, ends in (({}, [11]), ({"prefill_chunk_size": 5}, [4, 9, 11])):
        seen.clear()
        with pressed(decoder, scattered, name="mine"):
            written = decoder.module.generate(ids, **options, **parts)
        assert seen == [*ends, PROMPT, PROMPT + 1, PROMPT + 2]
        logits, *_ = cached(decoder, scattered, written, (PROMPT,))
        assert written[0, PROMPT:].tolist() == logits[0, :-1].argmax(-1).tolist()


@usual
def test_everything_is_restored(decoder):
    before = model_snapshot(decoder)
    with pytest.raises(ZeroDivisionError), pressed(decoder, lambda _: 1 / 0, name="mine"):
        decoder.module(texts(1, 4), use_cache=True)
    assert not changes(before, model_snapshot(decoder))


@torch.no_grad()
def test_padding_is_never_kept_and_every_row_keeps_its_own_number():
    decoder = tiny_decoder("llama", layers=2)
    _, history, cache = cached(decoder, scattered, texts(3, PROMPT), (12, 7, 10))
    numbers = {row: history[0][1, row][0].shape[1] for row in range(3)}
    assert numbers == {0: 7, 1: 4, 2: 6}  # half and one, in the second layer
    layer = cache.layers[1]
    assert layer.keys.shape == layer.values.shape == (3, 2, 7, 8)
    assert (layer.positions[1, :, :3] == -1).all()
    assert (layer.positions[1, :, 3:] >= 5).all()  # after the padding
    assert cache.get_seq_length() == PROMPT


@torch.no_grad()
def test_bytes_are_those_of_what_stays():
    decoder = tiny_decoder("llama", layers=1)
    with pressed(decoder, ends, name="mine"):
        layer = decoder.module(texts(2, 100), use_cache=True).past_key_values.layers[0]
    for tensor in (layer.keys, layer.values):
        assert tensor.untyped_storage().nbytes() == 2 * 2 * 7 * 8 * 4  # rows, heads, entries, width, bytes


@torch.no_grad()
def test_a_window_does_not_grow_and_sliding_layers_let_go():
    def written(family, press, when):
        decoder = tiny_decoder(family, layers=2)
        with pressed(decoder, press, when, name="mine"):
            cache = decoder.module(texts(1, 9), use_cache=True).past_key_values
            for step in range(20):
                decoder.module(texts(1, 1, seed=step), past_key_values=cache)
                yield cache

    assert {cache.layers[1].keys.shape[2] for cache in written("llama", ends, ("prefill", "decode"))} == {7}
    *_, last = written("mistral", scattered, ("prefill",))
    assert last.layers[1].keys.shape[2] == 5  # one less than its window, as in dense
    assert last.get_seq_length() == 29


@torch.no_grad()
def test_rows_may_be_repeated_reordered_and_chosen_and_the_cache_copied():
    """As scoring does it, which reads a context once for several choices."""
    decoder, ids, rows = tiny_decoder("gemma3_text"), texts(2), torch.tensor([0, 0, 1, 1])
    with pressed(decoder, scattered, name="mine"):
        cache = decoder.module(ids[:, :PROMPT], use_cache=True).past_key_values
        expected = decoder.module(ids[:, PROMPT:], past_key_values=deepcopy(cache)).logits[rows]
        repeated, chosen, reordered = deepcopy(cache), deepcopy(cache), deepcopy(cache)
        repeated.batch_repeat_interleave(2)
        chosen.batch_select_indices(rows)
        reordered.reorder_cache(torch.tensor([1, 0]))
        for copy in (repeated, chosen):
            logits = decoder.module(ids[rows, PROMPT:], past_key_values=copy).logits
            torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        logits = decoder.module(ids[[1, 0], PROMPT:], past_key_values=reordered).logits
        torch.testing.assert_close(logits, expected[[2, 0]], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_the_last_tokens_can_be_taken_back_unless_entries_are_gone():
    decoder, ids = tiny_decoder("llama", layers=2), texts(1)
    with pressed(decoder, scattered, name="mine"):
        cache = decoder.module(ids[:, :PROMPT], use_cache=True).past_key_values
        expected = decoder.module(ids[:, PROMPT:], past_key_values=deepcopy(cache)).logits
        decoder.module(ids[:, :3], past_key_values=cache)
        cache.crop(-3)
        assert cache.get_seq_length() == PROMPT
        logits = decoder.module(ids[:, PROMPT:], past_key_values=cache).logits
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        with pytest.raises(MethodError, match="the last 9 tokens cannot be taken back"):
            cache.crop(-9)


def test_a_press_may_read_states_and_queries():
    """Of the rows' own tokens: those of a padded row are those that it has alone."""
    decoder, ids, read = tiny_decoder("llama", layers=2), texts(2, PROMPT), {}

    def choose(entries):
        for row, states, queries in zip(entries.rows, entries.states, entries.queries, strict=True):
            read[len(lengths), entries.layer, row] = states, queries
        return entries.ends(1, 3)

    for lengths, start in (((12, 7), 0), ((7,), 5)):
        mask = torch.arange(PROMPT) >= PROMPT - torch.tensor(lengths)[:, None]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        options = {"attention_mask": mask[:, start:], "position_ids": positions[:, start:], "use_cache": True}
        with torch.no_grad(), pressed(decoder, choose, name="mine", reads_queries=True):
            decoder.module((ids[-len(lengths) :] * mask)[:, start:], **options)
    for layer in range(2):
        for batched, alone in zip(read[2, layer, 1], read[1, layer, 0], strict=True):
            torch.testing.assert_close(batched, alone, atol=1e-3, rtol=1e-3)
    states, queries = read[2, 1, 1]
    assert states.shape == (7, 32)
    assert queries.shape == (4, 7, 8)


def heavy_hitters(entries):
    """H2O (arXiv:2306.14048): those that received most attention so far stay."""
    heads, count, width = entries.keys.shape[1:]
    queries = entries.queries.unflatten(1, (heads, -1))  # [rows, kv heads, groups, tokens, width]
    tokens = queries.shape[3]
    later = torch.ones(tokens, count).triu(count - tokens + 1).bool()
    scores = (queries @ entries.keys[:, :, None].mT / width**0.5).masked_fill(later, -torch.inf)
    entries.memory.add_(scores.softmax(-1).sum((2, 3)))  # [rows, kv heads, entries]
    return entries.select(entries.memory, 7)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(12, 7), (12, 12)])
def test_a_press_that_accumulates_attention_keeps_its_memory_with_the_entries(lengths):
    """The reference adds up, by position, what attention itself says it gave to each key."""
    decoder, ids, received = tiny_decoder("llama", layers=2), texts(2), {}
    decoder.module.set_attn_implementation("eager")
    mask = (torch.arange(ids.shape[1]) >= PROMPT - torch.tensor(lengths)[:, None]).long()
    rows = [Row("text", row, (0,), length, length) for row, length in enumerate(lengths)]
    options = {"name": "mine", "reads_queries": True, "remembers": True}
    cache, start = None, 0
    with (
        pressed(decoder, heavy_hitters, ("prefill", "decode"), **options),
        decoder.serving(rows, "generate", PROMPT),
    ):
        for end in range(PROMPT, ids.shape[1] + 1):
            before = None if cache is None else [layer.stored() for layer in cache.layers]
            output = decoder.module(
                input_ids=ids[:, start:end] * mask[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=((mask.cumsum(-1) - 1).clamp(min=0))[:, start:end],
                past_key_values=cache,
                use_cache=True,
                output_attentions=True,
            )
            cache = output.past_key_values
            for layer, given in enumerate(output.attentions):  # [rows, heads, queries, keys]
                new = torch.arange(start, end, dtype=torch.int32).expand(2, 2, -1)
                columns = new if before is None else torch.cat([before[layer], new], -1)
                given = given * mask[:, None, start:end, None]
                given = given.unflatten(1, (2, -1)).sum((2, 3))  # [rows, kv heads, keys]
                held = cache.layers[layer]
                for row in range(2):
                    for head in range(2):
                        total = received.setdefault((layer, row, head), {})
                        for column, share in zip(columns[row, head].tolist(), given[row, head].tolist(), strict=True):
                            if column >= 0 and mask[row, column]:
                                total[column] = total.get(column, 0.0) + share
                        best = sorted(sorted(total, key=total.get)[-7:])
                        kept = [place for place in held.stored()[row, head].tolist() if place >= 0]
                        assert kept == best
                        memory = held.memory[row, head][held.stored()[row, head] >= 0]
                        torch.testing.assert_close(memory, torch.tensor([total[place] for place in best]))
                        received[layer, row, head] = {place: total[place] for place in best}
            start = end


@torch.no_grad()
def test_memory_follows_rows_windows_and_what_is_taken_back():
    def count(entries):
        entries.memory.copy_(entries.positions + 1.0)
        return ends(entries)

    decoder, ids = tiny_decoder("gemma3_text"), texts(2, PROMPT + 12)
    with pressed(decoder, count, name="mine", remembers=True):
        cache = decoder.module(ids[:, :PROMPT], use_cache=True).past_key_values
        decoder.module(ids[:, PROMPT:], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        cache.reorder_cache(torch.tensor([1, 0]))
        for layer in cache.layers:
            positions = layer.stored()
            assert layer.memory.shape == positions.shape == layer.keys.shape[:3]
            assert torch.equal(layer.memory, torch.where(positions < PROMPT, positions + 1.0, 0.0))
        taken = tiny_decoder("llama", layers=2)
    with pressed(taken, count, name="mine", remembers=True):
        cache = taken.module(ids[:, :PROMPT], use_cache=True).past_key_values
        taken.module(ids[:, :3], past_key_values=cache)
        cache.crop(-3)
        assert cache.layers[0].memory.tolist() == [[[1.0, *range(7, PROMPT + 1)]] * 2] * 2
        cache.reset()
        assert cache.layers[0].memory is None


@torch.no_grad()
def test_layers_without_attention_are_none_of_the_press():
    decoder, layers = tiny_decoder("llama"), set()

    def choose(entries):
        layers.add(entries.layer)
        return ends(entries)

    with without_branches(decoder, attention=[1]), pressed(decoder, choose, name="mine"):
        cache = decoder.module(texts(1, PROMPT), use_cache=True).past_key_values
        decoder.module(texts(1, 1), past_key_values=cache)
    assert layers == {0, 2, 3}


@pytest.mark.parametrize(
    ("press", "says"),
    [
        (lambda entries: [0, 1], "one tensor of integers.* not a list"),
        (lambda entries: [torch.arange(3), torch.arange(4)], r"not 2 tensors of the shapes \[\[3\], \[4\]\]"),
        (lambda entries: torch.zeros(1, 2, 3), "not one of torch.float32"),
        (lambda entries: torch.arange(3).expand(1, 4, -1), r"here \[1, 2, kept\], not \[1, 4, 3\]"),
        (lambda entries: torch.arange(3), r"not \[3\]"),
        (lambda entries: torch.arange(4, 7).expand(1, 2, -1), "kept entry 6 of layer 0, whose entries are 0 to 5"),
        (lambda entries: torch.arange(-1, 2).expand(1, 2, -1), "kept entry -1"),
        (lambda entries: torch.tensor([1, 1, 2]).expand(1, 2, -1), "an entry twice for layer 0"),
        (lambda entries: torch.tensor([2, 1]).expand(1, 2, -1), "entries that do not ascend"),
        (lambda entries: torch.ones(1, 2, 0, dtype=torch.long), "kept no entry of layer 0"),
        (lambda entries: torch.arange(3, device="meta").expand(1, 2, -1), "not a tensor on meta, where the model is"),
        (lambda entries: torch.arange(6).view(1, 2, 3).to_sparse(), "a dense tensor where the keys are, not a sparse"),
        (lambda entries: torch.nested.nested_tensor([torch.arange(3)]), "not a nested tensor"),
    ],
)
def test_what_no_press_returns_is_refused(press, says):
    decoder = tiny_decoder("llama", layers=1)
    refused = pytest.raises(MethodError, match=f"^mine: .*{says}")
    with torch.no_grad(), pressed(decoder, press, name="mine"), refused:
        decoder.module(texts(1, 6), use_cache=True)


@torch.no_grad()
def test_what_it_cannot_be_on_is_refused():
    decoder, ids = tiny_decoder("llama", layers=1), texts(1, 6)
    row = Row("text", 0, (0,), 6, 6)
    with pressed(decoder, ends, name="mine"):
        with pytest.raises(
            MethodError, match=r"^mine: entries of a 'static' cache cannot go; leave cache_implementation"
        ):
            decoder.module.generate(ids, max_new_tokens=2, cache_implementation="static", pad_token_id=0)
        with pytest.raises(MethodError, match=r"^mine: entries of a DynamicCache cannot go: pass no cache"):
            decoder.module(ids, past_key_values=DynamicCache(config=decoder.config))
        with decoder.serving([row], "generate", processed=6), pytest.raises(MethodError, match="use_cache=False"):
            decoder.module(ids[:, :1], use_cache=False)
        again = pytest.raises(MethodError, match="cannot be stacked")
        with again, pressed(decoder, ends, name="another"):
            pass
    decoder.module.config.model_type = "bloom"
    with pytest.raises(UnsupportedModelError, match="presses on the cache"), pressed(decoder, ends, name="mine"):
        pass


@torch.no_grad()
def test_a_text_that_is_scored_in_one_forward_meets_no_press():
    decoder, ids = tiny_decoder("llama", layers=1), texts(1, 6)
    row = Row("text", 0, (0,), 4, 6)
    with pressed(decoder, lambda _: 1 / 0, name="mine"):
        with decoder.serving([row], "score"):
            decoder.module(ids)
        with decoder.serving([row], "score"), pytest.raises(ZeroDivisionError):
            decoder.module(ids[:, :4], use_cache=True)


@torch.no_grad()
def test_beams_and_texts_beyond_the_models_positions_are_refused():
    decoder = tiny_decoder("llama", layers=1)
    long = texts(1, POSITIONS - 2)
    options = {"max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}
    with pressed(decoder, ends, name="mine"):
        with pytest.raises(MethodError, match=r"^mine: beam search tries several continuations.*: give num_beams=1"):
            decoder.module.generate(long[:, :6], num_beams=2, **options)
        with pytest.raises(MethodError, match=r"^mine: a text of 257 tokens.* 256 positions.*max_length=256 or less"):
            decoder.module.generate(long, **options)
