"""Token ids that a tokenizer gives and a model has no embedding for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.errors import MethodError, ModelError

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Study


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer beside the number of rows of the embedding that its tokens are looked up in.

    A tokenizer may have more tokens than the model has rows, as those of some published models do, where no text uses
    them; so texts are judged and not the tokenizer.
    """

    tokenizer: Any
    rows: int

    @classmethod
    def of(cls, model: "Decoder") -> "Vocabulary":
        """The vocabulary of a model."""
        return cls(model.tokenizer, model.module.get_input_embeddings().weight.shape[0])

    @property
    def note(self) -> str | None:
        """That the tokenizer has tokens beyond the embedding, where it has."""
        if max(self.tokenizer.get_vocab().values(), default=0) < self.rows:
            return None
        return f"the tokenizer's tokens from {self.rows} on have no row in the model's embedding; no text here has them"

    def refuse(self, tokens: Iterable[int], what: str) -> None:
        """Refuse a text that the model cannot look up.

        Args:
            what: the text is of.

        Raises:
            ModelError: a token beyond the embedding.
        """
        largest = max(tokens, default=0)
        if largest >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise ModelError(
                f"{what}: the tokenizer gives {token!r} as token {largest}, and the model's embedding has "
                f"{self.rows} rows, for tokens up to {self.rows - 1}: give the tokenizer that the model was trained "
                "with, or resize the model's embedding"
            )

    def refuse_calibration(self, calibration: "Study") -> None:
        """Refuse a calibration text, or a training question, with a token beyond the embedding.

        Raises:
            ModelError: as for ``refuse``.
            MethodError: there is nothing to read.
        """
        if not calibration.questions and not any(text.strip() for text in calibration.texts):
            raise MethodError(f"the calibration text from {calibration.source} is empty: give a text")
        questions = (f"{question.prompt} {' '.join(question.answers)}" for question in calibration.questions)
        for text in (*calibration.texts, *questions):
            tokens = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            self.refuse(tokens, f"the calibration text from {calibration.source}")
