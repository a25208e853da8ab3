"""Every method on the card: the checks of methods, and every kernel that a method offers, against the dense product."""

import dataclasses
from typing import Any, get_args, get_type_hints

import pytest
import torch

from harness.contract.decoder import Decoder
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.study import Study
from harness.model.weights.computations import Computations
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


def settings(name: str) -> list[Any]:
    """A method at its examples, and at its defaults in every pattern of zeros that it has."""
    part = type(parse(name).parts[0])
    fields = {field.name: field for field in dataclasses.fields(part)}
    short = {key: value for key, value in (("samples", 2), ("length", 48)) if key in fields}
    patterns = get_args(get_type_hints(part).get("pattern"))
    wanted = [short | {"pattern": pattern} for pattern in patterns] or [short]
    return [part.from_args(arguments) for arguments in (*wanted, *part.examples)]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", names())
def test_every_kernel_is_the_dense_product(name: str, dtype: str, device: str) -> None:
    if not hasattr(parse(name).parts[0], "computations"):  # asked here, as it takes the import of the method
        pytest.skip(f"{name} computes no linear layer")
    decoder = tiny_decoder("llama", layers=2, device=device, **SHAPE)
    decoder.module.to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(3, 259, size, generator=generator).to(device) for size in SIZES]
    worst: dict[str, float] = {}
    reasons: dict[str, None] = {}
    for method in settings(name):
        ways = {
            site.place: method.computations(layer, str(decoder.device))
            for site, layer in method.declared_layers(decoder, ())
        }
        every = {kernel.name: kernel for way in ways.values() for kernel in way.kernels}
        reasons |= dict.fromkeys(str(kernel.why_not) for kernel in every.values() if kernel.why_not)
        untried = [kernel for kernel, each in every.items() if each.why_not is None and kernel not in worst]
        if untried:
            state = method.prepare(decoder, STUDY)
            expected = logits(decoder, method, state, ways, None, inputs)
            for kernel in untried:
                pairs = zip(logits(decoder, method, state, ways, kernel, inputs), expected, strict=True)
                worst[kernel] = max(float((got - wanted).abs().max() / wanted.abs().max()) for got, wanted in pairs)
    if not worst:
        pytest.skip("; ".join(reasons) or "it has no kernels")
    assert max(worst.values()) < CLOSE[dtype], worst


@torch.no_grad()
def logits(
    decoder: Decoder,
    method: Any,
    state: Prepared,
    ways: dict[str, Computations],
    kernel: str | None,
    inputs: list[torch.Tensor],
) -> list[torch.Tensor]:
    """By the kernel where a layer has it, and else by the dense product."""
    able = {place: {each.name for each in way.able} for place, way in ways.items()}
    taken = {place: kernel if kernel in able[place] else way.dense.name for place, way in ways.items()}
    with decoder.computed_by(taken), method.attach(decoder, state):
        return [decoder.module(ids).logits.float() for ids in inputs]
