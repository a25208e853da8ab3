"""Which attentions and MLPs are in the layers now, and which of them cost what the dense model's do.

A branch is *unchanged* where the dense model's own modules are in their place and run their class's own code, and
where nothing but linear layers in them has been replaced: then its work follows from the linear layers that are there.
Hooks that multiply are code as well, unless they are those of the harness's engines, which count for themselves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.contract.linears import LINEAR
from harness.measure.shape import LayerShape, ModelShape
from harness.model.layouts import branch_names

if TYPE_CHECKING:
    from harness.contract.anatomy import Block, Branch
    from harness.contract.decoder import Decoder

_SILENT: Final = (nn.Identity, nn.Dropout, nn.ModuleList, nn.Sequential, nn.LayerNorm, nn.RMSNorm)
"""Classes of torch that multiply no matrices; so do its activations, which are in a file of their own."""


_FORWARDS: Final = frozenset(kind.forward for kind in LINEAR)
_ENGINES: Final = ("harness.model.", "harness.measure.", "harness.evaluate.", "harness.contract.")
"""Where code lies that runs modules and multiplies nothing that it does not count."""
_LIBRARIES: Final = ("torch.", "transformers.")


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


def changed_blocks(model: "Decoder") -> list["Block"]:
    """Layers whose own code, around attention and MLP, may multiply what no branch shows."""
    if model.anatomy.opaque is not None:
        return []
    attention, mlps = branch_names(model.anatomy.layout)
    names = frozenset((attention, *mlps))
    return [block for block in model.live if any(map(_multiplies, _around(block, names)))]


def changed_surroundings(model: "Decoder") -> list[nn.Module]:
    """Modules around the layers that run code of a method's: the stack of layers, the embedding, the last norm."""
    if model.anatomy.opaque is not None:
        return []
    parent, layers, head = model.anatomy.parent, model.anatomy.layers_name, head_of(model)
    parts = [part for name, part in parent.named_children() if name != layers and part is not head]
    own = [] if _runs_its_own(parent) else [parent]
    return own + [part for part in parts if not all(map(_runs_its_own, part.modules()))]


def head_of(model: "Decoder") -> nn.Module:
    """The language-model head that is in place."""
    head: nn.Module | None = model.module.get_output_embeddings()
    return model.anatomy.head if head is None else head


def is_changed_head(model: "Decoder") -> bool:
    """Whether the head is counted as it runs."""
    head = head_of(model)
    return head is not model.anatomy.head or not all(map(_is_plain, head.modules()))


def inner_linears(module: nn.Module) -> Iterator[nn.Module]:
    """The linear layers in a module, each of which its declaration or its weight says the work of."""
    if _is_declared(module) or (isinstance(module, LINEAR) and _is_plain(module)):
        yield module
        return
    for child in module.children():
        yield from inner_linears(child)


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
    if not _runs_its_own(module):
        return False
    if isinstance(module, LINEAR):
        return kind.forward in _FORWARDS
    if kind in _SILENT:
        return True
    if kind.__module__ == "torch.nn.modules.activation":
        return kind is not nn.MultiheadAttention
    return kind.__module__.startswith("transformers") and kind.forward.__module__.startswith("transformers")


def _multiplies(module: nn.Module) -> bool:
    """Whether a module that is part of no branch may multiply something."""
    return isinstance(module, LINEAR) or _is_declared(module) or not _is_plain(module)


def _runs_its_own(module: nn.Module) -> bool:
    """Whether a module runs its class's code: none is set on the instance, and no hook but those of engines."""
    kind = type(module)
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if not all(_is_of_engine(hook) or _is_library(hook) for hook in hooks):
        return False
    code = {name: value for name, value in vars(module).items() if callable(value)}
    return all(
        _is_of_engine(value) or (not callable(getattr(kind, name, None)) and _is_library(value))
        for name, value in code.items()
        if not isinstance(value, nn.Module | type)
    )


def _is_of_engine(function: Callable[..., Any]) -> bool:
    first, *inner = _homes(function)
    return first.startswith(_ENGINES) and all(home.startswith((*_ENGINES, *_LIBRARIES)) for home in inner)


def _is_library(function: Callable[..., Any]) -> bool:
    return all(home.startswith(_LIBRARIES) for home in _homes(function))


def _homes(function: Any) -> Iterator[str]:
    """The modules that a function, and what it says that it wraps, were written in."""
    while function is not None:
        if isinstance(function, partial):
            if any(isinstance(value, Tensor) for value in (*function.args, *function.keywords.values())):
                yield "a method's tensor"
            function = function.func
        written = getattr(function, "__globals__", None)  # a wrapper takes the name of what it wraps, but not these
        yield f"{written['__name__'] if written else getattr(function, '__module__', None)}."
        function = getattr(function, "__wrapped__", None)


def _around(block: "Block", names: frozenset[str]) -> Iterator[nn.Module]:
    """A layer, and its modules that are none of its branches."""
    branches = {*block.attention.modules, *block.mlp.modules}
    yield block.module
    for name, child in block.module.named_children():
        if name not in names and child not in branches:
            yield from child.modules()


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
