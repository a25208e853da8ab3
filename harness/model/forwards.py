"""A module's forward and its attributes, replaced for a while: what engines share that stand in for parts of a model.

A layer keeps its class, weights and hooks; only the instance's attribute ``forward`` is set, and deleted again.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from torch import nn

from harness.core.errors import MethodError

CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")


def put(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute that exists, such as a module's part; ``undo`` restores the old value when it closes."""
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def replace_forward(undo: ExitStack, module: nn.Module, function: Callable[..., Any], name: str = "forward") -> None:
    """Replace a method of one module until ``undo`` closes.

    Raises:
        MethodError: the module's method is replaced already.
    """
    if name in vars(module):
        raise MethodError("another method already directs the layers of this model; the two cannot be stacked")
    setattr(module, name, function)
    undo.callback(delattr, module, name)


def by_name(inner: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward that calls ``function`` with the hidden states first and all other arguments by name.

    Args:
        inner: the forward that is replaced, whose signature names the arguments that a model passes by position.
    """
    names = list(inspect.signature(inner).parameters)[1:]

    @wraps(inner)
    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(hidden_states, **dict(zip(names, args, strict=False)), **kwargs)

    return forward


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name of a layer's argument for the cache, which differs between architectures."""
    parameters = inspect.signature(forward).parameters
    return next(name for name in CACHE_NAMES if name in parameters)


def arguments_of(module: nn.Module) -> list[str]:
    """The names of what a module's forward takes."""
    return list(inspect.signature(module.forward).parameters)


def returns_tuple(layer: nn.Module) -> bool:
    """Whether a layer gives its hidden states as the first of a tuple, by the code of its forward.

    It has to be known before the layer runs: a layer that no row runs gives its input back in the same form.
    """
    code = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(type(layer).forward))))
    returned = [node.value for node in ast.walk(code) if isinstance(node, ast.Return)]
    return any(isinstance(value, ast.Tuple) for value in returned)


def states_of(output: Any) -> torch.Tensor:
    """The hidden states in a layer's output."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def uploaded(values: Sequence[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """These values on the device, without waiting for what the device is doing.

    CUDA stages memory that is not pinned at once, so the copy may be under way when the tensor on the host is gone.
    """
    return torch.as_tensor(values).to(device, non_blocking=device.type == "cuda")


def rows_of(arguments: dict[str, Any], index: torch.Tensor, rows: int) -> dict[str, Any]:
    """A layer's arguments for some rows of the batch.

    Args:
        arguments: masks, positions and rotations, also in tuples: [rows, ...]; a tensor with another first dimension
            is the same for all rows, and so is ``cache_position`` [tokens], whose length may equal the rows'. ALiBi's
            is [rows * heads, ...].
        index: the rows to take, [some].
        rows: the number of rows in the batch.
    """

    def part(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(part, value))
        if isinstance(value, dict):
            return {name: part(entry) for name, entry in value.items()}
        per_row = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == rows
        return value[index] if per_row else value

    def named(name: str, value: Any) -> Any:
        if name == "alibi" and value is not None:
            return value.unflatten(0, (rows, -1))[index].flatten(0, 1)  # [some * heads, ...]
        return value if name == "cache_position" else part(value)

    return {name: named(name, value) for name, value in arguments.items()}
