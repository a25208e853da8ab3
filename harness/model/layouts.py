"""The parts of a decoder: layers, attention, MLP, norms and head, identified by layout or refused by name.

A layout is a set of attribute names, not a model's name: a model with a Llama's parts under a Llama's attribute names
is read as one. Nothing is guessed: a block with a part, or a weight, that its layout does not place is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel

from harness.contract.anatomy import Anatomy, Block, Branch
from harness.core.errors import UnsupportedModelError
from harness.model.forwards import arguments_of
from harness.model.roles import roles_of


@dataclass(frozen=True)
class _Layout:
    """Attribute names of a block's parts; the MLP may be several modules of the block.

    Attributes:
        attention_norms, mlp_norms: (before, after); both branches may be read through one norm.
        parallel: whether both branches read the block's input; None where the configuration says it.
    """

    name: str
    attention: str
    mlp: tuple[str, ...]
    attention_norms: tuple[str | None, str | None]
    mlp_norms: tuple[str | None, str | None]
    parallel: bool | None = False

    @property
    def parts(self) -> set[str]:
        norms = (*self.attention_norms, *self.mlp_norms)
        return {self.attention, *self.mlp, *(norm for norm in norms if norm is not None)}


# (path of the layer list, path of the final norm)
_STACKS = (
    ("model.layers", "model.norm"),
    ("model.layers", "model.final_layernorm"),
    ("model.layers", "model.layer_norm"),
    ("transformer.h", "transformer.ln_f"),
    ("model.decoder.layers", "model.decoder.final_layer_norm"),
    ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    ("biogpt.layers", "biogpt.layer_norm"),
    ("model.language_model.layers", "model.language_model.norm"),
    ("language_model.model.layers", "language_model.model.norm"),
    ("language_model.layers", "language_model.norm"),
)


def _normed_twice(name: str, attention: tuple[str, str], mlp: tuple[str, str]) -> _Layout:
    """Norms before and after both branches, which every architecture names in its own way."""
    return _Layout(name, "self_attn", ("mlp",), attention, mlp)


# Norms are (before, after): `post_attention_layernorm` reads the stream for the MLP in a Llama, but follows
# the attention in a Gemma 2. No two layouts have the same set of parts, so the order does not matter.
_LAYOUTS = (
    _Layout("llama", "self_attn", ("mlp",), ("input_layernorm", None), ("post_attention_layernorm", None)),
    _Layout(
        "granitemoe",
        "self_attn",
        ("block_sparse_moe",),
        ("input_layernorm", None),
        ("post_attention_layernorm", None),
    ),
    _Layout("apertus", "self_attn", ("mlp",), ("attention_layernorm", None), ("feedforward_layernorm", None)),
    _Layout("vaultgemma", "self_attn", ("mlp",), ("input_layernorm", None), ("pre_feedforward_layernorm", None)),
    _normed_twice(
        "gemma2",
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    _normed_twice(
        "glm4",
        ("input_layernorm", "post_self_attn_layernorm"),
        ("post_attention_layernorm", "post_mlp_layernorm"),
    ),
    _normed_twice(
        "afmoe", ("input_layernorm", "post_attention_layernorm"), ("pre_mlp_layernorm", "post_mlp_layernorm")
    ),
    _normed_twice("hyperclovax", ("input_layernorm", "post_norm1"), ("post_attention_layernorm", "post_norm2")),
    _Layout(
        "olmo2",
        "self_attn",
        ("mlp",),
        (None, "post_attention_layernorm"),
        (None, "post_feedforward_layernorm"),
    ),
    _Layout("gpt2", "attn", ("mlp",), ("ln_1", None), ("ln_2", None)),
    _Layout("opt", "self_attn", ("fc1", "fc2"), ("self_attn_layer_norm", None), ("final_layer_norm", None)),
    _Layout("gpt_neox", "attention", ("mlp",), ("input_layernorm", None), ("post_attention_layernorm", None), None),
    _Layout("phi", "self_attn", ("mlp",), ("input_layernorm", None), ("input_layernorm", None), parallel=True),
    _Layout("gptj", "attn", ("mlp",), ("ln_1", None), ("ln_1", None), parallel=True),
    _Layout("falcon", "self_attention", ("mlp",), ("input_layernorm", None), ("input_layernorm", None), parallel=True),
    _Layout("falcon2", "self_attention", ("mlp",), ("ln_attn", None), ("ln_mlp", None), parallel=True),
    _Layout(
        "falcon_sequential",
        "self_attention",
        ("mlp",),
        ("input_layernorm", None),
        ("post_attention_layernorm", None),
    ),
)

LAYER_INDEX_NAMES = ("layer_idx", "layer_id")
"""What modules call the index of their layer; GPT-Neo has the second."""


def layer_number(attention: nn.Module) -> int:
    """The cache slot of an attention, by what it or its inner module (GPT-Neo) calls the index of its layer.

    Raises:
        UnsupportedModelError: it knows no index.
    """
    for part in attention.modules():
        for name in LAYER_INDEX_NAMES:
            if isinstance(number := getattr(part, name, None), int):
                return number
    raise UnsupportedModelError(f"{type(attention).__name__} has no layer_idx, so it has no slot in the cache")


def dissect(module: PreTrainedModel) -> Anatomy:
    """Identify a decoder's parts.

    Raises:
        UnsupportedModelError: the model is no decoder with a language-model head, or a part is missing, unknown, or
            holds weights that could be neither counted nor removed.
    """
    name = f"{type(module).__name__} (model_type {module.config.model_type!r})"
    config = module.config.get_text_config()
    _refuse_kinds(name, config)
    if (reason := _carries_state(module, config)) is not None:
        return _opaque(name, module, reason)
    path, norm_path = _stack(name, module)
    parent_path, _, layers_name = path.rpartition(".")
    layers = attrgetter(path)(module)
    layout = _layout(name, layers[0])
    blocks = tuple(_block(name, layout, index, layer, config) for index, layer in enumerate(layers))
    head, final_norm = module.get_output_embeddings(), _find(module, norm_path)
    for part, what in ((head, "language model head"), (final_norm, f"final norm at {norm_path}")):
        if not isinstance(part, nn.Module):
            raise UnsupportedModelError(f"{name} has no {what}")
    return Anatomy(
        layout=layout.name,
        parent=attrgetter(parent_path)(module),
        layers_name=layers_name,
        blocks=blocks,
        embedding=module.get_input_embeddings(),
        final_norm=final_norm,
        head=head,
    )


def _refuse_kinds(name: str, config: Any) -> None:
    """Refuse what the modules alone do not show."""
    reasons = {
        "it is an encoder-decoder, not a decoder-only language model": config.is_encoder_decoder,
        "it normalises after adding to the residual stream (do_layer_norm_before=False)": (
            getattr(config, "do_layer_norm_before", True) is False
        ),
        "some of its layers reuse other layers' keys and values (num_kv_shared_layers)": (
            getattr(config, "num_kv_shared_layers", 0)
        ),
        "its layers differ in configuration (per_layer_config)": getattr(config, "is_heterogeneous", False),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModelError(f"{name} is not supported: {reason}")


def _carries_state(module: PreTrainedModel, config: Any) -> str | None:
    """Why no layout holds a model some of whose layers scan the text, if they do (Mamba, LFM2, Qwen3-Next)."""
    attention = ("DynamicLayer", "DynamicSlidingWindowLayer")
    kinds = {type(slot).__name__ for slot in DynamicCache(config=config).layers}
    others = sorted(kinds - set(attention))
    if not others and not module._is_stateful:
        return None
    kept = f" ({', '.join(others)} in its cache)" if others else ""
    return f"its layers carry a state from token to token{kept}, and no formula here counts the FLOPs of such a scan"


def _opaque(name: str, module: PreTrainedModel, reason: str) -> Anatomy:
    """A decoder that runs as it is: its embedding and head, and none of its layers."""
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise UnsupportedModelError(f"{name} has no language model head")
    return Anatomy("opaque", module, "", (), embedding, nn.Identity(), head, reason)


def _stack(name: str, module: nn.Module) -> tuple[str, str]:
    stacks = [
        stack for stack in _STACKS if isinstance(layers := _find(module, stack[0]), nn.ModuleList) and len(layers)
    ]
    if stacks:
        return next((stack for stack in stacks if isinstance(_find(module, stack[1]), nn.Module)), stacks[0])
    expected = ", ".join(dict.fromkeys(path for path, _ in _STACKS))
    raise UnsupportedModelError(f"{name}: no list of decoder layers found; looked for {expected}")


def _layout(name: str, layer: nn.Module) -> _Layout:
    # Activations and dropouts hold no weights and may be anywhere; the layout must place everything else.
    names = {name for name, part in layer.named_children() if _holds_weights(part)}
    known = {part for layout in _LAYOUTS for part in layout.parts}
    names |= {name for name, _ in layer.named_children() if name in known}
    for layout in _LAYOUTS:
        if names == layout.parts:
            return layout
    expected = "; ".join(f"{layout.name}: {', '.join(sorted(layout.parts))}" for layout in _LAYOUTS)
    raise UnsupportedModelError(
        f"{name}: its {type(layer).__name__} has the parts {', '.join(sorted(names))}, which is no known "
        f"layout; looked for {expected}"
    )


def _block(name: str, layout: _Layout, index: int, layer: nn.Module, config: Any) -> Block:
    def part(attribute: str | None) -> nn.Module | None:
        return None if attribute is None else getattr(layer, attribute)

    if _layout(name, layer) is not layout:
        raise UnsupportedModelError(f"{name}: layer {index} differs in its parts from layer 0")
    attention = Branch((getattr(layer, layout.attention),), *map(part, layout.attention_norms))
    mlp = Branch(tuple(getattr(layer, attribute) for attribute in layout.mlp), *map(part, layout.mlp_norms))
    for branch in (attention, mlp):
        if "residual" in arguments_of(branch.modules[0]):
            raise UnsupportedModelError(
                f"{name}: {type(branch.modules[0]).__name__} adds the residual stream itself, so a branch cannot be "
                "told from what it is added to"
            )
    if any(isinstance(part, nn.ModuleList) and path.endswith("experts") for path, part in layer.named_modules()):
        raise UnsupportedModelError(
            f"{name}: layer {index} keeps its experts apart, in a list, and which of them a token runs is not seen"
        )
    weight = next(_misplaced(layer, attention, mlp), None)
    if weight is not None:
        raise UnsupportedModelError(
            f"{name}: layer {index} keeps {weight} outside the linear layers, experts and norms of its attention and "
            "MLP, so its work could be neither counted nor removed"
        )
    roles = roles_of(layer, attention.modules[0], mlp.modules, config)
    parallel = layout.parallel if layout.parallel is not None else bool(config.use_parallel_residual)
    return Block(index, layer, attention, mlp, parallel, roles)


def _misplaced(layer: nn.Module, attention: Branch, mlp: Branch) -> Iterator[str]:
    """Names of the layer's own parameters, and of matrices of its branches that nothing counts."""
    counted = {id(weight) for branch in (attention, mlp) for part in branch.linears() for weight in part.parameters()}
    for experts in filter(None, (attention.experts, mlp.experts)):
        counted |= {id(weight) for part in (experts.module, *experts.routers) for weight in part.parameters()}
    owners = dict(layer.named_modules())
    for name, parameter in layer.named_parameters():
        owner = owners[name.rpartition(".")[0]]
        is_norm = "Norm" in type(owner).__name__  # Cohere's have a row for each head
        if "." not in name or (parameter.ndim >= 2 and id(parameter) not in counted and not is_norm):
            yield name


def _holds_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _find(module: nn.Module, path: str) -> Any:
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None


def branch_names(layout: str) -> tuple[str, tuple[str, ...]]:
    """What a block of a layout calls its attention, and the modules of its MLP in order."""
    known = next(each for each in _LAYOUTS if each.name == layout)
    return known.attention, known.mlp
