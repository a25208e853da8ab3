"""What a preparation may look at: text, questions and the dense model's logits, the same for the same seed.

Nothing that is scored is in it. A method that takes what it learns from here alone cannot have seen a test.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, field, replace
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
class Needs:
    """What a preparation reads beside the model.

    Attributes:
        questions: training questions of the task, at most.
        documents: training documents that its text is made of, at most.
        teacher: whether it asks for the dense model's logits (``Study.teacher``).
    """

    questions: int = 0
    documents: int = 256
    teacher: bool = False

    @classmethod
    def of_all(cls, several: "Iterable[Needs]") -> "Needs":
        """What several methods need together; of none, nothing."""
        several = tuple(several)
        return cls(
            max((needs.questions for needs in several), default=0),
            max((needs.documents for needs in several), default=0),
            any(needs.teacher for needs in several),
        )


@dataclass(frozen=True)
class Workbench:
    """What a long preparation may use beside the model.

    Attributes:
        folder: where finished parts are kept, so that a killed preparation goes on; None: nowhere.
        say: tells the user something.
        bar: shows progress, by the title given, for the length of a ``with`` block.
        trained: states of the trainings that this preparation has finished.
    """

    folder: Path | None = None
    say: Callable[[str], None] = lambda message: None
    bar: Callable[[str], AbstractContextManager[Any]] = lambda title: nullcontext()
    trained: set[Path] = field(default_factory=set, init=False, compare=False)  # not passed on to another preparation


@dataclass(frozen=True)
class Study:
    """What ``prepare`` may look at, never from a split that is scored.

    Attributes:
        texts: documents, in the order they are used.
        source: where they came from, in words, for the record.
        questions: the same task's training questions, for methods that learn from answers.
        workbench: where preparation keeps finished parts and reports to.
        dense: the dense model, where a method needs it (``Needs.teacher``): whatever is attached to the model that is
            prepared, and whatever is trained of it, this one stays as it is.
        whole: whether the texts are all there is of their source, and not a sample that more can be drawn for.
    """

    texts: tuple[str, ...]
    source: str
    questions: tuple[Question, ...] = ()
    workbench: Workbench = field(default=Workbench(), compare=False)
    dense: "Decoder | None" = field(default=None, compare=False, repr=False)
    whole: bool = field(default=False, compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the texts and questions themselves; the source's name does not matter."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        for question in self.questions:
            digest.update(question.digest.encode())
        return digest.hexdigest()

    @property
    def amount(self) -> str:
        """Where the text came from and how much of it there is, in words."""
        parts = [f"{len(self.texts)} document{'s' * (len(self.texts) != 1)}"]
        if self.questions:
            parts.append(f"{len(self.questions)} question{'s' * (len(self.questions) != 1)}")
        return f"{self.source}, {' and '.join(parts)}"

    def limited(self, needs: Needs) -> "Study":
        """What a method that needs this gets: the first documents and questions, the same beside whichever others."""
        texts = self.texts if self.whole else self.texts[: needs.documents]
        return replace(self, texts=texts, questions=self.questions[: needs.questions])

    def beside(self, model: "Decoder") -> "Study":
        """The same, with the model as it stands now as the dense one, before any method is attached to it."""
        from harness.contract.twin import twin

        return replace(self, dense=twin(model))

    def teacher(self, ids: "torch.Tensor") -> "torch.Tensor":
        """The dense model's logits [rows, tokens, vocabulary] on token ids [rows, tokens], without a gradient.

        They are computed, in full and exactly, whatever is attached below or trained at the time.

        Raises:
            MethodError: the method has not said that it needs them.
        """
        import torch

        if self.dense is None:
            raise MethodError(
                "a method that asks for the dense model's logits says so: needs = Needs(teacher=True); outside of a "
                "run, a study gets them by Study.beside(model), before anything is attached"
            )
        with torch.no_grad(), torch.autocast(ids.device.type, self.dense.autocast, enabled=bool(self.dense.autocast)):
            logits: torch.Tensor = self.dense.module(input_ids=ids, use_cache=False).logits
        return logits

    def windows(self, model: "Decoder", *, count: int, length: int) -> Iterator["torch.Tensor"]:
        """Token windows of the joined texts, each of shape [1, length], on the model's device.

        Fewer than ``count`` come when the text runs out; the last may be shorter than ``length``.

        Raises:
            MethodError: the text gives fewer than two tokens.
        """
        import torch

        tokens = self._tokens(model, count * length)
        if len(tokens) < 2:
            raise MethodError(f"the calibration text from {self.source} is too short: {len(tokens)} tokens")
        for start in range(0, min(len(tokens), count * length), length):
            window = tokens[start : start + length]
            yield torch.tensor([window], device=model.device)

    def batches(self, model: "Decoder", *, rows: int, length: int, steps: int, seed: int) -> "list[torch.Tensor]":
        """Batches to train on, one for each step, each of token ids [rows, length] on the model's device.

        The joined texts are cut into windows of ``length`` tokens; what is left at the end is not used. Every window
        comes once before any comes again, each time in a new order, which the seed draws: the same on every machine.

        Raises:
            MethodError: the text gives no whole window.
        """
        import torch

        tokens = self._tokens(model)
        count = len(tokens) // length
        if count == 0 and steps > 0:
            raise MethodError(
                f"the text from {self.source} is too short to train on: {len(tokens)} tokens, and a row takes {length}"
            )
        windows = torch.tensor(tokens[: count * length], dtype=torch.long).view(count, length)
        generator = torch.Generator().manual_seed(seed)
        epochs = -(-steps * rows // max(count, 1))
        orders = [torch.randperm(count, generator=generator) for _ in range(epochs)]
        chosen = torch.cat([*orders, torch.empty(0, dtype=torch.long)])[: steps * rows].view(steps, rows)
        return [windows[indices].to(model.device) for indices in chosen]

    def _tokens(self, model: "Decoder", most: int | None = None) -> list[int]:
        """Token ids of the joined texts; reading stops once there are ``most``."""
        tokens: list[int] = []
        for text in self.texts:
            tokens += model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if most is not None and len(tokens) >= most:
                break
        return tokens
