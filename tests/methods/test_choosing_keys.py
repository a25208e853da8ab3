"""Methods that choose which keys tokens meet by a function in the place of attention."""

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.core.errors import MethodError, UnsupportedModelError
from harness.methods.sparse.window_attention import WindowAttention
from harness.model.cache.pressed_cache import PressedCache
from harness.testing.tiny import tiny_decoder
from tests.methods.caches import caches


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
