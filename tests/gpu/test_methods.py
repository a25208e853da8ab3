"""Every method on the card: the checks of methods, and every kernel that a method offers, against the dense product."""

import pytest
import torch

from harness.contract.stack import parse
from harness.contract.study import Study
from harness.model.weights.computations import HasKernels
from harness.testing.checks import checks_for
from harness.testing.tiny import tiny_decoder
from tests.gpu.conftest import names
from tests.testing.failing import failing

CLASSIFIER = "calm:confidence=classifier,threshold=0,decay=0,every=1,samples=20,length=24"
STUDY = Study(("The lamp was lit at dusk, and the keeper wrote down every ship that passed. " * 12,), "the suite")
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
SIZES = ((1, 1), (1, 7), (3, 40))
CLOSE = {"float32": 1e-2, "bfloat16": 5e-2}
"""The most that logits may differ, in parts of the largest: values that are rounded may fall to the other side."""


@pytest.mark.parametrize("method", [*names(), CLASSIFIER])
def test_a_method_passes_the_checks(method: str, device: str) -> None:
    """But for the time that it saves, as every launch takes the same on models this small."""
    wanted = {check.name for check in checks_for(method)} - {"saves-measurably"}
    assert failing(method, ["llama"], wanted, device) == {}


WITH_KERNELS = [name for name in names() if isinstance(parse(name).parts[0], HasKernels)]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_every_kernel_is_the_dense_product(name: str, dtype: str, device: str) -> None:
    decoder = tiny_decoder("llama", layers=2, device=device, **SHAPE)
    decoder.module.to(getattr(torch, dtype))
    part = type(parse(name).parts[0])
    (method,) = (part.from_args(part.examples[-1]),)
    ways = {
        site.place: method.computations(layer, str(decoder.device))
        for site, layer in method.declared_layers(decoder, ())
    }
    kernels = list(dict.fromkeys(kernel.name for way in ways.values() for kernel in way.able))
    if not kernels:
        reasons = dict.fromkeys(kernel.why_not for way in ways.values() for kernel in way.kernels)
        pytest.skip("; ".join(map(str, reasons)))
    state = method.prepare(decoder, STUDY)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(3, 259, size, generator=generator).to(device) for size in SIZES]

    def logits(kernel: str | None) -> list[torch.Tensor]:
        """By the kernel where a layer has it, and else by the dense product."""
        taken = {
            place: kernel if kernel in {able.name for able in way.able} else way.dense.name
            for place, way in ways.items()
        }
        with decoder.computed_by(taken), method.attach(decoder, state), torch.no_grad():
            return [decoder.module(ids).logits.float() for ids in inputs]

    expected = logits(None)
    worst = {}
    for kernel in kernels:
        pairs = zip(logits(kernel), expected, strict=True)
        worst[kernel] = max(float((got - wanted).abs().max() / wanted.abs().max()) for got, wanted in pairs)
    assert max(worst.values()) < CLOSE[dtype], worst
