"""Methods that choose which keys tokens meet: what each of them chooses, on every layout as dense where it is all."""

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.core.errors import MethodError, UnsupportedModelError
from harness.methods.cache.knorm import Knorm
from harness.methods.cache.streaming import Streaming
from harness.methods.sparse.window_attention import WindowAttention
from harness.model.cache.pressed_cache import PressedCache
from harness.testing.tiny import tiny_decoder


@torch.no_grad()
def caches(method, ids, steps=0):
    """The dense cache of a prompt, and the method's after the prompt and so many steps."""
    decoder = tiny_decoder("llama", layers=2)
    dense = decoder.module(ids, use_cache=True).past_key_values
    with method.attach(decoder, Prepared()):
        cache = decoder.module(ids, use_cache=True).past_key_values
        for step in range(steps):
            decoder.module(ids[:, step : step + 1], past_key_values=cache)
    return dense, cache


def test_knorm_keeps_the_keys_of_least_norm(ids):
    dense, cache = caches(Knorm(keep=0.25), ids)
    for whole, layer in zip(dense.layers, cache.layers, strict=True):
        norms = (whole.keys**2).sum(-1)  # [rows, kv heads, entries]
        kept = norms.gather(-1, layer.positions.long())
        assert kept.shape == (2, 2, 3)
        gone = torch.ones_like(norms).scatter(-1, layer.positions.long(), 0.0) > 0
        assert kept.amax(-1).lt(torch.where(gone, norms, float("inf")).amin(-1)).all()
        keys = whole.keys.gather(2, layer.positions.long()[..., None].expand(-1, -1, -1, 8))
        assert torch.equal(layer.keys, keys)


def test_what_knorm_keeps_of_little_is_one_entry(ids):
    _, cache = caches(Knorm(keep=0.01), ids)
    assert {layer.keys.shape[2] for layer in cache.layers} == {1}


def test_streaming_keeps_both_ends(ids):
    _, cache = caches(Streaming(sinks=2, window=3), ids, steps=4)
    for layer in cache.layers:
        assert (layer.positions == torch.tensor([0, 1, 13, 14, 15])).all()


@torch.no_grad()
def test_window_attention_chooses_layers_that_read_all_keys():
    method = WindowAttention(window=2, sinks=1)
    decoder, ids = tiny_decoder("gemma3_text"), torch.arange(3, 15)[None]
    charges = []
    decoder.charged = charges.append
    with method.attach(decoder, Prepared()):
        decoder.module(ids)
    assert [charge.layer for charge in charges] == [1, 3]
    with pytest.raises(MethodError, match="layer 2 is none that reads all keys; these do: 1, 3"):
        WindowAttention(layers=(2,)).check_model(decoder)
    with pytest.raises(MethodError, match="every layer of this model has a sliding window already"):
        method.check_model(tiny_decoder("mistral"))
    with pytest.raises(UnsupportedModelError, match="caps attention scores"):
        method.check_model(tiny_decoder("gemma2"))


@torch.no_grad()
def test_the_cache_of_window_attention_is_the_models_own(ids):
    _, cache = caches(WindowAttention(window=2, sinks=1), ids)
    assert not isinstance(cache, PressedCache)
    assert {layer.keys.shape[2] for layer in cache.layers} == {12}
