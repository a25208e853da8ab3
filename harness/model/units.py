"""The units of a layer that can be taken out by themselves: attention heads, key-value groups, MLP neurons.

Units are counted by the modules that are in place, so that a layer of which some are gone has the rest. A layer whose
units hang together otherwise than by their linear layers is refused by name: taking one out would change the others.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract.anatomy import Block, Branch, Role, Slice
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.roles import head_width, input_features, output_features, roles_of


@dataclass(frozen=True)
class Heads:
    """Attention heads of a layer: how many query heads, in how many key-value groups, and the features of each."""

    count: int
    groups: int
    width: int

    @property
    def per_group(self) -> int:
        """Query heads that read the same keys and values."""
        return self.count // self.groups


def block_at(model: Decoder, layer: int) -> Block:
    """The layer of this index in the dense model.

    Raises:
        MethodError: there is none, or it is out of the model.
    """
    count = len(model.anatomy.blocks)
    if not 0 <= layer < count:
        raise MethodError(f"there is no layer {layer}; the model's layers are 0 to {count - 1}")
    block = model.anatomy.blocks[layer]
    if block not in model.live:
        raise MethodError(f"layer {layer} is out of the model")
    return block


def live_roles(model: Decoder, block: Block) -> dict[Role, Slice]:
    """The roles of a layer's linear layers at the widths that they have now; ``Block.roles`` has those of dense."""
    return roles_of(block.module, block.attention.modules[0], block.mlp.modules, model.config)


def heads_of(model: Decoder, layer: int) -> Heads:
    """The attention heads that a layer has now, by the widths of its projections.

    Raises:
        MethodError: the layer, or its attention, is not in the model.
        UnsupportedModelError: single heads of it cannot be taken out.
    """
    block = block_at(model, layer)
    _require_in_place(block, block.attention, "attention")
    attention, roles = block.attention.modules[0], live_roles(model, block)
    if absent := [role for role in ("query", "key", "value", "output") if role not in roles]:
        raise unsupported(model, block, "attention", f"its {absent[0]} features are in no linear layer of their own")
    width = head_width(attention, model.config)
    queries, keys, values = (len(positions(roles[role])) for role in ("query", "key", "value"))
    if queries != input_features(roles["output"].module) or keys != values or queries % width or keys % width:
        raise unsupported(model, block, "attention", f"its projections do not consist of heads of {width} features")
    if queries % keys:
        raise unsupported(model, block, "attention", "its groups have unequal numbers of query heads")
    if reason := next(_entangled(model, attention, roles, width), None):
        raise unsupported(model, block, "attention", reason)
    return Heads(queries // width, keys // width, width)


def head_weights(model: Decoder, layer: int) -> dict[Role, torch.Tensor]:
    """The weights of a layer's attention heads: rows of "query", [heads, features, width], and of "key" and "value",
    [groups, features, width]; columns of "output", [heads, features, width].

    Raises:
        MethodError: as ``heads_of``, or something else computes the layer's linear layers.
        UnsupportedModelError: as ``heads_of``.
    """
    width, block = heads_of(model, layer).width, block_at(model, layer)
    roles = live_roles(model, block)
    weights = {role: _weight(block, roles[role]) for role in ("query", "key", "value", "output")}
    rows = {role: weight.T if role == "output" else weight for role, weight in weights.items()}
    return {cast("Role", role): weight.reshape(-1, width, weight.shape[1]) for role, weight in rows.items()}


def neurons_of(model: Decoder, layer: int) -> dict[Role, torch.Tensor]:
    """The weights of a layer's MLP neurons, each [neurons, width]: rows of "gate", where there is one, and "up", and
    columns of "down".

    Raises:
        MethodError: the layer, or its MLP, is not in the model, or something else computes its linear layers.
        UnsupportedModelError: single neurons of it cannot be taken out.
    """
    block = block_at(model, layer)
    _require_in_place(block, block.mlp, "MLP")
    roles = {role: part for role, part in live_roles(model, block).items() if role in ("gate", "up", "down")}
    if not {"up", "down"} <= roles.keys():
        raise unsupported(model, block, "MLP", "its expansion and its way back are in no linear layer of their own")
    linears = {id(weight) for part in roles.values() for weight in part.module.parameters()}
    for branch in block.mlp.modules:
        for name, weight in branch.named_parameters():
            if id(weight) not in linears and weight.numel() > 1:
                raise unsupported(model, block, "MLP", f"{name} belongs to all of its neurons together")
    weights = {role: _weight(block, part) for role, part in roles.items()}
    return {role: weight.T if role == "down" else weight for role, weight in weights.items()}


def positions(part: Slice) -> torch.Tensor:
    """Where in the output of its linear layer the features of a role are, in their order, [features]."""
    every = torch.arange(output_features(part.module))
    return every if part.outputs is None else every[part.outputs]


def unsupported(model: Decoder, block: Block, part: str, reason: str) -> UnsupportedModelError:
    """That a layer's attention, or its MLP, cannot be narrowed."""
    name = model.kind
    return UnsupportedModelError(f"{name}: the {part} of layer {block.index} cannot be narrowed: {reason}")


def require_own_weights(block: Block, linear: nn.Module) -> None:
    """Refuse a linear layer that another method computes.

    Raises:
        MethodError: with the order in which both can be applied.
    """
    from harness.model.weights.linear import computed_by

    if (replacement := computed_by(linear)) is not None:
        raise MethodError(
            f"a linear layer of layer {block.index} is computed by {replacement.kernel} already, so that units of it "
            "cannot be taken out: name the method that takes units out before the one that computes"
        )


def _weight(block: Block, part: Slice) -> torch.Tensor:
    """The weight of a role, [out, in]."""
    require_own_weights(block, part.module)
    weight = cast("torch.Tensor", part.module.weight).detach()
    weight = weight.T if isinstance(part.module, Conv1D) else weight
    return weight if part.outputs is None else weight[part.outputs]


def _entangled(model: Decoder, attention: nn.Module, roles: Mapping[Role, Slice], width: int) -> Iterator[str]:
    """What in an attention is about several of its heads together."""
    linears = {id(weight) for part in roles.values() for weight in part.module.parameters()}
    for name, weight in attention.named_parameters():
        # a norm of single heads is a part of the attention itself, and as wide as a head
        if id(weight) not in linears and (name.count(".") != 1 or weight.numel() != width):
            yield f"{name} belongs to all of its heads together"
    takes = inspect.signature(attention.forward).parameters
    if not takes.keys().isdisjoint(("alibi", "position_bias")) and getattr(model.config, "alibi", True):
        yield "the model makes a bias of the positions for every head (alibi)"
    if model.config.model_type == "codegen":
        yield "its fused projection is split into four parts of equal width"


def _require_in_place(block: Block, branch: Branch, name: str) -> None:
    if branch.modules[0] not in block.module.children():
        raise MethodError(f"the {name} of layer {block.index} is out of the model")
