"""Structural surgery: layers, or their attention and MLP branches, really removed for a ``with`` block.

What is removed is not computed and caches no keys and values. Three things follow the removal, because transformers
reads them by position and is silently wrong otherwise:

- the configuration's number of layers and its lists with one entry per layer;
- each attention's slot in the cache (``layer_idx``). Positions and mask sizes are read off the first slot, and the
  first of each kind (full, sliding), so the attentions that stay take the first slots of their kind;
- the norms around a removed branch, which would be computed for nothing or added to the stream.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from harness.contract.anatomy import Block, Branch
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.forwards import put, returns_tuple
from harness.model.layouts import LAYER_INDEX_NAMES


@contextmanager
def without_blocks(model: Decoder, indices: Iterable[int]) -> Iterator[None]:
    """Remove whole decoder layers, named by their indices in the dense model.

    Raises:
        MethodError: an index is outside the model, a layer is already out, or none would stay.
    """
    dropped = _blocks(model, indices)
    live = model.live
    kept = [position for position, block in enumerate(live) if block not in dropped]
    if not kept:
        raise MethodError(f"cannot drop every layer; from 0 to {len(live) - 1} of the {len(live)} can go")
    with ExitStack() as undo:
        _keep_in_config(undo, model.config, kept)
        layers = nn.ModuleList(live[position].module for position in kept)
        put(undo, model.anatomy.parent, model.anatomy.layers_name, layers)
        _assign_slots(undo, model)
        yield


@contextmanager
def without_branches(
    model: Decoder, *, attention: Iterable[int] = (), mlp: Iterable[int] = (), keep_slots: bool = False
) -> Iterator[None]:
    """Remove the attention of some layers and the MLP of others, named by indices in the dense model.

    Args:
        keep_slots: leave each attention its place in the cache, for forwards on a cache of the whole model.

    Raises:
        MethodError: an index is outside the model, a branch is already out, or no attention of some kind (full,
            sliding) would stay, which leaves the cache without a length.
    """
    with ExitStack() as undo:
        for block in _blocks(model, attention):
            _drop(undo, block, block.attention, block.mlp, _NoAttention())
        for block in _blocks(model, mlp):
            _drop(undo, block, block.mlp, block.attention, _NoMLP(returns_tuple(block.mlp.modules[-1])))
        if not keep_slots:
            _assign_slots(undo, model)
        yield


class _NoAttention(nn.Module):
    """Adds nothing, computes nothing, caches no keys and values."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        # [1]: the residual addition broadcasts it to [rows, tokens, width]
        return hidden_states.new_zeros(1), None


class _NoMLP(nn.Module):
    """Adds nothing and computes nothing.

    Args:
        in_tuple: whether it stands for an MLP that gives a tuple, as one with experts may.
    """

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)  # whole, because Falcon adds to it in place
        return (nothing, None) if self.in_tuple else nothing


def _blocks(model: Decoder, indices: Iterable[int]) -> list[Block]:
    """The blocks with these dense indices, each once, if they are all still in the model."""
    if model.anatomy.opaque is not None:
        raise UnsupportedModelError(
            f"no layer of a {type(model.module).__name__} can be taken out, because {model.anatomy.opaque}"
        )
    blocks, live = model.anatomy.blocks, model.live
    chosen = []
    for index in sorted(set(indices)):
        if not 0 <= index < len(blocks):
            raise MethodError(f"there is no layer {index}; the model's layers are 0 to {len(blocks) - 1}")
        if blocks[index] not in live:
            raise MethodError(f"layer {index} is already out of the model")
        chosen.append(blocks[index])
    return chosen


def _drop(undo: ExitStack, block: Block, branch: Branch, other: Branch, nothing: nn.Module) -> None:
    """Put nothing in a branch's place, and no norm where none but this branch reads it."""
    names = {module: name for name, module in block.module.named_children()}
    for module in branch.modules:
        if module not in names:
            raise MethodError(f"this branch of layer {block.index} is already out of the model")
        put(undo, block.module, names[module], nothing)
    read = other.norms if other.modules[0] in names else ()
    for norm in (norm for norm in branch.norms if norm not in read):
        put(undo, block.module, names[norm], nn.Identity())


def _keep_in_config(undo: ExitStack, config: Any, kept: list[int]) -> None:
    """Shorten every list with one entry per layer, such as ``layer_types``, and the number of layers."""
    for name, value in list(vars(config).items()):
        # Token ids and class names are lists too, and may have as many entries as a small model has layers.
        per_layer = "token_id" not in name and name != "architectures"
        if per_layer and isinstance(value, list | tuple) and len(value) == config.num_hidden_layers:
            put(undo, config, name, type(value)(value[position] for position in kept))
    put(undo, config, "num_hidden_layers", len(kept))


def _assign_slots(undo: ExitStack, model: Decoder) -> None:
    """Number the layers that stay, and give each attention that stays the first free cache slot of its kind."""
    kinds = [_kind(slot) for slot in DynamicCache(config=model.config).layers]
    free = {kind: iter([slot for slot, same in enumerate(kinds) if same == kind]) for kind in kinds}
    used = set()
    for position, (kind, block) in enumerate(zip(kinds, model.live, strict=True)):
        attention = block.attention.modules[0]
        if attention in block.module.children():
            if not _numbered(attention):
                raise MethodError(f"{type(attention).__name__} has no layer_idx, so its cache slot cannot be moved")
            used.add(kind)
            _number(undo, model, attention, next(free[kind]))
        _number(undo, model, block.module, position, except_in=attention)
    for kind in set(kinds) - used:
        raise MethodError(f"cannot drop every attention of one kind; no {kind} attention would stay")


def _kind(slot: Any) -> str:
    """The kind of attention that a cache slot serves."""
    window = getattr(slot, "sliding_window", None)
    return "full" if window is None else f"sliding-window ({window} tokens)"


def _number(
    undo: ExitStack, model: Decoder, module: nn.Module, number: int, except_in: nn.Module | None = None
) -> None:
    """Set the layer index of a module and of its submodules, except of those inside ``except_in``."""
    spared = set() if except_in is None else set(except_in.modules())
    for part, name in _numbered(module):
        if part in spared or getattr(part, name) == number:
            continue
        if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
            raise MethodError(
                "this model scales attention by the layer's index (scale_attn_by_inverse_layer_idx), so its "
                "layers cannot be renumbered"
            )
        put(undo, part, name, number)


def _numbered(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The submodules that know the index of their layer, with the attribute's name."""
    return [(part, name) for part in module.modules() for name in LAYER_INDEX_NAMES if hasattr(part, name)]
