"""Which attentions and MLPs are in the layers now, and which of them cost what the dense model's do.

A branch is *unchanged* where the dense model's own modules are in their place and run their class's own code, and
where nothing but linear layers in them has been replaced: then its work follows from the linear layers that are there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.contract.linears import LINEAR
from harness.measure.shape import LayerShape, ModelShape
from harness.model.layouts import branch_names

if TYPE_CHECKING:
    from harness.contract.anatomy import Block, Branch
    from harness.contract.decoder import Decoder

_SILENT: Final = (nn.Identity, nn.Dropout, nn.ModuleList, nn.Sequential, nn.LayerNorm, nn.RMSNorm)
"""Classes of torch that multiply no matrices; so do its activations, which are in a file of their own."""


@dataclass(frozen=True)
class Placed:
    """A branch of a dense layer, as it is in the model now.

    Attributes:
        slot: twice the layer's index, one more for an MLP.
        there: the modules in its place, in order.
        dense: the dense model's own, wherever they are.
        changed: whether it has to be counted as it runs.
    """

    slot: int
    there: tuple[nn.Module, ...]
    dense: tuple[nn.Module, ...]
    changed: bool

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Those that may run it, each once."""
        return tuple(dict.fromkeys((*self.there, *self.dense)))


def placed(model: "Decoder", shape: ModelShape) -> list[Placed]:
    """Attention and MLP of every dense layer, in the order of their slots; none of a model without known layers.

    Args:
        shape: the model's, by the linear layers that are in it.
    """
    if model.anatomy.opaque is not None:
        return []
    attention_name, mlp_names = branch_names(model.anatomy.layout)
    known_code = _attends_by_transformers(model)
    branches = []
    for block, layer in zip(model.anatomy.blocks, shape.layers, strict=True):
        known = known_code and _fits(block, layer, model.config.hidden_size)
        branches.append(_placed(2 * block.index, block, block.attention, (attention_name,), known=known))
        branches.append(_placed(2 * block.index + 1, block, block.mlp, mlp_names, known=True))
    return branches


def foreign(model: "Decoder") -> list[nn.Module]:
    """Modules among the layers that are no layers of the dense model."""
    if model.anatomy.opaque is not None:
        return []
    dense = {block.module for block in model.anatomy.blocks}
    return [layer for layer in getattr(model.anatomy.parent, model.anatomy.layers_name) if layer not in dense]


def declared(module: nn.Module) -> Iterator[nn.Module]:
    """The linear layers in a module whose work a method declares."""
    if _is_declared(module):
        yield module
        return
    for child in module.children():
        yield from declared(child)


def _placed(slot: int, block: "Block", branch: "Branch", names: tuple[str, ...], *, known: bool) -> Placed:
    there = tuple(part for name in names if isinstance(part := getattr(block.module, name, None), nn.Module))
    plain = known and there == branch.modules and all(map(_is_plain, chain(*(module.modules() for module in there))))
    return Placed(slot, there, branch.modules, changed=not plain)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module multiplies nothing but what its linear layers, or its own declaration, say."""
    if _is_declared(module):
        return True
    kind = type(module)
    if any(callable(getattr(kind, name, None)) for name in vars(module)):  # code that is set on the instance
        return False
    if isinstance(module, LINEAR) or kind in _SILENT:
        return True
    if kind.__module__ == "torch.nn.modules.activation":
        return kind is not nn.MultiheadAttention
    return kind.__module__.startswith("transformers") and kind.forward.__module__.startswith("transformers")


def _is_declared(module: nn.Module) -> bool:
    return hasattr(module, "macs_per_token") or "computed_by" in module._modules


def _attends_by_transformers(model: "Decoder") -> bool:
    """Whether queries, keys and values are multiplied by transformers' own code."""
    name = model.config._attn_implementation
    function = None if name == "eager" else ALL_ATTENTION_FUNCTIONS.get(name)
    return function is None or function.__module__.startswith("transformers")


def _fits(block: "Block", layer: LayerShape, width: int) -> bool:
    """Whether attention's projections have as many weights as its heads, by the shape, take: none is narrower."""
    if not {"query", "key", "value", "output"} <= block.roles.keys():
        return True
    weights = sum(map(_weight_count, _linears(block.attention.modules[0])))
    return weights == width * (layer.pair_macs + layer.cache_width)  # queries and output, keys and values


def _linears(module: nn.Module) -> Iterator[nn.Module]:
    if _is_declared(module) or isinstance(module, LINEAR):
        yield module._modules.get("computed_by") or module
        return
    for child in module.children():
        yield from _linears(child)


def _weight_count(linear: Any) -> int:
    count = getattr(linear, "weight_count", None)
    return int(linear.weight.numel() if count is None else count)
