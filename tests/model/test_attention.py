"""The attention engine: the function's own layers, everything else as before, causality kept, everything restored."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.attention import attending, full_layers, observing, require_attendable, visible
from harness.model.cache.pressed import pressed
from harness.model.windows import windowed
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.benchmarks.architectures import decoder as architecture
from tests.benchmarks.architectures import dense
from tests.model.conftest import usual

LONG = 150  # longer than the shortest block of a window


def near(mask, q, k, window, sinks):
    """The mask of a window with sinks, over everything, bool [rows, 1, queries, keys]."""
    allowed = visible(mask, q.shape[2], k.shape[2], q.device).expand(len(q), -1, -1, -1)
    keys = torch.arange(k.shape[2])
    queries = torch.arange(k.shape[2] - q.shape[2], k.shape[2])[:, None]
    first = allowed[:, :, -1:].int().argmax(-1, keepdim=True)
    return allowed & ((queries - keys < window) | (keys < first + sinks))


def texts(rows, length, seed=1):
    return torch.randint(3, 259, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(ids, padding):
    """Ids and mask, with so much padding on the left of the first row."""
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def capped(decoder):
    return getattr(decoder.config, "attn_logit_softcapping", None) is not None


@torch.no_grad()
def read_in_parts(decoder, inputs, *ends):
    """Logits, where a text is read in parts that end there, with a cache."""
    cache, start, logits = None, 0, []
    for end in ends:
        output = decoder.module(
            input_ids=inputs["input_ids"][:, start:end],
            attention_mask=inputs["attention_mask"][:, :end],
            past_key_values=cache,
            use_cache=True,
        )
        cache, start = output.past_key_values, end
        logits.append(output.logits)
    return torch.cat(logits, 1)


@torch.no_grad()
def test_written_out_it_is_the_models_own(decoder):
    """On every layout, with padding, in a prompt, in parts of it and in decode steps; in all layers or in one."""
    if capped(decoder):
        with (
            pytest.raises(UnsupportedModelError, match="caps attention scores"),
            attending(decoder, dense, name="mine"),
        ):
            pass
        return
    inputs = padded(texts(2, 16), 3)
    expected = decoder.module(**inputs).logits[:, 3:]
    in_parts = read_in_parts(decoder, inputs, 9, 14, 15, 16)
    for layers in (None, [1]):
        with attending(decoder, dense, layers, name="mine"):
            torch.testing.assert_close(decoder.module(**inputs).logits[:, 3:], expected, atol=1e-3, rtol=1e-3)
            again = read_in_parts(decoder, inputs, 9, 14, 15, 16)
            torch.testing.assert_close(again[:, 3:], in_parts[:, 3:], atol=1e-3, rtol=1e-3)
    assert torch.equal(decoder.module(**inputs).logits[:, 3:], expected)


@torch.no_grad()
def test_where_it_returns_none_nothing_changes_by_a_bit(decoder):
    if capped(decoder):
        return
    inputs = padded(texts(2, 16), 3)
    expected = decoder.module(**inputs).logits
    with attending(decoder, lambda *_: None, name="mine"):
        assert torch.equal(decoder.module(**inputs).logits, expected)


@torch.no_grad()
def test_causality_needs_the_mask_function_too():
    """Under a name that the second registry lacks, transformers makes no mask: a token sees what comes after it."""
    decoder = tiny_decoder("llama", layers=2, attention="eager")  # sdpa would still hide what comes after, not padding
    ids = texts(1, 12)
    later = torch.cat([ids[:, :6], texts(1, 6, seed=2)], 1)
    masks = []

    def seen(layer, q, k, v, mask, scale):
        masks.append(mask)

    with attending(decoder, seen, name="mine"):
        decoder.module(**padded(ids, 2))
        [name] = {config._attn_implementation for config in (decoder.config, decoder.module.model.config)}
        first, second = (decoder.module(text).logits[:, :6] for text in (ids, later))
        assert torch.equal(first, second)
        assert name in AttentionInterface._global_mapping
        kept = AttentionMaskInterface._global_mapping.pop(name)
        try:
            first, second = (decoder.module(**padded(text, 1)).logits[:, 1:6] for text in (ids, later))
        finally:
            AttentionMaskInterface._global_mapping[name] = kept
    assert masks[0].dtype == torch.bool
    assert masks[0].shape == (1, 1, 12, 12)
    assert masks[-1] is None
    assert not torch.allclose(first, second, atol=1e-2)


@usual
def test_everything_is_restored(decoder):
    before = model_snapshot(decoder)
    registries = [dict(registry._global_mapping) for registry in (AttentionInterface, AttentionMaskInterface)]
    if not capped(decoder):
        with pytest.raises(ZeroDivisionError), attending(decoder, lambda *_: 1 / 0, name="mine"):
            decoder.module(texts(1, 4))
    assert not changes(before, model_snapshot(decoder))
    assert registries == [registry._global_mapping for registry in (AttentionInterface, AttentionMaskInterface)]


def test_what_is_charged_is_what_it_says():
    decoder = tiny_decoder("llama", layers=2)
    charges = []
    decoder.charged = charges.append
    with torch.no_grad(), attending(decoder, dense, [1], name="mine"):
        decoder.module(texts(3, 5))
    [charge] = charges
    assert (charge.kind, charge.layer, charge.tokens) == ("attention", 1, 15)
    assert charge.macs == 3 * 4 * 5 * 5 * (8 + 8)  # rows, heads, pairs, widths


def wrong(change):
    def function(layer, q, k, v, mask, scale):
        return change(*dense(layer, q, k, v, mask, scale))

    return function


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda output, pairs: output, "must return an output and the pairs that it multiplied, not Tensor"),
        (lambda output, pairs: (output.transpose(1, 2), pairs), r"here \[1, 4, 6, 8\], not \[1, 6, 4, 8\]"),
        (lambda output, pairs: (None, pairs), "not NoneType"),
        (lambda output, pairs: (output.double(), pairs), "must return torch.float32.* not torch.float64"),
        (lambda output, pairs: (output, -1), "-1 pairs .* a whole number from 1 to 144"),
        (lambda output, pairs: (output, pairs + 1), "145 pairs"),
        (lambda output, pairs: (output, 12.5), "12.5 pairs"),
        (lambda output, pairs: (output, True), "True pairs"),
        (lambda output, pairs: (output.to("meta"), pairs), "must return a dense tensor .* not a tensor on meta"),
        (lambda output, pairs: (output.to_sparse(), pairs), "not a sparse tensor"),
        (lambda output, pairs: (torch.nested.nested_tensor(list(output)), pairs), "not a nested tensor"),
    ],
)
def test_what_no_attention_returns_is_refused(change, says):
    decoder = tiny_decoder("llama", layers=1)
    refused = pytest.raises(MethodError, match=f"^mine: the attention of layer 0.*{says}")
    with attending(decoder, wrong(change), name="mine"), torch.no_grad(), refused:
        decoder.module(texts(1, 6))


@pytest.mark.parametrize(
    ("function", "layers", "says"),
    [
        (None, None, "an attention function is called for each layer, and None cannot be"),
        (dense, ["a"], r"layers are a list of the indices of dense layers, not \['a'\]"),
        (dense, [0.5], r".*not \[0.5\]"),
        (dense, 3, ".*not 3"),
        (dense, "01", ".*not '01'"),
        (dense, [True], ".*not"),
        (dense, [-1], "there is no layer -1"),
    ],
)
def test_what_it_cannot_be_told_is_refused(function, layers, says):
    decoder = tiny_decoder("llama", layers=1)
    with pytest.raises(MethodError, match=f"^mine: {says}"), attending(decoder, function, layers, name="mine"):
        pass


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 3])
def test_numbers_that_are_not_finite_are_refused_where_something_is_read(padding):
    decoder, last = tiny_decoder("llama", layers=2), [0.0]

    def attend(layer, q, k, v, mask, scale):
        output, pairs = dense(layer, q, k, v, mask, scale)
        if layer == 0:
            return output, pairs
        unread = ~visible(mask, q.shape[2], k.shape[2], q.device).any(-1, keepdim=True)
        output[:, :, -1] *= last[-1]
        return output.masked_fill(unread, torch.nan), pairs  # of padding, which reads nothing

    inputs = padded(texts(2, 8), padding)
    with attending(decoder, attend, name="mine"):
        decoder.module(**inputs)
        for number in (torch.nan, torch.inf):
            last.append(number)
            with pytest.raises(MethodError, match=r"^mine: the attention of layer 1 gives numbers that are not finite"):
                decoder.module(**inputs)


def test_what_it_cannot_be_on_is_refused():
    decoder = tiny_decoder("llama", layers=2)
    no_layer = pytest.raises(MethodError, match="there is no layer 2; the model's layers are 0 to 1")
    with no_layer, attending(decoder, dense, [2], name="mine"):
        pass
    with attending(decoder, dense, name="mine"), torch.no_grad():
        with pytest.raises(UnsupportedModelError), attending(decoder, dense, name="mine"):
            pass
        with pytest.raises(MethodError, match=r"^mine: a StaticCache holds places of later tokens"):
            decoder.module.generate(texts(1, 4), max_new_tokens=2, cache_implementation="static", pad_token_id=0)


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("name", ["falcon", "falcon, sequential", "gptj", "codegen", "gpt_neo", "xglm"])
def test_attention_that_no_registry_knows_is_refused(name, attention):
    decoder = architecture(name, attention=attention)
    for engine in (attending(decoder, dense, name="mine"), observing(decoder, lambda *_: None)):
        with pytest.raises(UnsupportedModelError, match="Attention multiplies queries and keys by itself"), engine:
            pass
    with (
        pytest.raises(UnsupportedModelError),
        pressed(decoder, lambda entries: entries.ends(1, 1), name="mine", reads_queries=True),
    ):
        pass


@pytest.mark.parametrize("name", ["gpt_oss", "flint", "granite_swa", "granitemoe_swa", "mimo_v2_flash"])
def test_learned_sinks_are_refused_where_they_are(name):
    decoder = architecture(name)
    sinks = [getattr(block.attention.modules[0], "sinks", None) is not None for block in decoder.anatomy.blocks]
    with pytest.raises(UnsupportedModelError, match="learned sinks"):
        require_attendable(decoder)
    without = [layer for layer, has in enumerate(sinks) if not has]
    require_attendable(decoder, without)
    with torch.no_grad(), attending(decoder, dense, without, name="mine"):
        decoder.module(texts(1, 12))


@torch.no_grad()
@pytest.mark.parametrize("option", ["s_aux", "softcap", "position_bias"])
def test_an_option_that_the_function_is_not_told_is_refused(option):
    decoder = tiny_decoder("llama", layers=1)
    with attending(decoder, dense, name="mine"):
        decoder.module(texts(1, 6), **{option: None})
        with pytest.raises(UnsupportedModelError, match=f"its attention is given {option}, of which mine is not told"):
            decoder.module(texts(1, 6), **{option: torch.ones(4)})


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["diffllama", "minimax_m3_vl_text", "deepseek_v3", "gpt_bigcode", "aria_text", "phimoe"]
)
def test_every_layer_of_other_architectures_is_seen(name):
    decoder, layers, ids = architecture(name), set(), texts(1, 6)
    alone = decoder.module(ids).logits
    with observing(decoder, lambda layer, queries, keys: layers.add(layer)):
        assert torch.equal(decoder.module(ids).logits, alone)
    assert layers == {0, 1, 2, 3}


@pytest.mark.parametrize(("window", "sinks"), [(5, 2), (5, 0), (80, 3), (1, 1)])
@pytest.mark.parametrize("queries", [LONG, 7, 1])
@pytest.mark.parametrize("padding", [None, 40])
def test_a_window_is_the_masked_product(window, sinks, queries, padding):
    """Rows of one length and of two, a whole text, the end of one, and one token; in no more pairs than it says."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, length, 8, generator=generator) for heads, length in ((4, queries), (2, LONG), (2, LONG))
    )
    mask = None
    if padding is not None:
        mask = visible(None, queries, LONG, q.device).repeat(2, 1, 1, 1)
        mask[0, :, :, :padding] = False
    output, pairs = windowed(q, k, v, mask, 0.3, window=window, sinks=sinks)
    expected, _ = dense(0, q, k, v, near(mask, q, k, window, sinks), 0.3)
    real = slice(None) if padding is None or queries < LONG else slice(padding, None)
    torch.testing.assert_close(output[:, :, real], expected[:, :, real])
    assert pairs < 2 * 4 * queries * LONG
    if queries == 1:
        assert pairs == 2 * 4 * (window + sinks)


def test_a_window_that_hides_nothing_is_left_to_the_model():
    q, k, v = (torch.ones(1, heads, 7, 8) for heads in (4, 2, 2))
    assert windowed(q, k, v, None, 1.0, window=5, sinks=2) is None
    assert windowed(q, k, v, None, 1.0, window=5, sinks=1) is not None


def test_layers_that_slide_are_known():
    assert full_layers(tiny_decoder("llama", layers=3)) == (0, 1, 2)
    assert full_layers(tiny_decoder("gemma3_text", layers=4)) == (1, 3)
    assert full_layers(tiny_decoder("mistral", layers=2)) == ()
