"""Everything of a model, and of the process, that a method must leave unchanged."""

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

if TYPE_CHECKING:
    from torch import nn

    from harness.contract.decoder import Decoder

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
)
_ATTENTION = (AttentionInterface, AttentionMaskInterface)
_PLAIN = (int, float, str, bool, type(None), tuple)


def model_snapshot(decoder: "Decoder") -> dict[str, Any]:
    """The state of a model, each part by its name; tensors are copied, modules are compared by identity."""
    module = decoder.module
    snapshot: dict[str, Any] = {
        "the configuration": module.config.to_dict(),
        "the generation configuration": module.generation_config.to_dict(),
        "the decoder's context": decoder.context,
        "the decoder's parts": (module, decoder.anatomy, decoder.tokenizer, decoder.fingerprint),
        "the names of the modules": [name for name, _ in module.named_modules()],
    }
    for name, part in module.named_modules():
        snapshot |= {f"{what} of {name or 'the model'}": state for what, state in _part(part)}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        snapshot[f"the tensor {name}"] = tensor
        snapshot[f"the object and the storage of {name}"] = id(tensor), tensor.data_ptr()
        snapshot[f"the values of {name}"] = tensor.detach().clone()
        snapshot[f"requires_grad of {name}"] = tensor.requires_grad
        snapshot[f"the gradient of {name}"] = tensor.grad
    return snapshot


def _part(part: "nn.Module") -> Iterator[tuple[str, Any]]:
    yield "the module", part
    yield "the type", type(part)
    yield "the forward", vars(part).get("forward")
    yield "the hooks", [list(vars(part).get(kind, {}).values()) for kind in _HOOKS]
    if hasattr(part, "config"):
        yield "the attention implementation", getattr(part.config, "_attn_implementation", None)
    yield "the attributes", {name: value for name, value in vars(part).items() if type(value) in _PLAIN}


def global_snapshot() -> dict[str, Any]:
    """The state of the process that other code depends on."""
    return {
        "torch's random state": torch.get_rng_state(),
        "NumPy's random state": np.random.get_state(),
        "Python's random state": random.getstate(),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "whether algorithms are deterministic": torch.are_deterministic_algorithms_enabled(),
        "hooks on every module": [
            list(hooks.values())
            for hooks in (
                torch.nn.modules.module._global_forward_hooks,
                torch.nn.modules.module._global_forward_pre_hooks,
            )
        ],
        "transformers' attention functions": [dict(kind._global_mapping) for kind in _ATTENTION],
        "the environment": dict(os.environ),
        "sys.path": list(sys.path),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    changed = [name for name in before if name not in after or not _equal(before[name], after[name])]
    return changed + [f"{name}, which is new," for name in after if name not in before]


def in_words(changed: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(changed) - most} more" if len(changed) > most else ""
    return ", ".join(changed[:most]) + more


@contextmanager
def kept_random_state(seed: int) -> Iterator[None]:
    """Seed every global generator for the length of a ``with`` block."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    setters: tuple[Callable[[Any], None], ...] = (torch.set_rng_state, np.random.set_state, random.setstate)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        for setter, state in zip(setters, states, strict=True):
            setter(state)


def _equal(before: Any, after: Any) -> bool:
    if before is after:
        return True
    if isinstance(before, torch.Tensor):
        return isinstance(after, torch.Tensor) and before.dtype == after.dtype and _same_values(before, after)
    if isinstance(before, np.ndarray):
        return bool(np.array_equal(before, after))
    if isinstance(before, tuple | list):
        return type(before) is type(after) and len(before) == len(after) and all(map(_equal, before, after))
    if isinstance(before, torch.nn.Module):  # modules are compared by identity
        return False
    return bool(before == after)


def _same_values(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.shape == after.shape and torch.allclose(before, after, rtol=0, atol=0, equal_nan=True)
