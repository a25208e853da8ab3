"""The decoder in training: the arithmetic of ``LlamaForCausalLM``, with layers that can be skipped.

Training needs three things that a modelling file of transformers does not offer: a set of layers to skip in
this forward, the hidden state at an exit, and small code that compiles. Parameter names follow transformers,
so that exporting is saving the state dict; a test compares the logits.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

WRITTEN_OUT: Final = 256
"""Rows of up to so many tokens have attention written out: on a CPU the fused kernel's backward is slow for them."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of the decoder; the names are those of ``LlamaConfig``."""

    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    rope_theta: float = 100000.0
    rms_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def config(self, *, end: int) -> dict[str, Any]:
        """The ``config.json`` of the exported model; ``end`` is the token that begins and ends documents.

        It computes in float32, whatever its file holds: not every processor has fast arithmetic in bfloat16.
        """
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "rope_parameters": rope,
            "initializer_range": 0.02,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "dtype": "float32",
        }


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        width, keys = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Map [rows, tokens, width] to the same shape.

        ``cos`` and ``sin`` are [tokens, head_dim]; ``mask`` is [rows or 1, tokens, tokens], None for causal.
        """
        rows, tokens, width = x.shape
        query, key, value = (
            projection(x).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        if mask is None:
            mixed = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            mixed = _attend(query, key, value, mask)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return out


class Mlp(nn.Module):
    """The gated feed-forward half of a layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, tokens, width] to the same shape."""
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Norm(nn.Module):
    """Root-mean-square normalization with a learned scale."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden_size))
        self.eps = shape.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension in float32."""
        return rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Layer(nn.Module):
    """One decoder layer: attention, then the feed-forward half, each added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = Norm(shape)
        self.post_attention_layernorm = Norm(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Map the residual stream [rows, tokens, width] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Network(nn.Module):
    """The decoder: embedding, layers that may be skipped, final norm and head."""

    def __init__(self, shape: Shape, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self._initialize(torch.Generator().manual_seed(seed))

    def _initialize(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                # What writes to the residual stream starts at zero: every layer starts as the identity.
                nn.init.zeros_(parameter)
            elif name.startswith("embed_tokens"):
                # Large and not tied to the head: words of one kind must not become one word before copying starts.
                nn.init.normal_(parameter, generator=generator)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)

    def forward(
        self,
        tokens: Tensor,
        *,
        owner: Tensor | None = None,
        skip: Collection[int] = (),
        exit_at: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The final hidden state and the one after layer ``exit_at``, both normalized: [rows, tokens, width].

        ``owner`` [rows, tokens] numbers the documents of packed rows; attention stays within each.
        """
        length = tokens.shape[1]
        cos, sin = _angles(length, self.shape)
        mask = _mask(length, owner) if length <= WRITTEN_OUT else None
        x, early = self.embed_tokens(tokens), None
        for index, layer in enumerate(self.layers):
            if index not in skip:
                x = layer(x, cos, sin, mask)
            if index == exit_at:
                early = self.norm(x)
        return self.norm(x), early


def _angles(tokens: int, shape: Shape) -> tuple[Tensor, Tensor]:
    frequency = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angle = torch.arange(tokens)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def _mask(length: int, owner: Tensor | None) -> Tensor:
    """What to add to the scores, [rows or 1, tokens, tokens]: 0 where a token may look, -1e9 elsewhere."""
    allowed = torch.ones(length, length, dtype=torch.bool).tril()[None]
    if owner is not None:
        allowed = allowed & (owner[:, :, None] == owner[:, None, :])
    return torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill(~allowed, -1e9)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of [rows, heads, tokens, channels] to grouped keys and values, in the shape of the query."""
    rows, heads, tokens, channels = query.shape
    groups = key.shape[1]
    grouped = query.reshape(rows, groups, -1, channels) * channels**-0.5
    scores = (grouped @ key.transpose(2, 3)).view(rows, groups, -1, tokens, tokens) + mask[:, None, None]
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed: Tensor = weights.view(rows, groups, -1, tokens) @ value
    return mixed.view(rows, heads, tokens, channels)
