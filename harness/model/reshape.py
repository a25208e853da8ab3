"""A smaller dense model: attention heads, key-value groups and MLP neurons really taken out for a ``with`` block.

The modules stay the same objects, so that hooks, traces and other engines find them; their weights are smaller
contiguous copies, and what they and their attention know of sizes follows. Layers may have different widths: each reads
its own. What is computed is what the dense model computes where the outputs of these units are multiplied by zero.

The units are the coupled structures of "LLM-Pruner" (Ma et al., arXiv:2305.11627), in the groups of grouped-query
attention (Ainslie et al., arXiv:2305.13245).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract.anatomy import Block, Slice
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.forwards import put
from harness.model.roles import output_features
from harness.model.units import (
    Heads,
    block_at,
    heads_of,
    live_roles,
    neurons_of,
    positions,
    require_own_weights,
    unsupported,
)


@dataclass(frozen=True)
class Keep:
    """What stays of a layer, by numbers from 0 of what is in the layer now; None: all of it.

    Attributes:
        heads: query heads, as many in each group that stays. Where every head has keys and values of its own, these
            follow.
        groups: key-value heads, each with the query heads that read it, of which ``heads`` may choose.
        neurons: of the MLP: what the gate and the expansion make, and the way back reads.
    """

    heads: Sequence[int] | None = None
    groups: Sequence[int] | None = None
    neurons: Sequence[int] | None = None


@contextmanager
def narrowed(model: Decoder, keeps: Mapping[int, Keep]) -> Iterator[None]:
    """Run with layers that keep some of their heads, key-value groups and neurons alone.

    Units may be named in any order; they stay in the model's own. A branch of which all is kept stays as it is.

    Args:
        keeps: what stays, by the layer's index in the dense model; layers that are not named stay as they are.

    Raises:
        MethodError: a layer or a unit that is not there, is named twice or leaves none; groups that would keep unequal
            numbers of query heads; a linear layer that another method computes already.
        UnsupportedModelError: single units of the model's attention or MLP cannot be taken out.
    """
    with ExitStack() as undo:
        for layer, keep in keeps.items():
            block = block_at(model, layer)
            if keep.neurons is not None:
                _narrow_mlp(undo, model, block, keep.neurons)
            if keep.heads is not None or keep.groups is not None:
                _narrow_attention(undo, model, block, keep)
        yield


def _narrow_mlp(undo: ExitStack, model: Decoder, block: Block, neurons: Sequence[int]) -> None:
    count = len(neurons_of(model, block.index)["down"])
    kept = _numbers("neuron", neurons, count, block)
    if len(kept) == count:
        return
    roles = live_roles(model, block)
    _cut_outputs(undo, model, block, [(roles[role], kept) for role in ("gate", "up") if role in roles])
    _cut(undo, block, roles["down"].module, inputs=kept)


def _narrow_attention(undo: ExitStack, model: Decoder, block: Block, keep: Keep) -> None:
    before = heads_of(model, block.index)
    heads, groups = _chosen(keep, before, block)
    if len(heads) == before.count:
        return
    roles = live_roles(model, block)
    queries, keys = _features(heads, before.width), _features(groups, before.width)
    _cut_outputs(undo, model, block, [(roles["query"], queries), (roles["key"], keys), (roles["value"], keys)])
    _cut(undo, block, roles["output"].module, inputs=queries)
    _count(undo, block.attention.modules[0], before, Heads(len(heads), len(groups), before.width))


def _chosen(keep: Keep, before: Heads, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """The query heads and the groups that stay, each in order."""
    heads, groups = torch.arange(before.count), torch.arange(before.groups)
    if keep.groups is not None:
        groups = _numbers("group", keep.groups, before.groups, block)
    if keep.heads is not None:
        heads = _numbers("head", keep.heads, before.count, block)
        groups = heads if keep.groups is None and before.per_group == 1 else groups
    else:
        heads = heads[torch.isin(heads // before.per_group, groups)]
    members = Counter((heads // before.per_group).tolist())  # query heads that stay, by group
    if outside := members.keys() - set(groups.tolist()):
        raise MethodError(f"layer {block.index} would keep heads of group {min(outside)}, and not the group")
    if len({members[group] for group in groups.tolist()}) > 1:
        kept = ", ".join(f"{members[group]} of group {group}" for group in groups.tolist())
        raise MethodError(
            f"layer {block.index} would keep unequal numbers of query heads ({kept}): keep as many of each group, or "
            "leave a whole group out by naming the groups"
        )
    return heads, groups


def _numbers(unit: str, given: Sequence[int], count: int, block: Block) -> torch.Tensor:
    """The units that stay, in order, of ``count``."""
    numbers = sorted(int(number) for number in given)
    if not numbers:
        raise MethodError(f"layer {block.index} would keep no {unit}: at least one of its {count} must stay")
    if beyond := [number for number in numbers if not 0 <= number < count]:
        raise MethodError(f"layer {block.index} has no {unit} {beyond[0]}; they are 0 to {count - 1}")
    if repeated := [number for number, times in Counter(numbers).items() if times > 1]:
        raise MethodError(f"{unit} {repeated[0]} of layer {block.index} is named twice")
    return torch.tensor(numbers)


def _features(units: torch.Tensor, width: int) -> torch.Tensor:
    """The features of heads: those of the first, of the second, ..."""
    return (units[:, None] * width + torch.arange(width)).flatten()  # [units * width]


def _cut_outputs(undo: ExitStack, model: Decoder, block: Block, parts: Iterable[tuple[Slice, torch.Tensor]]) -> None:
    """Keep some features of each role, in the order in which their linear layer has them."""
    rows: dict[nn.Module, list[torch.Tensor]] = defaultdict(list)
    placed: Counter[nn.Module] = Counter()
    for part, kept in parts:
        places = positions(part)
        rows[part.module].append(places[kept])
        placed[part.module] += len(places)
    for linear, kept_rows in rows.items():
        if placed[linear] != output_features(linear):
            raise unsupported(model, block, type(linear).__name__, "some of its output features have no known role")
        _cut(undo, block, linear, outputs=torch.cat(kept_rows).sort().values)


def _cut(
    undo: ExitStack,
    block: Block,
    linear: nn.Module,
    *,
    outputs: torch.Tensor | None = None,
    inputs: torch.Tensor | None = None,
) -> None:
    """Keep some output features of a linear layer, with their biases, or some input features."""
    require_own_weights(block, linear)
    transposed = isinstance(linear, Conv1D)  # its weight is [in, out]
    if outputs is not None:
        put(undo, linear, "nf" if transposed else "out_features", len(outputs))
        _put_part(undo, linear, "weight", outputs, 1 if transposed else 0)
        if getattr(linear, "bias", None) is not None:
            _put_part(undo, linear, "bias", outputs, 0)
    if inputs is not None:
        put(undo, linear, "nx" if transposed else "in_features", len(inputs))
        _put_part(undo, linear, "weight", inputs, 0 if transposed else 1)


def _put_part(undo: ExitStack, linear: nn.Module, name: str, kept: torch.Tensor, dimension: int) -> None:
    tensor = cast("torch.Tensor", getattr(linear, name)).detach()
    smaller = tensor.index_select(dimension, kept.to(tensor.device)).contiguous()
    put(undo, linear, name, nn.Parameter(smaller, requires_grad=False))


_HEADS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_GROUPS: Final = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads")
_QUERIES: Final = ("split_size", "embed_dim", "hidden_size", "inner_dim", "all_head_size")
"""What attentions call the width of all their queries; dense, it is often that of the residual stream too."""


def _count(undo: ExitStack, attention: nn.Module, before: Heads, after: Heads) -> None:
    """Let an attention know of the heads that it has now: by itself, and by the configuration that it reads."""
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
    """A model's configuration as one attention reads it, and whoever counts it: with the numbers of its own heads."""

    def __init__(self, config: Any, heads: Heads) -> None:
        self._shared = config
        self.num_attention_heads, self.head_dim = heads.count, heads.width
        if hasattr(config, "num_key_value_heads"):
            self.num_key_value_heads = heads.groups

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_shared"), name)
