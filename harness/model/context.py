"""What the running forward serves: which documents, where each prompt ends, prefill or decode.

The lm-eval adapter publishes one ForwardContext for every batch through ``Decoder.context``; routers read it to
decide from prompt tokens alone, and the tracer reads it to charge work to documents.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.model.decoder import Decoder


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


def only(model: "Decoder", rows: tuple[int, ...]) -> AbstractContextManager[None]:
    """``ForwardContext.only`` of what the model serves; nothing where it serves nobody."""
    return nullcontext() if model.context is None else model.context.only(rows)
