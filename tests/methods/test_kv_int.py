"""A cache in few bits: what attention reads, by a plain formula, how many bytes it takes, and what is never rounded."""

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.cache import bytes_of
from harness.methods.cache.kv_int import KvInt
from harness.model.cache.packed import Packed
from harness.model.cache.rounded_layer import RoundedLayer
from harness.testing.tiny import tiny_decoder
from tests.methods.caches import caches


def rounded(numbers, bits, dim):
    """The plain formula: whole steps from the least to the greatest along a dimension."""
    low, high = numbers.amin(dim, keepdim=True), numbers.amax(dim, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return ((numbers - low) / step).round() * step + low


def read(layer):
    """Keys and values that attention reads of a layer next, [rows, kv heads, entries, width]."""
    pairs = zip(layer.packed, (layer.keys, layer.values), strict=True)
    return [torch.cat([packed.numbers(), last], 2) for packed, last in pairs]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_keys_are_rounded_by_channel_and_values_by_token(ids, bits):
    dense, cache = caches(KvInt(bits=bits, group=4, residual=2), ids)  # 12 tokens: 8 rounded, 4 left
    for whole, layer in zip(dense.layers, cache.layers, strict=True):
        keys, values = read(layer)
        blocks = whole.keys[:, :, :8].unflatten(2, (2, 4))  # [rows, heads, groups, tokens, width]
        torch.testing.assert_close(keys[:, :, :8], rounded(blocks, bits, 3).flatten(2, 3), atol=1e-5, rtol=1e-5)
        parts = whole.values[:, :, :8].unflatten(-1, (2, 4))  # [rows, heads, tokens, parts, channels]
        torch.testing.assert_close(values[:, :, :8], rounded(parts, bits, 4).flatten(3), atol=1e-5, rtol=1e-5)
        assert torch.equal(keys[:, :, 8:], whole.keys[:, :, 8:])
        assert torch.equal(values[:, :, 8:], whole.values[:, :, 8:])
        assert layer.positions is None


def test_numbers_that_are_alike_and_golden_codes():
    numbers = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0]).view(1, 1, 8, 1)
    packed = Packed.of(numbers, bits=2, group=4)
    assert packed.codes.flatten().tolist() == [0b11100100, 0]
    assert torch.equal(packed.numbers(), numbers)
    half = Packed.of(numbers.half(), bits=4, group=4)
    assert half.codes.flatten().tolist() == [0x50, 0xFA, 0, 0]
    assert half.numbers().dtype == torch.half


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bytes_are_those_of_codes_scales_and_the_window(bits):
    ids = torch.randint(3, 259, (1, 70), generator=torch.Generator().manual_seed(4))
    _, cache = caches(KvInt(bits=bits, group=32, residual=5), ids)  # two groups, six tokens left
    heads, width = 2, 8
    codes = heads * 64 * width * bits // 8
    scales = 2 * 4 * (heads * 2 * width + heads * 64)  # least number and step: of a channel's group, of a token
    last = heads * 6 * width * 4
    for layer in cache.layers:
        assert bytes_of(layer) == 2 * (codes + last) + scales


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_with_a_window_as_long_as_the_text_it_is_dense_by_every_bit(family):
    decoder, ids = tiny_decoder(family), torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    options |= {"attention_mask": mask, "return_dict_in_generate": True, "eos_token_id": None}
    dense = decoder.module.generate(ids * mask, **options)
    with KvInt(residual=18, group=4).attach(decoder, Prepared()):
        written = decoder.module.generate(ids * mask, **options)
    assert torch.equal(torch.stack(written.logits), torch.stack(dense.logits))


@torch.no_grad()
@pytest.mark.parametrize("residual", [0, 3])
@pytest.mark.parametrize("family", ["qwen3", "opt", "gemma3_text", "gpt_neox"])
def test_a_row_is_rounded_in_a_batch_as_it_is_alone(family, residual):
    """Rows of three lengths, whose groups are full at other steps; the cache is repeated and chosen from besides."""
    method = KvInt(bits=2, group=4, residual=residual)
    decoder, ids = tiny_decoder(family), torch.randint(3, 259, (3, 11), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(11) >= torch.tensor([0, 3, 6])[:, None]
    options = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    with method.attach(decoder, Prepared()):
        batch = decoder.module.generate(ids * mask, attention_mask=mask.long(), **options)
        for row, start in enumerate((0, 3, 6)):
            alone = decoder.module.generate(ids[row : row + 1, start:], **options)
            together, single = torch.stack(batch.logits)[:, row], torch.stack(alone.logits)[:, 0]
            torch.testing.assert_close(together, single, atol=2e-3, rtol=2e-3)
            index = next(place for place, layer in enumerate(alone.past_key_values.layers) if not layer.is_sliding)
            ragged, plain = batch.past_key_values.layers[index], alone.past_key_values.layers[index]
            there = ragged.stored()[row, 0] >= 0
            for numbers, expected in zip(read(ragged), read(plain), strict=True):
                torch.testing.assert_close(numbers[row][:, there], expected[0], atol=1e-4, rtol=1e-4)
            assert (ragged.stored()[row, 0, there] - start == plain.stored()[0, 0]).all()


@torch.no_grad()
def test_steps_one_by_one_read_what_all_of_them_at_once_would(ids):
    """Attention over rounded keys and values, the reference made by hand: a dense cache that holds these numbers."""
    decoder = tiny_decoder("llama", layers=2)
    with KvInt(bits=2, group=4, residual=0).attach(decoder, Prepared()):
        cache = decoder.module(ids, use_cache=True).past_key_values
        logits = decoder.module(ids[:, :1], past_key_values=cache).logits
    dense = decoder.module(ids, use_cache=True).past_key_values
    for layer in dense.layers:
        keys = rounded(layer.keys.unflatten(2, (3, 4)), 2, 3).flatten(2, 3)
        values = rounded(layer.values.unflatten(-1, (2, 4)), 2, 4).flatten(3)
        layer.keys, layer.values = keys, values
    expected = decoder.module(ids[:, :1], past_key_values=dense).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_are_repeated_chosen_and_reordered_with_their_codes(ids):
    decoder = tiny_decoder("llama", layers=1)
    with KvInt(bits=4, group=4, residual=0).attach(decoder, Prepared()):
        cache = decoder.module(ids, use_cache=True).past_key_values
        layer, (before, _) = cache.layers[0], read(cache.layers[0])
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        cache.reorder_cache(torch.tensor([1, 0]))
        assert torch.equal(read(layer)[0], before)
        with pytest.raises(MethodError, match="the last tokens cannot be taken back from a cache that is rounded"):
            cache.crop(-1)
        cache.reset()
        assert cache.get_seq_length() == 0
        assert layer.packed is None


@torch.no_grad()
def test_sliding_layers_stay_as_they_are(ids):
    _, cache = caches(KvInt(group=4, residual=0), ids, family="gemma3_text")
    assert [isinstance(layer, RoundedLayer) for layer in cache.layers] == [False, True]


def test_what_cannot_be_rounded_is_refused():
    for given, says in (
        ("bits=3", "bits='3' is not valid: Input should be 2, 4 or 8"),
        ("bits=two", "bits='two' is not valid: Input should be 2, 4 or 8"),
        ("group=6", "group='6' is not valid: .*multiple of 4"),
        ("residual=-1", "residual='-1' is not valid"),
    ):
        with pytest.raises(MethodError, match=f"^kv-int: {says}"):
            parse(f"kv-int:{given}")
    assert parse("kv-int:bits=2").parts[0] == KvInt(bits=2)
    with pytest.raises(UnsupportedModelError, match="every layer has a sliding window, whose cache does not grow"):
        KvInt().check_model(tiny_decoder("mistral", layers=1))
    with pytest.raises(MethodError, match="kv-int gives none back as it was"):
        parse("kv-int+ngram").check_order()
