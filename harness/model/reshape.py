"""A smaller dense model: attention heads, key-value groups and MLP neurons really taken out for a ``with`` block.

The modules stay the same objects, so that hooks, traces and other engines find them; their weights are smaller
contiguous copies, and what they and their attention know of sizes follows. Layers may have different widths: each reads
its own. What is computed is what the dense model computes where the outputs of these units are multiplied by zero
("LLM-Pruner", Ma et al., arXiv:2305.11627, calls them coupled structures; "GQA" groups as in arXiv:2305.13245).
"""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract.anatomy import Block, Branch, Role, Slice
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.roles import head_width, output_features, roles_of
from harness.model.surgery import put
from harness.model.weights.linear import computed_by


@dataclass(frozen=True)
class Keep:
    """What stays of a layer, by numbers from 0 of what is in the layer now; None: all of it.

    Attributes:
        heads: query heads, as many in each group that stays. Where every head has keys and values of its own, these
            follow.
        groups: key-value heads, each with the query heads that read it; where ``heads`` are named too, these choose
            among them.
        neurons: of the MLP: what the gate and the expansion make, and the way back reads.
    """

    heads: Sequence[int] | None = None
    groups: Sequence[int] | None = None
    neurons: Sequence[int] | None = None


@contextmanager
def narrowed(model: Decoder, keeps: Mapping[int, Keep]) -> Iterator[None]:
    """Run with layers that keep some of their heads, key-value groups and neurons alone.

    What is named in any order stays in the model's own. A layer of which all is kept stays as it is.

    Args:
        keeps: what stays, by the layer's index in the dense model; layers that are not named stay as they are.

    Raises:
        MethodError: a layer or a unit that is not there, is named twice or leaves none; groups that would keep unequal
            numbers of query heads; a linear layer that another method computes already.
        UnsupportedModelError: the model's attention or MLP cannot be narrowed.
    """
    with ExitStack() as undo:
        for layer, keep in keeps.items():
            block = _block(model, layer)
            if keep.neurons is not None:
                _narrow_mlp(undo, model, block, keep.neurons)
            if keep.heads is not None or keep.groups is not None:
                _narrow_attention(undo, model, block, keep)
        yield


@dataclass(frozen=True)
class Heads:
    """Attention heads of a layer: how many there are, in how many key-value groups, and the features of each."""

    count: int
    groups: int
    width: int

    @property
    def per_group(self) -> int:
        """Query heads that read the same keys and values."""
        return self.count // self.groups


def heads_of(model: Decoder, layer: int) -> Heads:
    """The attention heads that a layer has now, by the widths of its projections.

    Raises:
        MethodError: the layer is not in the model.
        UnsupportedModelError: its attention cannot be narrowed.
    """
    block = _block(model, layer)
    return _heads(model, block, live_roles(model, block))


def live_roles(model: Decoder, block: Block) -> dict[Role, Slice]:
    """The roles of a layer's linear layers at the widths that they have now; ``Block.roles`` has those of dense."""
    attention = block.attention.modules[0]
    config = getattr(attention, "config", model.config)
    return roles_of(block.module, attention, block.mlp.modules, config)


def _narrow_mlp(undo: ExitStack, model: Decoder, block: Block, neurons: Sequence[int]) -> None:
    _require_in_place(block, block.mlp, "MLP")
    roles = live_roles(model, block)
    if not {"up", "down"} <= roles.keys():
        raise _unsupported(model, block, "MLP", "its expansion and its way back are in no linear layer of their own")
    down = roles["down"].module
    ways_in = [roles[role] for role in ("gate", "up") if role in roles]
    known = {id(weight) for part in (*ways_in, roles["down"]) for weight in part.module.parameters()}
    for branch in block.mlp.modules:
        for name, weight in branch.named_parameters():
            if id(weight) not in known and weight.numel() > 1:
                raise _unsupported(model, block, "MLP", f"{name} belongs to all neurons together")
    kept = _numbers("neuron", neurons, input_features(down), block)
    if len(kept) < input_features(down):
        _cut_outputs(undo, model, block, [(part, kept) for part in ways_in])
        _cut(undo, block, down, inputs=kept)


def _narrow_attention(undo: ExitStack, model: Decoder, block: Block, keep: Keep) -> None:
    _require_in_place(block, block.attention, "attention")
    roles = live_roles(model, block)
    before = _heads(model, block, roles)
    heads, groups = _chosen(keep, before, block)
    if len(heads) == before.count:
        return
    queries, keys = _features(heads, before.width), _features(groups, before.width)
    output = roles["output"].module
    _cut_outputs(undo, model, block, [(roles["query"], queries), (roles["key"], keys), (roles["value"], keys)])
    _cut(undo, block, output, inputs=queries)
    _count(undo, block.attention.modules[0], before, Heads(len(heads), len(groups), before.width))


def _heads(model: Decoder, block: Block, roles: Mapping[Role, Slice]) -> Heads:
    """The heads of a layer whose attention can be narrowed."""
    attention = block.attention.modules[0]
    if absent := [role for role in ("query", "key", "value", "output") if role not in roles]:
        raise _unsupported(model, block, "attention", f"its {absent[0]} features are in no linear layer of their own")
    width = head_width(attention, model.config)
    queries, keys, values = (_width(roles[role]) for role in ("query", "key", "value"))
    if not queries == input_features(roles["output"].module) or keys != values or queries % width or keys % width:
        raise _unsupported(model, block, "attention", f"its projections are no heads of {width} features")
    if queries % keys:
        raise _unsupported(model, block, "attention", "its groups have unequal numbers of query heads")
    for reason, holds in _entangled(model, attention, roles, width).items():
        if holds:
            raise _unsupported(model, block, "attention", reason)
    return Heads(queries // width, keys // width, width)


def _entangled(model: Decoder, attention: nn.Module, roles: Mapping[Role, Slice], width: int) -> dict[str, bool]:
    """What of an attention is about all of its heads together, so that some cannot go without the others' changing."""
    linears = {id(weight) for part in roles.values() for weight in part.module.parameters()}
    own = [(name, weight) for name, weight in attention.named_parameters() if id(weight) not in linears]
    # a norm of single heads is a part of the attention itself and as wide as a head
    shared = next((name for name, weight in own if name.count(".") != 1 or weight.numel() != width), None)
    takes = inspect.signature(attention.forward).parameters
    biased = not takes.keys().isdisjoint(("alibi", "position_bias")) and getattr(model.config, "alibi", True)
    return {
        f"{shared} belongs to all of its heads together": shared is not None,
        "the model makes a bias of every head's positions (alibi)": bool(biased),
        "its fused projection is split into four parts of equal width": model.config.model_type == "codegen",
    }


def _chosen(keep: Keep, before: Heads, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """The query heads and the groups that stay, each in order."""
    every = torch.arange(before.count)
    heads = every if keep.heads is None else _numbers("head", keep.heads, before.count, block)
    groups = torch.arange(before.groups)
    if keep.groups is not None:
        groups = _numbers("group", keep.groups, before.groups, block)
    elif before.per_group == 1:
        groups = heads
    if keep.heads is None:
        heads = every[torch.isin(every // before.per_group, groups)]
    per_group = torch.bincount(heads // before.per_group, minlength=before.groups)  # [groups]
    if outside := sorted({int(head) // before.per_group for head in heads} - set(groups.tolist())):
        raise MethodError(f"layer {block.index} keeps heads of group {outside[0]}, and not the group")
    if len(set(per_group[groups].tolist())) > 1:
        kept = ", ".join(f"{per_group[group]} of group {group}" for group in groups.tolist())
        raise MethodError(
            f"layer {block.index} would keep unequal numbers of query heads ({kept}): name as many of each group, or "
            "leave out the group"
        )
    return heads, groups


def _numbers(unit: str, given: Sequence[int], count: int, block: Block) -> torch.Tensor:
    """The units that stay, in order, of ``count``."""
    numbers = sorted(int(number) for number in given)
    if not numbers:
        raise MethodError(f"layer {block.index} would keep no {unit}: at least one of its {count} must stay")
    if beyond := [number for number in numbers if not 0 <= number < count]:
        raise MethodError(f"layer {block.index} has no {unit} {beyond[0]}; they are 0 to {count - 1}")
    if repeated := [number for number, following in zip(numbers, numbers[1:], strict=False) if number == following]:
        raise MethodError(f"{unit} {repeated[0]} of layer {block.index} is named twice")
    return torch.tensor(numbers)


def _features(units: torch.Tensor, width: int) -> torch.Tensor:
    """The features of heads: those of the first, of the second, ..."""
    return (units[:, None] * width + torch.arange(width)).flatten()  # [units * width]


def _positions(part: Slice) -> torch.Tensor:
    """Where in the output of its linear layer the features of a role are, in their order."""
    every = torch.arange(output_features(part.module))
    return every if part.outputs is None else every[part.outputs]


def _width(part: Slice) -> int:
    return len(_positions(part))


def input_features(linear: nn.Module) -> int:
    """The width of a linear layer's input."""
    return int(cast("Any", linear).nx if isinstance(linear, Conv1D) else cast("Any", linear).in_features)


def _cut_outputs(undo: ExitStack, model: Decoder, block: Block, parts: Iterable[tuple[Slice, torch.Tensor]]) -> None:
    """Keep some features of each role, in the order in which their linear layer has them."""
    rows: dict[nn.Module, list[torch.Tensor]] = defaultdict(list)
    placed: dict[nn.Module, int] = defaultdict(int)
    for part, kept in parts:
        positions = _positions(part)
        rows[part.module].append(positions[kept])
        placed[part.module] += len(positions)
    for linear, positions in rows.items():
        if placed[linear] != output_features(linear):
            raise _unsupported(model, block, type(linear).__name__, "it has output features of no known role")
        _cut(undo, block, linear, outputs=torch.cat(positions).sort().values)


def _cut(
    undo: ExitStack,
    block: Block,
    linear: nn.Module,
    *,
    outputs: torch.Tensor | None = None,
    inputs: torch.Tensor | None = None,
) -> None:
    """Keep some output features, or some input features, of a linear layer."""
    if (replacement := computed_by(linear)) is not None:
        raise MethodError(
            f"a linear layer of layer {block.index} is computed by {replacement.kernel} already and cannot be made "
            "smaller: name the method that takes units out before the one that computes"
        )
    transposed = isinstance(linear, Conv1D)  # [in, out]
    kept, dimension = (inputs, 0 if transposed else 1) if outputs is None else (outputs, 1 if transposed else 0)
    assert kept is not None
    sizes = ("nx", "nf") if transposed else ("in_features", "out_features")
    put(undo, linear, sizes[0] if outputs is None else sizes[1], len(kept))
    _put_part(undo, linear, "weight", kept, dimension)
    if outputs is not None and getattr(linear, "bias", None) is not None:
        _put_part(undo, linear, "bias", kept, 0)


def _put_part(undo: ExitStack, linear: nn.Module, name: str, kept: torch.Tensor, dimension: int) -> None:
    tensor = cast("torch.Tensor", getattr(linear, name)).detach()
    smaller = tensor.index_select(dimension, kept.to(tensor.device)).contiguous()
    put(undo, linear, name, nn.Parameter(smaller, requires_grad=False))


_HEADS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_GROUPS: Final = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads")
_QUERIES: Final = ("split_size", "embed_dim", "hidden_size", "inner_dim", "all_head_size")
"""What attentions call the width of all their queries, which in some is that of the residual stream too."""


def _count(undo: ExitStack, attention: nn.Module, before: Heads, after: Heads) -> None:
    """Let an attention know of the heads that it has now, itself and by the configuration that it reads."""
    sizes = dict.fromkeys(_HEADS, (before.count, after.count)) | dict.fromkeys(_GROUPS, (before.groups, after.groups))
    sizes |= dict.fromkeys(_QUERIES, (before.count * before.width, after.count * after.width))
    sizes |= {"num_key_value_groups": (before.per_group, after.per_group)}
    sizes |= {"kv_dim": (before.groups * before.width, after.groups * after.width)}
    for part in attention.modules():
        for name, (old, new) in sizes.items():
            if vars(part).get(name) == old:
                put(undo, part, name, new)
        if "config" in vars(part):
            put(undo, part, "config", _Counted(part.config, after))


class _Counted:
    """A model's configuration as one attention reads it: with the numbers of its own heads."""

    def __init__(self, config: Any, heads: Heads) -> None:
        self._shared = config
        self.num_attention_heads = heads.count
        if hasattr(config, "num_key_value_heads"):
            self.num_key_value_heads = heads.groups

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_shared"), name)


def _block(model: Decoder, layer: int) -> Block:
    count = len(model.anatomy.blocks)
    if not 0 <= layer < count:
        raise MethodError(f"there is no layer {layer}; the model's layers are 0 to {count - 1}")
    block = model.anatomy.blocks[layer]
    if block not in model.live:
        raise MethodError(f"layer {layer} is out of the model")
    return block


def _require_in_place(block: Block, branch: Branch, name: str) -> None:
    if branch.modules[0] not in block.module.children():
        raise MethodError(f"the {name} of layer {block.index} is out of the model")


def _unsupported(model: Decoder, block: Block, part: str, reason: str) -> UnsupportedModelError:
    name = f"{type(model.module).__name__} (model_type {model.module.config.model_type!r})"
    return UnsupportedModelError(f"{name}: the {part} of layer {block.index} cannot be narrowed: {reason}")
