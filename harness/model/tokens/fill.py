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
from harness.model.roles import Fused, fused_attention, head_width, output_features


class KeyValueFill(nn.Module):
    """What a layer hands to the cache for some states, without attending and without the layer's other work.

    Its parts are the projections that it multiplies by, so that its work is counted from them: the layer's own key
    and value projections, or views of the key and value rows of a fused one.

    Raises:
        MethodError: the layer's attention has been removed.
    """

    def __init__(self, model: Decoder, block: Block) -> None:
        super().__init__()
        attention: Any = block.attention.modules[0]
        self.head_width = head_width(attention, model.config)
        fused = fused_attention(attention, model.config)
        projections = {name: getattr(attention, name) for name in ((fused.name,) if fused else ("k_proj", "v_proj"))}
        counted: list[nn.Module] = list(projections.values())
        replacements: dict[str, nn.Module] = {}
        if fused is None:
            replacements = {"q_proj": _NoQueries(attention.q_proj)}
        elif _plain(projections[fused.name]):
            counted = [_without_queries(projections[fused.name], fused)]
            replacements = {fused.name: counted[0]}
        # A fused projection that a method has replaced runs whole, queries included, and is counted so.
        self.projections = nn.ModuleList(counted)
        name = next((name for name, part in block.module.named_children() if part is attention), None)
        if name is None:
            raise MethodError(f"tokens cannot skip layer {block.index}, whose attention is out of the model")
        layer = _altered(block.module, {name: _altered(attention, replacements)})
        self._sliced = replacements.keys() & projections.keys()
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
        replaced = any(getattr(attention, name) is not part for name, part in projections.items())
        if replaced or not all(_plain(projections[name]) for name in self._sliced):
            raise MethodError(
                "a method replaced projections below a method whose tokens skip layers: name it first, as in a+calm"
            )
        try:
            type(layer).forward(layer, states, **arguments, **{cache_name: _Interceptor()})
        except _Intercepted as intercepted:
            # [rows, heads, tokens, head width] -> [rows, tokens, heads * head width]
            return tuple(part.transpose(1, 2).flatten(2) for part in intercepted.args)
        raise UnsupportedModelError(f"{type(layer).__name__} never gave the cache its keys and values")


class _Intercepted(Exception):  # noqa: N818 - control flow, not an error: unwinds out of the layer's forward
    """Carries keys and values, each [rows, heads, tokens, head width]."""


class _Interceptor:
    """In place of a cache: takes keys and values from a layer and leaves the layer's forward."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> None:
        raise _Intercepted(keys, values)


class _NoQueries(nn.Module):
    """In place of a query projection: zeros, which nothing reads."""

    def __init__(self, queries: nn.Module) -> None:
        super().__init__()
        self.width = output_features(queries)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(*states.shape[:-1], self.width)  # [rows, tokens, heads * head width]


class _KeysAndValues(nn.Module):
    """In place of a fused projection that stacks all queries, all keys, all values: zeros for the queries.

    Args:
        weight: rows of the keys and values, [keys + values, width].
        bias: [keys + values].
        queries: features of the queries.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, queries: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.queries = queries
        self.macs_per_token = weight.numel()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        projected = linear(states, self.weight, self.bias)  # [rows, tokens, keys + values]
        return pad(projected, (self.queries, 0))  # [rows, tokens, queries + keys + values]


class _KeysAndValuesByGroup(_KeysAndValues):
    """The same for a projection that stacks queries, keys and values group by group, as head by head.

    Args:
        weight: [groups, keys and values of one, width].
        bias: [groups, keys and values of one].
        queries: features of one group's queries.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        tokens = states.reshape(1, -1, states.shape[-1]).expand(
            len(self.weight), -1, -1
        )  # [groups, rows * tokens, width]
        projected = torch.bmm(tokens, self.weight.mT).transpose(0, 1)  # [rows * tokens, groups, keys and values]
        if self.bias is not None:
            projected = projected + self.bias
        fused = pad(projected, (self.queries, 0))  # [rows * tokens, groups, queries, keys and values]
        return fused.reshape(*states.shape[:-1], -1)  # [rows, tokens, features of all groups]


def _without_queries(linear: Any, fused: Fused) -> nn.Module:
    """A fused projection's keys and values alone, as views of its weight and bias."""
    weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight  # [queries + keys + values, width]
    queries = fused.widths["query"]
    if fused.groups == 1:
        return _KeysAndValues(weight[queries:], None if linear.bias is None else linear.bias[queries:], queries)
    by_group = weight.view(fused.groups, -1, weight.shape[1])[:, queries:]  # [groups, keys and values of one, width]
    bias = None if linear.bias is None else linear.bias.view(fused.groups, -1)[:, queries:]
    return _KeysAndValuesByGroup(by_group, bias, queries)


def _plain(projection: nn.Module) -> bool:
    """Whether a projection multiplies by its weight, and is not replaced by an engine."""
    return isinstance(projection, LINEAR) and "forward" not in vars(projection)


def _altered(module: nn.Module, replacements: dict[str, nn.Module]) -> nn.Module:
    """A copy of a module that shares all its parts, but for some that are replaced, and has no hooks."""
    altered = copy.copy(module)
    altered._modules = {**module._modules, **replacements}
    altered._forward_hooks, altered._forward_pre_hooks = OrderedDict(), OrderedDict()
    return altered
