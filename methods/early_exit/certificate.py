"""A certificate for an exit rule: the loosest threshold whose risk on calibration windows is proven to stay small."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.methods.early_exit.agreement import inconsistency, observed
from harness.methods.early_exit.learn_then_test import fixed_sequence, samples_needed

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contract.decoder import Decoder

CANDIDATES = (0.9999, 0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Thresholds that are tested, from strict to loose; fixed, so that the test does not choose its own hypotheses."""

NOTHING_EXITS = 1.0


@dataclass(frozen=True)
class Certificate:
    """With a probability of at least 1 - error, the risk is at most ``limit``.

    Attributes:
        limit: the risk that is tolerated, delta in arXiv:2207.07061.
        error: the probability of a wrong certificate, epsilon there.
        with_text: the risk is the loss in the share of the text's own tokens that are predicted; else the share of
            predictions that differ from the whole model's.
    """

    limit: float
    error: float
    with_text: bool

    @property
    def windows_needed(self) -> int:
        """The fewest windows that can certify anything."""
        return samples_needed(self.limit, self.error)

    def test(
        self,
        model: "Decoder",
        windows: "list[Tensor]",
        exits: Callable[[float], AbstractContextManager[None]],
    ) -> dict[str, Any]:
        """Find the loosest threshold that the windows certify.

        Args:
            windows: token ids, each [1, length], all of one length.
            exits: attaches the exit rule with a threshold for the length of a ``with`` block.

        Returns:
            Facts: the ``threshold``, 1 where none is certified; ``tested``, the candidates in order with their risks
            and p-values; and how many ``windows`` these are of.
        """
        batches = observed(model, windows)

        def risks(threshold: float) -> list[float]:
            with exits(threshold):
                return inconsistency(model, batches, with_text=self.with_text)

        tested = fixed_sequence(CANDIDATES, risks, self.limit, self.error)
        certified = [candidate.threshold for candidate in tested if candidate.p_value <= self.error]
        return {
            "threshold": certified[-1] if certified else NOTHING_EXITS,
            "tested": [asdict(candidate) for candidate in tested],
            "windows": len(windows),
        }
