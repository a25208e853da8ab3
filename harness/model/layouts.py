"""The parts of a decoder: layers, attention, MLP, norms and head, identified by layout or refused by name.

A layout is a set of attribute names, not a model's name: a model with a Llama's parts under a Llama's attribute names
is read as one. Nothing is guessed: a block with a part, or a weight, that its layout does not place is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from harness.contract.anatomy import Anatomy, Block, Branch
from harness.core.errors import UnsupportedModelError
from harness.model.roles import roles_of


@dataclass(frozen=True)
class _Layout:
    """Attribute names of a block's parts; the MLP may be several modules of the block."""

    name: str
    attention: str
    mlp: tuple[str, ...]
    attention_norms: tuple[str | None, str | None]
    mlp_norms: tuple[str | None, str | None]

    @property
    def parts(self) -> set[str]:
        norms = (*self.attention_norms, *self.mlp_norms)
        return {self.attention, *self.mlp, *(norm for norm in norms if norm is not None)}


# (path of the layer list, path of the final norm)
_STACKS = (
    ("model.layers", "model.norm"),
    ("transformer.h", "transformer.ln_f"),
    ("model.decoder.layers", "model.decoder.final_layer_norm"),
    ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    ("model.language_model.layers", "model.language_model.norm"),
    ("language_model.model.layers", "language_model.model.norm"),
    ("language_model.layers", "language_model.norm"),
)

# Norms are (before, after): `post_attention_layernorm` reads the stream for the MLP in a Llama, but follows
# the attention in a Gemma 2. No two layouts have the same set of parts, so the order does not matter.
_LAYOUTS = (
    _Layout("llama", "self_attn", ("mlp",), ("input_layernorm", None), ("post_attention_layernorm", None)),
    _Layout(
        "gemma2",
        "self_attn",
        ("mlp",),
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    _Layout(
        "olmo2",
        "self_attn",
        ("mlp",),
        (None, "post_attention_layernorm"),
        (None, "post_feedforward_layernorm"),
    ),
    _Layout("gpt2", "attn", ("mlp",), ("ln_1", None), ("ln_2", None)),
    _Layout("opt", "self_attn", ("fc1", "fc2"), ("self_attn_layer_norm", None), ("final_layer_norm", None)),
    _Layout("gpt_neox", "attention", ("mlp",), ("input_layernorm", None), ("post_attention_layernorm", None)),
)

LAYER_INDEX_NAMES = ("layer_idx", "layer_id")
"""What modules call the index of their layer; GPT-Neo has the second."""


def dissect(module: PreTrainedModel) -> Anatomy:
    """Identify a decoder's parts.

    Raises:
        UnsupportedModelError: the model is no decoder with a language-model head, or a part is missing, unknown, or
            holds weights that could be neither counted nor removed.
    """
    name = f"{type(module).__name__} (model_type {module.config.model_type!r})"
    config = module.config.get_text_config()
    _refuse_kinds(name, config)
    path, norm_path = _stack(name, module)
    parent_path, _, layers_name = path.rpartition(".")
    layers = attrgetter(path)(module)
    layout = _layout(name, layers[0])
    parallel = bool(getattr(config, "use_parallel_residual", False))
    blocks = tuple(_block(name, layout, index, layer, parallel, config) for index, layer in enumerate(layers))
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


def _stack(name: str, module: nn.Module) -> tuple[str, str]:
    for path, norm_path in _STACKS:
        layers = _find(module, path)
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            return path, norm_path
    expected = ", ".join(path for path, _ in _STACKS)
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


def _block(name: str, layout: _Layout, index: int, layer: nn.Module, parallel: bool, config: Any) -> Block:
    def part(attribute: str | None) -> nn.Module | None:
        return None if attribute is None else getattr(layer, attribute)

    if _layout(name, layer) is not layout:
        raise UnsupportedModelError(f"{name}: layer {index} differs in its parts from layer 0")
    attention = Branch((getattr(layer, layout.attention),), *map(part, layout.attention_norms))
    mlp = Branch(tuple(getattr(layer, attribute) for attribute in layout.mlp), *map(part, layout.mlp_norms))
    weight = next(_misplaced(layer, attention, mlp), None)
    if weight is not None:
        raise UnsupportedModelError(
            f"{name}: layer {index} keeps {weight} outside the linear layers and norms of its attention and "
            "MLP, so its work could be neither counted nor removed (mixture-of-experts layers do this)"
        )
    roles = roles_of(layer, attention.modules[0], mlp.modules, config)
    return Block(index, layer, attention, mlp, parallel, roles)


def _misplaced(layer: nn.Module, attention: Branch, mlp: Branch) -> Iterator[str]:
    """Names of the layer's own parameters, and of matrices that belong to no linear layer of its branches."""
    linears = {id(weight) for branch in (attention, mlp) for part in branch.linears() for weight in part.parameters()}
    for name, parameter in layer.named_parameters():
        if "." not in name or (parameter.ndim >= 2 and id(parameter) not in linears):
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
