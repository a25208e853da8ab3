"""The text a method calibrates on: where it came from, and the same token windows for the same seed."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core.errors import MethodError

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder


@dataclass(frozen=True)
class Question:
    """A training document of a task, as the model is asked it.

    Attributes:
        prompt: what the model reads.
        answers: continuations of the prompt: all choices, or the one right answer.
        right: which of them is right.
        kind: "choice" asks for the likeliest of several answers; "answer" for the right one, written greedily;
            "text" is running text, whose continuation cannot be wrong.
        ends: what ends a written answer, beside the model's own end token.
    """

    prompt: str
    answers: tuple[str, ...]
    right: int
    kind: Literal["choice", "answer", "text"]
    ends: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What the question is told apart by."""
        return hashlib.sha256(json.dumps(astuple(self)).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Workbench:
    """What a long preparation may use beside the model.

    Attributes:
        folder: where finished parts are kept, so that a killed preparation goes on; None: nowhere.
        say: tells the user something.
        bar: shows progress, by the title given, for the length of a ``with`` block.
    """

    folder: Path | None = None
    say: Callable[[str], None] = lambda message: None
    bar: Callable[[str], AbstractContextManager[Any]] = lambda title: nullcontext()


@dataclass(frozen=True)
class Study:
    """Text for preparation, never from a split that is scored.

    Attributes:
        texts: documents, in the order they are used.
        source: where they came from, in words, for the record.
        questions: the same task's training questions, for methods that learn from answers.
        workbench: where preparation keeps finished parts and reports to.
    """

    texts: tuple[str, ...]
    source: str
    questions: tuple[Question, ...] = ()
    workbench: Workbench = field(default=Workbench(), compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the texts and questions themselves; the source's name does not matter."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        for question in self.questions:
            digest.update(question.digest.encode())
        return digest.hexdigest()

    def windows(self, model: "Decoder", *, count: int, length: int) -> Iterator["torch.Tensor"]:
        """Token windows of the joined texts, each of shape [1, length], on the model's device.

        Fewer than ``count`` come when the text runs out; the last may be shorter than ``length``.

        Raises:
            MethodError: the text gives fewer than two tokens.
        """
        import torch

        tokens: list[int] = []
        for text in self.texts:
            tokens += model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if len(tokens) >= count * length:
                break
        if len(tokens) < 2:
            raise MethodError(f"the calibration text from {self.source} is too short: {len(tokens)} tokens")
        for start in range(0, min(len(tokens), count * length), length):
            window = tokens[start : start + length]
            yield torch.tensor([window], device=model.device)
