"""What a method's cache holds of a prompt, beside the dense model's."""

import torch

from harness.contract.prepared import Prepared
from harness.testing.tiny import tiny_decoder


@torch.no_grad()
def caches(method, ids, steps=0, family="llama", layers=2, **options):
    """The dense cache of a prompt, and the method's after the prompt and so many steps."""
    decoder = tiny_decoder(family, layers=layers, **options)
    dense = decoder.module(ids, use_cache=True).past_key_values
    with method.attach(decoder, Prepared()):
        cache = decoder.module(ids, use_cache=True).past_key_values
        for step in range(steps):
            decoder.module(ids[:, step : step + 1], past_key_values=cache)
    return dense, cache
