"""A loaded decoder language model: the module, its tokenizer, its parts, and what the current forward serves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.model.anatomy import Anatomy
from harness.model.context import ForwardContext

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Auxiliary:
    """A module that a method adds and runs, whose work is charged beside the model's own.

    Attributes:
        kind: "router" and "exit" decide what runs; "fill" projects keys and values alone, for a layer that a token
            does not run.
        layer: the dense layer that a "fill" fills.
    """

    module: "nn.Module"
    kind: Literal["router", "exit", "fill"]
    layer: int | None = None


@dataclass
class Decoder:
    """What a method is given to work on.

    Attributes:
        module: the Hugging Face causal language model, in eval mode.
        tokenizer: its tokenizer.
        anatomy: the parts of the dense model; engines change the modules, never this description.
        fingerprint: digest of weights, configuration and tokenizer; keys every cache.
        context: what the running forward serves; None outside an evaluation.
        auxiliaries: what the attached methods add and run; a method puts its own in for as long as it is attached.
    """

    module: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    anatomy: Anatomy
    fingerprint: str
    context: ForwardContext | None = None
    auxiliaries: list[Auxiliary] = field(default_factory=list)

    @property
    def config(self) -> Any:
        """The text part of the model's configuration."""
        return self.module.config.get_text_config()

    @property
    def device(self) -> "torch.device":
        """Where the model's inputs go."""
        device: torch.device = self.module.device
        return device

    @contextmanager
    def assisted(self, auxiliaries: Sequence[Auxiliary]) -> Iterator[None]:
        """Charge what these modules do for the length of a ``with`` block."""
        before = list(self.auxiliaries)
        self.auxiliaries += auxiliaries
        try:
            yield
        finally:
            self.auxiliaries[:] = before
