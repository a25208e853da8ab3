"""Where the exact engines are exact: architectures and attention implementations compared with recomputation.

Layer paths, the evaluation of paths and per-token depth call parts of decoder layers in ways that transformers never
does. Whatever has not been compared with a plain forward without a cache is refused by name.
"""

from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError

MODEL_TYPES = (
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
"""``model_type`` of the architectures that the tests compare, by transformers' names."""

ATTENTION = ("sdpa", "eager")
"""Attention implementations under which they are compared."""


def require_supported(model: Decoder, engine: str) -> None:
    """Refuse a model on which an exact engine has not been compared with recomputation.

    Args:
        engine: what the user asked for, in the plural: "layer paths".

    Raises:
        UnsupportedModelError: another architecture or attention implementation.
    """
    model_type, attention = model.module.config.model_type, model.config._attn_implementation
    name = f"{type(model.module).__name__} (model_type {model_type!r})"
    if model_type not in MODEL_TYPES:
        raise UnsupportedModelError(
            f"{name}: {engine} are not offered, because they have not been compared with recomputation on it; "
            f"they have on {', '.join(MODEL_TYPES)}"
        )
    if attention not in ATTENTION:
        raise UnsupportedModelError(
            f"{name}: {engine} have not been compared with recomputation under {attention!r} attention; "
            f"give attn_implementation={' or '.join(ATTENTION)}"
        )
