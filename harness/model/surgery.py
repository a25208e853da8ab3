"""Structural surgery: blocks, or attention and MLP branches alone, really taken out for a ``with`` block.

What is taken out is not computed and keeps no keys and values. Three things follow the removal, because
transformers reads them by position and is silently wrong otherwise:

- the configuration's number of layers and its lists with one entry per layer;
- each attention's slot in the cache (``layer_idx``). Positions and mask sizes are read off the first slot,
  and the first of each kind (full, sliding), so the attentions that stay take the first slots of their kind;
- the norms around a dropped branch, which would be computed for nothing or added to the stream.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from harness.contract.anatomy import Block, Branch
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError


@contextmanager
def without_blocks(model: Decoder, indices: Iterable[int]) -> Iterator[None]:
    """Take whole decoder layers out, named by their indices in the dense model.

    Raises:
        MethodError: an index is outside the model, a layer is already out, or none would stay.
    """
    dropped = {id(block.module) for block in _blocks(model, indices)}
    live = _live(model)
    kept = [position for position, layer in enumerate(live) if id(layer) not in dropped]
    if not kept:
        raise MethodError(f"cannot drop every layer; from 0 to {len(live) - 1} of the {len(live)} can go")
    with ExitStack() as undo:
        _keep_in_config(undo, model.config, kept)
        _put(undo, model.anatomy.parent, model.anatomy.layers_name, nn.ModuleList(live[i] for i in kept))
        _assign_slots(undo, model)
        yield


@contextmanager
def without_branches(model: Decoder, *, attention: Iterable[int] = (), mlp: Iterable[int] = ()) -> Iterator[None]:
    """Take the attention of some layers and the MLP of others out, named by indices in the dense model.

    Raises:
        MethodError: an index is outside the model, a branch is already out, or no attention of some kind
            (full, sliding) would stay, which leaves the cache without a length.
    """
    with ExitStack() as undo:
        for block in _blocks(model, attention):
            _drop(undo, block, block.attention, _NoAttention())
        for block in _blocks(model, mlp):
            _drop(undo, block, block.mlp, _NoMLP())
        _assign_slots(undo, model)
        yield


class _NoAttention(nn.Module):
    """Adds nothing, computes nothing, keeps no keys and values."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        # One zero is enough: the residual addition broadcasts it.
        return hidden_states.new_zeros(1), None


class _NoMLP(nn.Module):
    """Adds nothing and computes nothing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(1)


def _live(model: Decoder) -> list[nn.Module]:
    return list(getattr(model.anatomy.parent, model.anatomy.layers_name))


def _blocks(model: Decoder, indices: Iterable[int]) -> list[Block]:
    """The blocks with these dense indices, each once, if they are all still in the model."""
    blocks, live = model.anatomy.blocks, _live(model)
    chosen = []
    for index in sorted(set(indices)):
        if not 0 <= index < len(blocks):
            raise MethodError(f"there is no layer {index}; the model's layers are 0 to {len(blocks) - 1}")
        if blocks[index].module not in live:
            raise MethodError(f"layer {index} is already out of the model")
        chosen.append(blocks[index])
    return chosen


def _drop(undo: ExitStack, block: Block, branch: Branch, nothing: nn.Module) -> None:
    names = {module: name for name, module in block.module.named_children()}
    for module in branch.modules:
        if module not in names:
            raise MethodError(f"this branch of layer {block.index} is already out of the model")
        _put(undo, block.module, names[module], nothing)
    for norm in branch.norms:
        _put(undo, block.module, names[norm], nn.Identity())


def _keep_in_config(undo: ExitStack, config: Any, kept: list[int]) -> None:
    """Shorten every list with one entry per layer, such as ``layer_types``, and the number of layers."""
    for name, value in list(vars(config).items()):
        # Token ids and class names are lists too, and may be as long as a small model is deep.
        per_layer = "token_id" not in name and name != "architectures"
        if per_layer and isinstance(value, list | tuple) and len(value) == config.num_hidden_layers:
            _put(undo, config, name, type(value)(value[i] for i in kept))
    _put(undo, config, "num_hidden_layers", len(kept))


def _assign_slots(undo: ExitStack, model: Decoder) -> None:
    """Number the layers that stay, and give each attention that stays the first free slot of its kind."""
    kinds = [_kind(slot) for slot in DynamicCache(config=model.config).layers]
    free = {kind: iter([slot for slot, other in enumerate(kinds) if other == kind]) for kind in kinds}
    attentions = {block.module: block.attention.modules[0] for block in model.anatomy.blocks}
    kept = set()
    for position, (kind, layer) in enumerate(zip(kinds, _live(model), strict=True)):
        attention = attentions[layer]
        if attention in layer.children():
            if not _numbered(attention):
                raise MethodError(f"{type(attention).__name__} has no layer_idx, so its cache slot cannot be moved")
            kept.add(kind)
            _number(undo, model, attention, next(free[kind]))
        _number(undo, model, layer, position, but=attention)
    for kind in set(kinds) - kept:
        raise MethodError(f"cannot drop every attention of one kind; no {kind} attention would stay")


def _kind(slot: Any) -> str:
    """What must agree between an attention and its cache slot."""
    window = getattr(slot, "sliding_window", None)
    return "full" if window is None else f"sliding-window ({window} tokens)"


def _number(undo: ExitStack, model: Decoder, module: nn.Module, number: int, but: nn.Module | None = None) -> None:
    """Set the number of a module and of all inside it, except of ``but`` and all inside that."""
    spared = set() if but is None else set(but.modules())
    for part, name in _numbered(module):
        if part in spared or getattr(part, name) == number:
            continue
        if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
            raise MethodError(
                "this model scales attention by the layer's index (scale_attn_by_inverse_layer_idx), so its "
                "layers cannot be renumbered"
            )
        _put(undo, part, name, number)


def _numbered(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """What carries a layer's number: GPT-Neo alone calls it ``layer_id``."""
    return [(part, name) for part in module.modules() for name in ("layer_idx", "layer_id") if hasattr(part, name)]


def _put(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
