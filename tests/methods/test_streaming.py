"""Streaming: the first few entries and the last ones, whatever was written since."""

import pytest
import torch

from harness.core.errors import MethodError
from harness.methods.cache.streaming import Streaming
from tests.methods.caches import caches


def test_both_ends_stay(ids):
    _, cache = caches(Streaming(sinks=2, window=3), ids, steps=4)
    for layer in cache.layers:
        assert (layer.positions == torch.tensor([0, 1, 13, 14, 15])).all()


def test_what_is_no_longer_than_both_is_dense(ids):
    dense, cache = caches(Streaming(sinks=4, window=8), ids)
    for whole, layer in zip(dense.layers, cache.layers, strict=True):
        assert layer.positions is None
        assert torch.equal(layer.keys, whole.keys)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"window": 3}, "window=3 is smaller than sinks=4; give window=4 or more, or fewer sinks"),
        ({"sinks": 1, "window": 0}, "window=0 is not valid: .*greater than or equal to 1"),
        ({"sinks": -1}, "sinks=-1 is not valid"),
    ],
)
def test_what_cannot_be_kept_is_refused(given, says):
    with pytest.raises(MethodError, match=f"^streaming: {says}"):
        Streaming(**given)
