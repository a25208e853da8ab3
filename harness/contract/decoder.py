"""A loaded decoder language model: the module, its tokenizer, its parts, and what the current forward serves.

The lm-eval adapter publishes one ForwardContext for every batch through ``Decoder.context``; routers read it to
decide from prompt tokens alone, and the tracer reads it to charge work to documents.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.contract.anatomy import Anatomy

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        task: the lm-eval task's name.
        document: its document's index in the task (``doc_id``).
        requests: the request indices within the document that this row answers; several where answer choices of
            one token share a forward.
        prompt_length: tokens of the row that belong to the prompt; a decision may look at these and no others.
        length: tokens of the row without padding.
    """

    task: str
    document: int
    requests: tuple[int, ...]
    prompt_length: int
    length: int


@dataclass
class ForwardContext:
    """The batch that the model is working on.

    Attributes:
        rows: the batch's rows, in order.
        kind: "score" is one forward over prompt and continuation; "generate" is a prefill and decode steps.
        padding: the side on which shorter rows are filled up.
        decoding: False during the first forward, True in the decode steps after it.
        active: indices of the rows in the module that is running now, when an engine runs a part of the batch;
            None means all of them.
    """

    rows: tuple[Row, ...]
    kind: Literal["score", "generate"]
    padding: Literal["left", "right"]
    decoding: bool = False
    active: tuple[int, ...] | None = field(default=None)

    @contextmanager
    def only(self, rows: tuple[int, ...]) -> Iterator[None]:
        """Declare that the modules run inside the ``with`` block see these rows alone."""
        outer, self.active = self.active, rows
        try:
            yield
        finally:
            self.active = outer


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


def only(model: "Decoder", rows: tuple[int, ...]) -> AbstractContextManager[None]:
    """``ForwardContext.only`` of what the model serves; nothing where it serves nobody."""
    return nullcontext() if model.context is None else model.context.only(rows)
