"""Whether what a method left of a model is all in its weights and its configuration, as transformers reads them."""

import copy
from typing import Any, Final

import torch
from torch import nn

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.weights.linear import computed_by

Marks = dict[nn.Module, tuple[object, ...]]
"""How each module runs."""

_OF_LINEARS: Final = {"forward", "zeros"}
"""What the engines of linear layers leave on a module, and a checkpoint holds."""


def marks(model: Decoder) -> Marks:
    """How each module of a model runs now: its class, hooks and own attributes."""
    return {module: _mark(module) for module in model.module.modules()} | {
        model.anatomy.parent: (*_mark(model.anatomy.parent), model.config._attn_implementation)
    }


def _mark(module: nn.Module) -> tuple[object, ...]:
    attributes = vars(module).keys() - (_OF_LINEARS if computed_by(module) or "zeros" in vars(module) else set())
    return type(module), frozenset(attributes), len(module._forward_hooks), len(module._forward_pre_hooks)


def refuse_other_ways(before: Marks, model: Decoder, label: str) -> None:
    """Refuse a method that changes how a model runs, and not its weights alone.

    Raises:
        MethodError: it does.
    """
    now = marks(model)
    changed = next((module for module, mark in now.items() if before.get(module, mark) != mark), None)
    if changed is not None:
        raise MethodError(
            f"{label} changes how a {type(changed).__name__} runs, and a checkpoint holds weights and a configuration "
            "alone: what it does cannot be exported"
        )


def fitting_config(model: Decoder, shapes: dict[str, tuple[int, ...]], label: str) -> Any:
    """The configuration of the model as it stands.

    Args:
        shapes: of its parameters and persistent buffers, by name, tied ones once or twice.

    Raises:
        MethodError: transformers would build another model from any.
    """
    config = copy.deepcopy(model.module.config)
    text = config.get_text_config()
    widths = {size[0] for name, size in shapes.items() if name.endswith((".gate_proj.weight", ".up_proj.weight"))}
    if len(widths) == 1 and hasattr(text, "intermediate_size"):
        (text.intermediate_size,) = widths
    counted = [part.config for block in model.live for part in block.attention.modules if hasattr(part, "config")]
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim"):
        numbers = {getattr(each, name, None) for each in counted} - {None}
        if len(numbers) == 1 and hasattr(text, name):
            setattr(text, name, numbers.pop())
    with torch.device("meta"):
        built = type(model.module)(config)
    expected = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    differing = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if differing:
        name = differing[0]
        sizes = [_size(each.get(name)) for each in (shapes, expected)]
        raise MethodError(
            f"{label} leaves {name} {sizes[0]}, where a {type(built).__name__} has it {sizes[1]}: transformers' "
            "configuration cannot express that model, and it cannot be exported"
        )
    return config


def _size(shape: tuple[int, ...] | None) -> str:
    return "out" if shape is None else f"of the shape {list(shape)}"
