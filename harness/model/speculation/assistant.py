"""Drafts by another checkpoint, whose weights, reads and multiplications count as the method's."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.contract.decoder import Decoder
from harness.contract.identity import tokenizer_digest
from harness.contract.linears import LINEAR
from harness.core.errors import MethodError
from harness.core.strangers import message_of
from harness.model.layouts import dissect
from harness.model.speculation.drafts import CachedDraft

KIND = "draft"
"""What a trace calls the work of guessing that is done by no part of the model."""


def require_assistant(folder: Path) -> None:
    """Refuse what is no folder with a model in safetensors.

    Raises:
        MethodError: with what would be right.
    """
    if not (folder / "config.json").is_file():
        raise MethodError(f"assistant: model={folder} is no folder with a model, which has a config.json")
    if not any(folder.glob("*.safetensors")):
        raise MethodError(f"assistant: model={folder} has no safetensors files, and pickled weights are not read")


@contextmanager
def assisted_by(model: Decoder, folder: Path) -> Iterator["AssistantDraft"]:
    """A draft by the model in a folder, for ``speculated``; for the length of the block its weights are the model's.

    Raises:
        MethodError: there is none, it has another tokenizer, or what it multiplies is not known.
    """
    require_assistant(folder)
    _require_tokenizer(model, folder)
    assistant = _loaded(str(folder.resolve()), model.module.dtype, model.config._attn_implementation, model.device)
    draft = AssistantDraft(model, assistant)
    model.module.add_module("assistant", assistant)
    try:
        yield draft
    finally:
        del model.module.assistant


class AssistantDraft(CachedDraft):
    """Another model's greedy continuation, with a cache of its own; see ``assisted_by``.

    Raises:
        MethodError: attention or experts whose work follows from no number of weights.
    """

    def __init__(self, model: Decoder, assistant: Any) -> None:
        self._model, self._assistant = model, assistant
        self._vocabulary = model.module.get_input_embeddings().weight.shape[0]
        anatomy = dissect(assistant)
        attentions = [block.attention.modules[0] for block in anatomy.blocks]
        unusual = any(hasattr(attention, name) for attention in attentions for name in ("qk_head_dim", "lambda_q1"))
        if anatomy.opaque or unusual or any(block.mlp.experts for block in anatomy.blocks):
            raise MethodError(
                f"assistant: what a {type(assistant).__name__} multiplies is not known: give one with plain attention "
                "and without experts"
            )
        inner: list[Any] = [part for part in assistant.modules() if isinstance(part, LINEAR)]
        head = assistant.get_output_embeddings()
        self._head = head.weight.numel()
        self._linear = sum(part.weight.numel() for part in inner if part is not head)
        self._bytes = sum(part.weight.nbytes for part in {*inner, head})
        config = assistant.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._pair = 2 * config.num_attention_heads * width
        self._positions = getattr(config, "max_position_embeddings", None) or inf
        super().__init__(config, model.device)

    def __call__(self, context: list[int], count: int) -> list[int]:
        """The assistant's continuation; none of a text that it has no positions for."""
        return super().__call__(context, count) if len(context) + count <= self._positions else []

    @torch.no_grad()
    def read(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """The assistant's logits of the model's tokens after the last of these, [vocabulary]."""
        tokens = ids.shape[1]
        met = sum(slot.get_mask_sizes(tokens)[0] for slot in cache.layers)  # key positions, over its layers
        last = {"logits_to_keep": 1} if self._assistant._supports_logits_to_keep() else {}
        logits = self._assistant(input_ids=ids, past_key_values=cache, use_cache=True, **last).logits
        macs = tokens * (self._linear + self._pair * met) + logits.shape[1] * self._head
        self._model.charge(KIND, macs=macs, bytes=self._bytes, tokens=tokens)
        of_model: torch.Tensor = logits[0, -1, : self._vocabulary]
        return of_model


def _require_tokenizer(model: Decoder, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a stranger's files; whatever fails is about the tokenizer
        raise MethodError(
            f"assistant: the tokenizer of {folder} is missing or cannot be loaded: {message_of(error)}"
        ) from error
    if tokenizer_digest(tokenizer) != tokenizer_digest(model.tokenizer):
        raise MethodError(
            f"assistant: model={folder} has another vocabulary than the model whose text it is to guess: give one with "
            "the same tokenizer"
        )


@lru_cache(maxsize=1)
def _loaded(folder: str, dtype: torch.dtype, attention: str, device: torch.device) -> nn.Module:
    """The model in a folder; it is kept, as a run attaches its methods many times."""
    from transformers import AutoModelForCausalLM

    try:
        module = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except Exception as error:  # a stranger's files; whatever fails is about the model
        raise MethodError(f"assistant: the model in {folder} cannot be loaded: {message_of(error)}") from error
    placed: nn.Module = module.to(device).eval().requires_grad_(False)
    return placed
