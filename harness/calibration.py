"""The text a method calibrates on: where it came from, and the same token windows for the same seed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness.errors import MethodError

if TYPE_CHECKING:
    import torch

    from harness.model.decoder import Decoder


@dataclass(frozen=True)
class Calibration:
    """Text for preparation, never from a split that is scored.

    Attributes:
        texts: documents, in the order they are used.
        source: where they came from, in words, for the record.
    """

    texts: tuple[str, ...]
    source: str

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the texts themselves; the source's name does not matter."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(hashlib.sha256(text.encode()).digest())
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
