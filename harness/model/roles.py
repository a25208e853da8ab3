"""What the linear layers of a block compute: queries, keys, values, outputs, gates; also where one holds several.

Told by the names of the linear layers, which many architectures share, and for a fused one by how its model splits its
output. A linear layer whose name or width is another has no role here, rather than a guessed one.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from harness.contract.anatomy import Role, Slice
from harness.contract.linears import LINEAR

_ATTENTION: dict[str, Role] = {
    **dict.fromkeys(("q_proj", "q_b_proj", "Wq"), "query"),
    **dict.fromkeys(("k_proj", "Wk"), "key"),
    **dict.fromkeys(("v_proj", "Wv"), "value"),
    **dict.fromkeys(("o_proj", "out_proj", "dense", "c_proj"), "output"),
}
_MLP: dict[str, Role] = {
    "gate_proj": "gate",
    **dict.fromkeys(("up_proj", "c_fc", "fc1", "fc_in", "dense_h_to_4h"), "up"),
    **dict.fromkeys(("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h"), "down"),
}


@dataclass(frozen=True)
class Fused:
    """How a linear layer's output is split between roles.

    Attributes:
        name: of the linear layer in its branch.
        groups: how many times the pattern of widths repeats: 1 for all queries, all keys, all values (Phi-3, GPT-2);
            the heads where queries, keys and values of one head follow another's (GPT-NeoX); the key-value heads where
            each has a group of queries (Falcon).
        widths: features of each role in one group, in their order.
    """

    name: str
    groups: int
    widths: Mapping[Role, int]

    def slices(self, linear: nn.Module) -> Iterator[tuple[Role, Slice]]:
        """Each role's output features, in the order in which its heads are numbered; none if the widths do not fit."""
        group = sum(self.widths.values())
        if output_features(linear) != self.groups * group:
            return
        start = 0
        for role, width in self.widths.items():
            if self.groups == 1:
                yield role, Slice(linear, slice(start, start + width))
            else:
                features = torch.arange(self.groups * group).view(self.groups, group)  # [groups, features of one]
                yield role, Slice(linear, features[:, start : start + width].flatten())
            start += width


def roles_of(layer: nn.Module, attention: nn.Module, mlp: Iterable[nn.Module], config: Any) -> dict[Role, Slice]:
    """The roles of a decoder layer's linear layers, as far as they are known."""
    roles: dict[Role, Slice] = {}
    fused = fused_attention(attention, config)
    for path, part in attention.named_modules():
        name = path.rpartition(".")[2]
        if fused is not None and name == fused.name:
            roles.update(fused.slices(part))
        elif name in _ATTENTION and isinstance(part, LINEAR):
            roles[_ATTENTION[name]] = Slice(part)
    for module in mlp:
        siblings = layer if isinstance(module, LINEAR) else module  # OPT's fc1 and fc2 are parts of the layer
        for name, part in siblings.named_children():
            if name in _MLP and isinstance(part, LINEAR):
                roles[_MLP[name]] = Slice(part)
            elif name == "gate_up_proj" and isinstance(part, LINEAR):
                roles.update(_halves(name, part))
    up, down = roles.get("up"), roles.get("down")
    if up and down and "gate" not in roles and output_features(up.module) == 2 * input_features(down.module):
        roles.update(_halves("up", up.module))  # Moshi's fc1 is of both
    return roles


def _halves(name: str, linear: nn.Module) -> Iterator[tuple[Role, Slice]]:
    half = output_features(linear) // 2
    return Fused(name, 1, {"gate": half, "up": half}).slices(linear)


def fused_attention(attention: Any, config: Any) -> Fused | None:
    """How an attention's projection of queries, keys and values together is split; None where they are apart.

    An attention that was narrowed has a configuration with the numbers of its own heads.
    """
    config = getattr(attention, "config", config)
    names = ("qkv_proj", "c_attn", "query_key_value", "Wqkv")
    name = next((name for name in names if isinstance(getattr(attention, name, None), nn.Module)), None)
    if name is None:
        return None
    heads = int(config.num_attention_heads)
    width = head_width(attention, config)
    by_head: dict[Role, int] = {"query": width, "key": width, "value": width}
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    if config.model_type == "codegen":  # four parts, one for each device that it was trained on, values before keys
        part = heads * width // 4
        return Fused(name, 4, {"query": part, "value": part, "key": part})
    if getattr(attention, "new_decoder_architecture", False):
        kv_heads = int(attention.num_kv_heads)
        return Fused(name, kv_heads, {**by_head, "query": heads // kv_heads * width})
    multi_query = getattr(attention, "multi_query", None)
    if (name == "query_key_value" and not multi_query) or multi_query is False:
        return Fused(name, heads, by_head)
    if multi_query:
        kv_heads = 1
    return Fused(name, 1, {"query": heads * width, "key": kv_heads * width, "value": kv_heads * width})


def head_width(attention: Any, config: Any) -> int:
    """Features of one head's queries, by the attention's own account where it has one."""
    own = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    return int(own or getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def output_features(linear: nn.Module) -> int:
    """The width of a linear layer's output."""
    return int(cast("Any", linear).nf if hasattr(linear, "nf") else cast("Any", linear).out_features)


def input_features(linear: nn.Module) -> int:
    """The width of what a linear layer reads."""
    return int(cast("Any", linear).nx if hasattr(linear, "nx") else cast("Any", linear).in_features)


def expansion(attention: Any) -> list[nn.Module]:
    """The linear layers that make keys and values of a compressed cache, where it is the latents that are cached."""
    return [attention.kv_b_proj] if hasattr(attention, "expand_kv") else []
