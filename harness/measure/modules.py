"""What computes a model's layers now, as a digest: equal digests cost the same, whatever method put them there."""

import hashlib
import json
import platform
from typing import TYPE_CHECKING, Any, Final

from harness.contract.linears import LINEAR
from harness.core import environment
from harness.measure.branches import placed
from harness.measure.clock import clock_for
from harness.measure.shape import ModelShape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from harness.contract.decoder import Decoder

VERSION: Final = 5
"""Of the procedure: profiles made by another are measured again."""


def profile_key(model: "Decoder") -> str:
    """What a cost profile holds for: the modules in place, data type, attention implementation, host, versions.

    Layers that a method took out count as they were: what is left costs what it cost before.
    """
    here = ModelShape.of(model)
    shape = here.model_dump(mode="json", exclude={"parameters", "active_parameters", "bytes"})
    kind = [model.module.config.model_type, str(model.module.dtype), model.module.config._attn_implementation]
    plain = json.dumps([VERSION, _modules(model, here), shape, kind, host(model)], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def host(model: "Decoder") -> dict[str, str]:
    """The machine, its instruction sets, its software, and the clock that is read on it."""
    here = environment.observe(str(model.device))
    versions = {name: here.versions[name] for name in ("torch", "transformers")}
    machine = {"device": here.device_name, "instructions": str(here.instructions)}
    counts = {"cpus": str(here.cpus), "threads": str(here.threads)}
    return machine | counts | versions | {"machine": platform.machine(), "clock": clock_for(model.device)}


def _modules(model: "Decoder", shape: ModelShape) -> list[Any]:
    """Each branch of each dense layer, and the head: its modules' classes, its linear layers' kernels and tensors."""
    branches = [
        branch.there if any(_has_weights(module) for module in branch.there) else branch.dense
        for branch in placed(model, shape)
    ]
    return [_described(modules) for modules in [*branches, (model.anatomy.head,)]]


def _has_weights(module: "nn.Module") -> bool:
    return next(module.parameters(), None) is not None


def _described(modules: "Iterable[nn.Module]") -> list[Any]:
    parts = [part for module in modules for part in module.modules()]
    return [_linear(part) if isinstance(part, LINEAR) else _code(part) for part in parts]


def _code(module: "nn.Module") -> list[str]:
    """What runs in a module: its class, and what is set on it in the class's place."""
    replaced = [value.__qualname__ for value in vars(module).values() if hasattr(value, "__qualname__")]
    return [type(module).__qualname__, *replaced]


def _linear(module: "nn.Module") -> list[Any]:
    """What computes a linear layer, and the shapes and types of all its tensors."""
    computing = getattr(module, "computed_by", module)
    tensors = [*computing.named_parameters(), *computing.named_buffers()]
    shapes = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors]
    kernel, macs = getattr(computing, "kernel", ""), getattr(computing, "macs_per_token", 0)
    return [type(computing).__qualname__, kernel, macs, shapes]
