"""What a model must have for the exact engines: layer paths, the evaluation of paths and per-token depth.

They call decoder layers in ways that transformers never does: on some rows of a batch, twice, or only as far as their
keys and values. That is exact where a layer hands its keys and values to its own slot of the cache, and keeps nothing
else between tokens. Whatever has not been compared with a plain forward without a cache is refused by name; one command
compares every architecture that transformers has (docs/models.md).
"""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError
from harness.model.forwards import CACHE_NAMES, arguments_of
from harness.model.layouts import layer_number

COMPARED = (
    "afmoe",
    "apertus",
    "arcee",
    "aria_text",
    "axk1",
    "beam",
    "biogpt",
    "bitnet",
    "codegen",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "cwm",
    "deepseek_v2",
    "deepseek_v3",
    "diffllama",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "falcon",
    "flex_olmo",
    "flint",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "granite_swa",
    "granitemoe",
    "granitemoe_swa",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "hy_v3",
    "hyperclovax",
    "internlm3",
    "iquestcoder",
    "jais2",
    "kolibri1",
    "laguna",
    "llama",
    "mellum",
    "mimo_v2_flash",
    "minicpm3",
    "minimax_m2",
    "minimax_m3_vl_text",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "solar_open",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "xglm",
    "youtu",
)
"""``model_type`` of the architectures that are compared, by transformers' names."""

ATTENTION = ("sdpa", "eager")
"""Attention implementations under which they are compared."""


def require_supported(model: Decoder, engine: str) -> None:
    """Refuse a model on which an exact engine would not be exact.

    Args:
        engine: what the user asked for, in the plural: "layer paths".

    Raises:
        UnsupportedModelError: a layer that keeps more than its keys and values in the cache, or another attention
            implementation.
    """
    name = model.kind
    if reason := _reason(model):
        raise UnsupportedModelError(f"{name}: {engine} are not offered, because {reason}")
    attention = model.config._attn_implementation
    if attention not in ATTENTION:
        raise UnsupportedModelError(
            f"{name}: {engine} have not been compared with recomputation under {attention!r} attention; "
            f"give attn_implementation={' or '.join(ATTENTION)}"
        )


def attends_by_place(model: Decoder) -> bool:
    """Whether attention depends on the places of keys among those it is given: ALiBi, and GPT-Neo's own masks."""
    attention = model.anatomy.blocks[0].attention.modules[0]
    masks = any(mask.ndim == 4 and mask.dtype is torch.bool for mask in attention.buffers())
    return masks or bool(getattr(model.config, "alibi", False))


def _reason(model: Decoder) -> str | None:
    """Why the engines cannot hold a model's layers, if they cannot."""
    if model.anatomy.opaque is not None:
        return model.anatomy.opaque
    model_type = model.module.config.model_type
    if model_type not in COMPARED:
        return (
            f"they have not been compared with recomputation on a {model_type!r}; docs/models.md lists on which "
            "architectures they have"
        )
    slots = DynamicCache(config=model.config).layers
    kinds = {type(slot).__name__ for slot in slots if type(slot) not in (DynamicLayer, DynamicSlidingWindowLayer)}
    if kinds:
        return f"its layers keep more than keys and values between tokens ({', '.join(sorted(kinds))})"
    for block in model.live:
        if not set(CACHE_NAMES) & set(arguments_of(block.module)):
            return f"its {type(block.module).__name__} takes no cache by any of the names {', '.join(CACHE_NAMES)}"
        layer_number(block.attention.modules[0])
    return None
