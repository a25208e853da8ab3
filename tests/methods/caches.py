"""What a method's cache holds of a prompt, beside the dense model's, and what it multiplied."""

import torch

from harness.contract.decoder import Row
from harness.contract.prepared import Prepared
from harness.measure.audit import count_flops
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
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


@torch.no_grad()
def flops(method, ids, family="llama", layers=2):
    """FLOPs of a prompt of one row and of a step after it: by the trace, and by PyTorch's counter."""
    decoder, length = tiny_decoder(family, layers=layers), ids.shape[1]

    def run():
        cache = decoder.module(ids, use_cache=True).past_key_values
        decoder.module(ids[:, :1], past_key_values=cache, use_cache=True)
        return tracer.collect()[0]

    row = Row("text", 0, (0,), length, length)
    with method.attach(decoder, Prepared()), Tracer(decoder) as tracer, decoder.serving([row], "generate"):
        segments, seen = count_flops(run)
    return executed_flops(ModelShape.of(decoder), segments).total, seen
