"""A loaded decoder language model: the module, its tokenizer, its parts, and what the current forward serves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.model.anatomy import Anatomy
from harness.model.context import ForwardContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Decoder:
    """What a method is given to work on.

    Attributes:
        module: the Hugging Face causal language model, in eval mode.
        tokenizer: its tokenizer.
        anatomy: the parts of the dense model; engines change the modules, never this description.
        fingerprint: digest of weights, configuration and tokenizer; keys every cache.
        context: what the running forward serves; None outside an evaluation.
    """

    module: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    anatomy: Anatomy
    fingerprint: str
    context: ForwardContext | None = None

    @property
    def config(self) -> Any:
        """The text part of the model's configuration."""
        return self.module.config.get_text_config()

    @property
    def device(self) -> "torch.device":
        """Where the model's inputs go."""
        device: torch.device = self.module.device
        return device
