"""Tiny random decoders of representative families, built in code in milliseconds, the same for a seed.

They are for tests of engines and methods, where what matters is that every part does something: weights are
far from zero, norms differ from identity, and windows are short enough to slide.
"""

import hashlib
import math
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.contract.decoder import Decoder
from harness.model.layouts import dissect

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Attention = Literal["sdpa", "eager"]

POSITIONS = 256
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
VOCABULARY = len(SPECIAL_TOKENS) + 256

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    **_TOKENS,
}
_GEMMA = {**_LLAMA, "head_dim": 8}
_NEOX = {**_LLAMA, "rotary_pct": 0.5, "hidden_dropout": 0.0}
_HYBRID = {**_GEMMA, "sliding_window": 6}

# family -> (model_type, configuration without the number of layers)
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 6}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 8}),
    "gemma": ("gemma", _GEMMA),
    "gemma2": ("gemma2", {**_HYBRID, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("gemma3_text", {**_HYBRID, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3", {}),
    "phi3": ("phi3", _LLAMA),
    "gpt2": ("gpt2", {"n_embd": 32, "n_head": 4, "n_positions": POSITIONS, **_TOKENS}),
    "opt": (
        "opt",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
            **_TOKENS,
        },
    ),
    "gpt_neox": ("gpt_neox", _NEOX),
    "gpt_neox_sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "olmo2": ("olmo2", _LLAMA),
}
FAMILIES: tuple[str, ...] = tuple(_CONFIGS)

# Gemma 2 caps attention scores, which transformers computes in its eager path alone.
EAGER_ONLY = frozenset({"gemma2"})


def tiny_model(
    family: str, *, layers: int = 4, attention: Attention | None = None, seed: int = 0, **config: Any
) -> "PreTrainedModel":
    """A random model in eval mode and float32; the global random state is left as it was.

    Args:
        family: one of ``FAMILIES``.
        layers: decoder layers; hybrid families alternate sliding and full attention.
        attention: the attention implementation; None takes sdpa where the family has it.
        seed: decides every weight.
        config: fields of the Hugging Face configuration to set or override.
    """
    key = repr((family, layers, attention, seed, sorted(config.items())))
    if key not in _MADE:
        _MADE[key] = _made(family, layers, attention, seed, config)
    return deepcopy(_MADE[key])


_MADE: dict[str, "PreTrainedModel"] = {}
"""Models that were asked for before: a copy is made in half of the time."""


def _made(
    family: str, layers: int, attention: Attention | None, seed: int, config: dict[str, Any]
) -> "PreTrainedModel":
    model_type, fields = _CONFIGS[family]
    fields = {**fields, "num_hidden_layers": layers, **config}
    if family in ("gemma2", "gemma3_text"):
        fields.setdefault("layer_types", _alternating(layers))
    if family == "gemma3":
        fields = _multimodal(layers, config)
    auto = AutoModelForImageTextToText if family == "gemma3" else AutoModelForCausalLM
    default: Attention = "eager" if family in EAGER_ONLY else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(
            CONFIG_MAPPING[model_type](**fields), attn_implementation=attention or default
        )
        _randomise(model)
    return model.float().eval()


def tiny_tokenizer() -> "PreTrainedTokenizerBase":
    """One token per byte, so any text encodes and decodes; ids 0 to 2 are padding, begin and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, begin, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        model_max_length=POSITIONS,
        padding_side="left",
    )


def tiny_decoder(family: str, *, device: str = "cpu", **options: Any) -> Decoder:
    """A tiny model with its tokenizer and anatomy on a device; ``options`` are those of ``tiny_model``."""
    module = tiny_model(family, **options)
    digest = hashlib.sha256(module.config.to_json_string().encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    module.to(device)
    return Decoder(module=module, tokenizer=tiny_tokenizer(), anatomy=dissect(module), fingerprint=digest.hexdigest())


def _alternating(layers: int) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]


def _multimodal(layers: int, config: dict[str, Any]) -> dict[str, Any]:
    text = {
        **_HYBRID,
        "query_pre_attn_scalar": 8,
        "num_hidden_layers": layers,
        "layer_types": _alternating(layers),
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    return {"text_config": text | config, "vision_config": vision, "mm_tokens_per_image": 4}


@torch.no_grad()
def _randomise(model: "PreTrainedModel") -> None:
    """Weights of unit gain, embeddings of unit size, and norms and biases that differ from one and zero."""
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter is embedding:
            parameter.normal_()
        elif parameter.ndim >= 2:
            parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
        else:
            parameter.add_(torch.empty_like(parameter).normal_(std=0.1))
