"""Keys and values for a layer that a token does not run, projected from the state that it carries.

Later tokens attend to every earlier token in every layer, so a token that skips a layer still owes it keys and
values. They are the layer's own norm, projections and rotation of the carried state (CALM, arXiv:2207.07061), never a
copy of another layer's. The layer's own code computes them: its forward runs with the query part of the projections
left out, up to the call that hands keys and values to the cache.
"""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.contract.linears import LINEAR
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.roles import Fused, expansion, fused_attention, output_features

_KEYS_AND_VALUES = frozenset({"k_proj", "v_proj", "kv_proj", "kv_a_proj_with_mqa", "kv_b_proj"})
"""Linear layers that keys and values are made by; latent attention (DeepSeek) makes them in two steps."""


class KeyValueFill(nn.Module):
    """What a layer hands to the cache for some states, without attending and without the layer's other work.

    Its parts are the projections that it multiplies by, so that its work is counted from them: the layer's own key
    and value projections, or views of the key and value rows of a fused one. The attention's other linear layers give
    zeros, which nothing reads.

    Raises:
        MethodError: the layer's attention has been removed.
        UnsupportedModelError: its keys and values come from no known projection.
    """

    def __init__(self, model: Decoder, block: Block) -> None:
        super().__init__()
        attention: Any = block.attention.modules[0]
        fused = fused_attention(attention, model.config)
        latent = set(expansion(attention))  # runs on what is cached, not on what is about to be
        projections: dict[str, nn.Module] = {}
        replacements: dict[str, nn.Module] = {}
        for path, part in attention.named_modules():
            name = path.rpartition(".")[2]
            if any(path.startswith(f"{kept}.") for kept in projections):  # of what a method put in a projection's place
                continue
            if part not in latent and (name == fused.name if fused else name in _KEYS_AND_VALUES):
                projections[path] = part
            elif isinstance(part, LINEAR):
                replacements[path] = _Zeros(output_features(part))
        if not projections:
            raise UnsupportedModelError(
                f"{type(attention).__name__} has none of {', '.join(sorted(_KEYS_AND_VALUES))}, so keys and values "
                "cannot be made without the rest of the layer"
            )
        counted = dict(projections)
        # A fused projection that a method has replaced runs whole, queries included, and is counted so.
        for path, part in projections.items():
            if fused is not None and _plain(part):
                kind = _KeysAndValues if fused.groups == 1 else _KeysAndValuesByGroup
                counted[path] = replacements[path] = kind(part, fused)
        self.projections = nn.ModuleList(counted.values())
        name = next((name for name, part in block.module.named_children() if part is attention), None)
        if name is None:
            raise MethodError(f"tokens cannot skip layer {block.index}, whose attention is out of the model")
        layer = _altered(block.module, {f"{name}.{path}": part for path, part in replacements.items()})
        self._sliced: dict[str, Any] = {path: counted[path] for path in replacements.keys() & projections.keys()}
        self._heads = (1, 1)
        # In tuples, because modules set as attributes would become parts of this one and be counted.
        self._layer, self._originals = (layer,), (attention, projections)

    def forward(self, states: torch.Tensor, cache_name: str, arguments: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Keys and values of the states.

        Args:
            states: [rows, tokens, width], as they would enter the layer.
            cache_name: the layer's argument for the cache.
            arguments: the layer's other arguments, for these rows.

        Returns:
            Keys and values, each [rows, tokens, heads * head width].

        Raises:
            MethodError: the layer's projections were replaced after the fill was made from them.
        """
        (layer,), (attention, projections) = self._layer, self._originals
        replaced = any(attention.get_submodule(path) is not part for path, part in projections.items())
        if replaced or not all(_plain(projections[path]) for path in self._sliced):
            raise MethodError("a method above one whose tokens skip layers replaced their projections: name it first")
        for sliced in self._sliced.values():
            sliced.follow()
        try:
            type(layer).forward(layer, states, **arguments, **{cache_name: _Interceptor()})
        except _Intercepted as intercepted:
            keys, values = intercepted.args
            self._heads = (keys.shape[1], values.shape[1])
            # [rows, heads, tokens, head width] -> [rows, tokens, heads * head width]
            return keys.transpose(1, 2).flatten(2), values.transpose(1, 2).flatten(2)
        raise UnsupportedModelError(f"{type(layer).__name__} never gave the cache its keys and values")

    def by_head(self, projected: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """What ``forward`` gave last, as a cache takes it: keys and values, each [rows, heads, tokens, head width]."""
        return [
            part.view(*part.shape[:2], heads, -1).transpose(1, 2)
            for part, heads in zip(projected, self._heads, strict=True)
        ]


class _Intercepted(Exception):  # noqa: N818 - control flow, not an error: unwinds out of the layer's forward
    """Carries keys and values, each [rows, heads, tokens, head width]."""


class _Interceptor:
    """In place of a cache: takes keys and values from a layer and leaves the layer's forward."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> None:
        raise _Intercepted(keys, values)


class _Zeros(nn.Module):
    """In place of a projection whose output nothing reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(*states.shape[:-1], self.width)  # [rows, tokens, width]


class _KeysAndValues(nn.Module):
    """In place of a fused projection that stacks all queries, all keys, all values: zeros for the queries.

    Its weight and bias are views of the projection's, of the rows of keys and values.

    Attributes:
        weight: [keys + values, width].
        bias: [keys + values].
        queries: features of the queries.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, projection: Any, fused: Fused) -> None:
        super().__init__()
        self.queries = fused.widths["query"]
        self._source = projection, fused  # in a tuple, as it is no part of this one
        self._seen: tuple[Any, Any] | None = None
        self.follow()
        self.macs_per_token = self.weight.numel()

    def follow(self) -> None:
        """View the weight and bias that the projection has now: a method may have replaced them since."""
        projection, fused = self._source
        weight, bias = now = projection.weight, projection.bias
        if self._seen is not None and weight is self._seen[0] and bias is self._seen[1]:
            return
        self._seen = now
        weight = weight.T if isinstance(projection, Conv1D) else weight  # [queries + keys + values, width]
        self.register_buffer("weight", self._rows(weight, fused.groups).detach())
        self.register_buffer("bias", None if bias is None else self._rows(bias, fused.groups).detach())

    def _rows(self, features: torch.Tensor, groups: int) -> torch.Tensor:
        """Those of keys and values, of [queries + keys + values, ...]."""
        return features[self.queries :]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        projected = linear(states, self.weight, self.bias)  # [rows, tokens, keys + values]
        return pad(projected, (self.queries, 0))  # [rows, tokens, queries + keys + values]


class _KeysAndValuesByGroup(_KeysAndValues):
    """The same for a projection that stacks queries, keys and values group by group, as head by head.

    Attributes:
        weight: [groups, keys and values of one, width].
        bias: [groups, keys and values of one].
        queries: features of one group's queries.
    """

    def _rows(self, features: torch.Tensor, groups: int) -> torch.Tensor:
        return features.view(groups, -1, *features.shape[1:])[:, self.queries :]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        tokens = states.reshape(1, -1, states.shape[-1]).expand(
            len(self.weight), -1, -1
        )  # [groups, rows * tokens, width]
        projected = torch.bmm(tokens, self.weight.mT).transpose(0, 1)  # [rows * tokens, groups, keys and values]
        if self.bias is not None:
            projected = projected + self.bias
        fused = pad(projected, (self.queries, 0))  # [rows * tokens, groups, queries, keys and values]
        return fused.reshape(*states.shape[:-1], -1)  # [rows, tokens, features of all groups]


def _plain(projection: nn.Module) -> bool:
    """Whether a projection multiplies by its weight, and is not replaced by an engine."""
    return isinstance(projection, LINEAR) and "forward" not in vars(projection)


def _altered(module: nn.Module, replacements: dict[str, nn.Module]) -> nn.Module:
    """A copy of a module that shares all its parts, but for some that are replaced by path, and has no hooks."""
    altered = copy.copy(module)
    altered._modules = dict(module._modules)
    altered._forward_hooks, altered._forward_pre_hooks = OrderedDict(), OrderedDict()
    inner: dict[str, dict[str, nn.Module]] = {}
    for path, part in replacements.items():
        name, _, rest = path.partition(".")
        inner.setdefault(name, {})[rest] = part
    for name, parts in inner.items():
        altered._modules[name] = parts[""] if "" in parts else _altered(module.get_submodule(name), parts)
    return altered
