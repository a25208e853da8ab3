"""Scalars on the residual branches: h + a Attention(h) + m MLP(h), merged into the weights that end each branch.

Merged, they cost nothing at run time. At 1 a weight keeps its bits.
"""

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import nn
from torch.func import functional_call

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError
from harness.model.weights.replaced import dense_names

Kind = Literal["attention", "mlp"]

Branch = tuple[Kind, int]
"""A residual branch, by the dense index of its layer."""


def branches(model: Decoder) -> list[Branch]:
    """The branches that are in the model now."""
    present = set(model.module.modules())
    kinds: tuple[Kind, ...] = ("attention", "mlp")
    live = [(kind, block) for block in model.live for kind in kinds]
    return [(kind, block.index) for kind, block in live if getattr(block, kind).modules[-1] in present]


def scaled(model: Decoder, scales: Mapping[Branch, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's parameters that change when branches are scaled, by their names in the dense model.

    Args:
        scales: by branch, a scalar in float32; gradients flow back to it.

    Raises:
        UnsupportedModelError: a branch does not end in a linear layer or a norm that could be scaled.
    """
    names = dense_names(model)
    values = {}
    for (kind, layer), scale in scales.items():
        end = ending(model, model.anatomy.blocks[layer], kind)
        for attribute, parameter in end.named_parameters(recurse=False):
            value = parameter.detach().float()
            offset = _offset(end) if attribute == "weight" else 0
            # (value + offset) scale - offset, which at 1 is the value itself
            values[f"{names[end]}.{attribute}"] = value * scale + offset * (scale - 1)
    return values


def ending(model: Decoder, block: Block, kind: Kind) -> nn.Module:
    """The module that a branch ends in: its norm where it has one after it, or its last linear layer.

    Raises:
        UnsupportedModelError: it is neither, as in a mixture of experts.
    """
    branch = getattr(block, kind)
    role = block.roles.get("output" if kind == "attention" else "down")
    end = branch.post_norm if branch.post_norm is not None or role is None else role.module
    if end is None or getattr(end, "weight", None) is None:
        raise UnsupportedModelError(
            f"{model.kind}: the {kind} of layer "
            f"{block.index} ends in no linear layer or norm of its own, so that it cannot be scaled"
        )
    return end


@torch.no_grad()
def _offset(module: nn.Module) -> int:
    """What a module adds to its weight: 1 in norms that store their gain less 1, as Gemma's do."""
    if cast("torch.Tensor", module.weight).ndim > 1:  # a linear layer's
        return 0
    nothing = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    some = torch.linspace(1, 2, len(nothing["weight"])).to(nothing["weight"])
    return int(functional_call(module, nothing, some).any())
