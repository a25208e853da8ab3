"""Keys and values for a layer that a token does not run, projected from the state that it carries.

Later tokens attend to every earlier token in every layer, so a token that skips a layer still owes it keys and
values. They are the layer's own norm, projections and rotation of the carried state (CALM, arXiv:2207.07061), never a
copy of another layer's. The layer's own code computes them: it runs with the query's part left out, up to the place
where it hands keys and values to the cache.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, pad

from harness.contract.anatomy import LINEAR, Block
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError, UnsupportedModelError

FILLABLE = (
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
)
"""The model types whose fill was compared with the layer's own keys and values, under sdpa and eager attention."""

CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
"""What decoder layers call the argument that takes the cache."""


def require_fillable(model: Decoder) -> None:
    """Refuse a model whose layers a token cannot skip here.

    Raises:
        UnsupportedModelError: its type, or its attention implementation, was never compared with a reference.
    """
    kind, attention = model.module.config.model_type, model.config._attn_implementation
    name = f"{type(model.module).__name__} (model_type {kind!r})"
    if kind not in FILLABLE:
        raise UnsupportedModelError(
            f"{name}: tokens cannot skip its layers; filling keys and values is known to be exact for "
            f"{', '.join(FILLABLE)}"
        )
    if attention not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"{name}: tokens cannot skip layers under {attention!r} attention; give attn_implementation=sdpa or eager"
        )


class KeyValueFill(nn.Module):
    """What a layer gives the cache for some states, without attending and without the layer's other work.

    Its parts are the projections that it multiplies by, so that its work is counted by what they are: the layer's own
    key and value projections, or views of the keys' and values' rows of a fused one.
    """

    def __init__(self, model: Decoder, block: Block) -> None:
        super().__init__()
        attention: Any = block.attention.modules[0]
        self.head_width: int = attention.head_size if hasattr(attention, "head_size") else attention.head_dim
        fused = next((name for name in _FUSED if hasattr(attention, name)), None)
        own = (fused,) if fused else ("k_proj", "v_proj")
        projections = {name: getattr(attention, name) for name in own}
        counted = list(projections.values())
        replaced: dict[str, nn.Module] = {}
        if not fused:
            replaced = {"q_proj": _NoQueries(model.config.num_attention_heads * self.head_width)}
        elif _plain(projections[fused]):
            counted = [_FUSED[fused](projections[fused], attention, model.config)]
            replaced = {fused: counted[0]}
        # A fused projection that a method has replaced is run whole, queries included, and counted so.
        self.projections = nn.ModuleList(counted)
        name = next((name for name, part in block.module.named_children() if part is attention), None)
        if name is None:
            raise MethodError(f"tokens cannot skip layer {block.index}, whose attention is out of the model")
        layer = _altered(block.module, {name: _altered(attention, replaced)})
        self._sliced = replaced.keys() & projections.keys()
        # In tuples, because a module's attributes are its parts, which are what is counted.
        self._layer, self._taken = (layer,), (attention, projections)

    def forward(self, states: torch.Tensor, cache_name: str, options: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Keys and values of the states.

        Args:
            states: shape [rows, tokens, width], as they would enter the layer.
            cache_name: the layer's argument for the cache.
            options: the layer's other arguments, for these rows.

        Returns:
            Keys and values, each of shape [rows, tokens, heads * head width].

        Raises:
            MethodError: the layer's projections were replaced after the fill was made from them.
        """
        (layer,), (attention, projections) = self._layer, self._taken
        replaced = any(getattr(attention, name) is not part for name, part in projections.items())
        if replaced or not all(_plain(projections[name]) for name in self._sliced):
            raise MethodError(
                "a method replaced projections below a method whose tokens skip layers: name it first, as in a+calm"
            )
        try:
            type(layer).forward(layer, states, **options, **{cache_name: _Interceptor()})
        except _Intercepted as intercepted:
            return tuple(part.transpose(1, 2).flatten(2) for part in intercepted.args)
        raise UnsupportedModelError(f"{type(layer).__name__} never gave the cache its keys and values")


class _Intercepted(Exception):  # noqa: N818 - no error: the way out of a layer
    """Carries keys and values, each of shape [rows, heads, tokens, head width]."""


class _Interceptor:
    """In a cache's place: takes what a layer gives it and leaves the layer."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> None:
        raise _Intercepted(keys, values)


class _NoQueries(nn.Module):
    """In a query projection's place: zeros, which nothing reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(*states.shape[:-1], self.width)


class _KeysAndValues(nn.Module):
    """In a fused projection's place: its keys' and values' part, with zeros where the queries would be."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, queries: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.queries = queries
        self.macs_per_token = weight.numel()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return pad(linear(states, self.weight, self.bias), (self.queries, 0))


class _KeysAndValuesByHead(_KeysAndValues):
    """The same where every head has its queries, keys and values together; weight [heads, 2 * head width, width]."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        tokens = states.reshape(1, -1, states.shape[-1]).expand(len(self.weight), -1, -1)
        both = torch.bmm(tokens, self.weight.mT).transpose(0, 1)
        if self.bias is not None:
            both = both + self.bias
        return pad(both, (self.queries, 0)).reshape(*states.shape[:-1], -1)


def _from_rows(fused: Any, attention: Any, config: Any) -> nn.Module:
    """Queries first, then keys, then values, as rows (Phi-3)."""
    queries = config.num_attention_heads * attention.head_dim
    return _KeysAndValues(fused.weight[queries:], None if fused.bias is None else fused.bias[queries:], queries)


def _from_columns(fused: Any, attention: Any, config: Any) -> nn.Module:
    """Queries first, then keys, then values, as columns (GPT-2)."""
    return _KeysAndValues(
        fused.weight.T[attention.split_size :], fused.bias[attention.split_size :], attention.split_size
    )


def _from_heads(fused: Any, attention: Any, config: Any) -> nn.Module:
    """Queries, keys and values of one head after another (GPT-NeoX)."""
    width = attention.head_size
    weight = fused.weight.view(config.num_attention_heads, 3 * width, -1)[:, width:]
    bias = None if fused.bias is None else fused.bias.view(config.num_attention_heads, 3 * width)[:, width:]
    return _KeysAndValuesByHead(weight, bias, width)


_FUSED: dict[str, Callable[[Any, Any, Any], nn.Module]] = {
    "qkv_proj": _from_rows,
    "c_attn": _from_columns,
    "query_key_value": _from_heads,
}


def _plain(projection: nn.Module) -> bool:
    """Whether a projection is its weight times the states, and not what an engine put in its place."""
    return isinstance(projection, LINEAR) and "forward" not in vars(projection)


def _altered(module: nn.Module, parts: dict[str, nn.Module]) -> nn.Module:
    """The same module, sharing everything, with other parts in some places and no hooks."""
    altered = copy.copy(module)
    altered._modules = {**module._modules, **parts}
    altered._forward_hooks, altered._forward_pre_hooks = OrderedDict(), OrderedDict()
    return altered
