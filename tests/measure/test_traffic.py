"""Bytes: known totals, sharing by a batch, and caches as transformers keeps them."""

import pytest
import torch
from transformers import DynamicCache

from harness.measure.shape import LayerShape, Linears, ModelShape
from harness.measure.trace import Tracer
from harness.measure.traffic import kv_cache_bytes, traffic
from harness.testing.tiny import tiny_decoder

HIDDEN, INNER, VOCABULARY, LAYERS = 4096, 14336, 128256, 32


@pytest.fixture(scope="module")
def llama_3_8b():
    """Its shape in bfloat16, by hand."""

    def linears(macs):
        return Linears(macs=macs, bytes=2 * macs)

    layer = LayerShape(
        attention=linears(2 * HIDDEN * HIDDEN + 2 * HIDDEN * 1024),
        mlp=linears(3 * HIDDEN * INNER),
        pair_macs=2 * HIDDEN,
        cache_width=2048,
        window=None,
    )
    return ModelShape(
        layers=(layer,) * LAYERS,
        head=linears(HIDDEN * VOCABULARY),
        other=linears(0),
        embedding_bytes=2 * HIDDEN,
        kv_element_bytes=2,
        parameters=8_030_261_248,
        bytes=2 * 8_030_261_248,
    )


def test_known_bytes_of_llama_3_8b(llama_3_8b, dense_segment):
    prefill = traffic(llama_3_8b, [dense_segment(LAYERS, 512)])
    decode = traffic(llama_3_8b, [dense_segment(LAYERS, 1, phase="decode", context=1024)])
    assert prefill.weights + prefill.kv == pytest.approx(1.5076e10, rel=1e-4)
    assert decode.weights + decode.kv == pytest.approx(1.5144e10, rel=1e-4)
    assert prefill.embedding == 512 * 2 * HIDDEN


def test_bytes_are_those_that_so_many_tokens_read(llama_3_8b, dense_segment):
    """Of layers with packed weights for few tokens, and floats of four times the bytes from 16."""
    layer, head = llama_3_8b.layers[0], llama_3_8b.head
    quarter = {
        name: part.model_copy(update={"bytes": part.bytes // 4, "more": ((16, part.bytes - part.bytes // 4),)})
        for name, part in (("attention", layer.attention), ("mlp", layer.mlp))
    }
    shape = llama_3_8b.model_copy(update={"layers": (layer.model_copy(update=quarter),) * LAYERS})
    for tokens, rows, part in ((1, 1, 4), (15, 1, 4), (16, 1, 1), (8, 2, 1), (1, 16, 1), (1, 15, 4)):
        segment = dense_segment(LAYERS, tokens, rows=rows)
        expected = (traffic(llama_3_8b, [segment]).weights - head.bytes) / part + head.bytes
        assert traffic(shape, [segment]).weights == pytest.approx(expected)
    assert shape.layers[0].mlp.least == layer.mlp.bytes // 4
    assert ModelShape.model_validate_json(shape.model_dump_json()) == shape


def test_the_rows_of_a_batch_read_the_weights_once(batch):
    model = tiny_decoder("opt", word_embed_proj_dim=16)
    shape = ModelShape.of(model)
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("score", 8, 8, 8)):
        model.module(torch.full((3, 8), 5))
        rows = tracer.collect()
    layers = sum(layer.attention.bytes + layer.mlp.bytes for layer in shape.layers)
    total = sum(traffic(shape, row).weights for row in rows)
    assert total == pytest.approx(layers + shape.head.bytes + shape.other.bytes)


def test_merged_decode_steps_move_what_single_steps_move(llama_3_8b, dense_segment):
    steps = [dense_segment(LAYERS, 1, phase="decode", context=10 + step) for step in range(6)]
    merged = [dense_segment(LAYERS, 1, phase="decode", context=10, forwards=6)]
    assert traffic(llama_3_8b, merged) == traffic(llama_3_8b, steps)


def test_a_skipped_layer_moves_nothing(llama_3_8b, dense_segment):
    none = (0,) * LAYERS
    unread = (0.0,) * LAYERS
    idle = dense_segment(LAYERS, 1, attention=none, mlp=none, attention_reads=unread, mlp_reads=unread, context=9)
    moved = traffic(llama_3_8b, [idle])
    assert (moved.weights, moved.kv) == (llama_3_8b.head.bytes, 0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2"])
@pytest.mark.parametrize(("prompt", "count"), [(3, 2), (4, 6), (9, 5)])
def test_the_cache_holds_what_is_said(family, prompt, count, batch):
    model = tiny_decoder(family)
    cache = DynamicCache(config=model.module.config)
    ids = torch.full((1, prompt), 5)
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("generate", prompt)):
        model.module(ids, past_key_values=cache)
        for _ in range(count):
            model.module(ids[:, :1], past_key_values=cache)
        (row,) = tracer.collect()
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(ModelShape.of(model), row) == held


def test_what_a_method_takes_out_of_the_cache_is_not_in_its_largest_size(batch):
    """Six positions are kept after each forward: the prompt's forward is the largest."""
    model = tiny_decoder("llama")
    cache, sizes = DynamicCache(config=model.module.config), []
    with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("generate", 9)):
        for length in (9, 1, 1, 1):
            model.module(torch.full((1, length), 5), past_key_values=cache)
            sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[..., -6:, :], layer.values[..., -6:, :]
        (row,) = tracer.collect()
    assert kv_cache_bytes(ModelShape.of(model), row) == max(sizes)


def test_the_longest_sequence_sets_the_cache(llama_3_8b, dense_segment):
    short = dense_segment(LAYERS, 10, phase="score")
    long = dense_segment(LAYERS, 30, phase="score")
    assert kv_cache_bytes(llama_3_8b, [short, long, short]) == 30 * 2 * 1024 * 2 * LAYERS
