"""How long the evaluation of paths will take, from a few that are timed before a search."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from harness.model.paths.path_evaluator import PathEvaluator

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.model.paths.texts import Texts


@dataclass(frozen=True)
class Pace:
    """Seconds for each token of the padded rows of a group.

    Attributes:
        full: that the full path takes.
        edited: that a path takes which leaves a known one at some layer: what precedes is computed already.
    """

    full: float
    edited: float

    @classmethod
    def of(cls, model: "Decoder", group: "Sequence[Texts]") -> "Pace":
        """Time the full path, and two that skip a layer, on a group of questions."""
        layers = len(model.anatomy.blocks)
        evaluator = PathEvaluator(model, group)
        seconds = []
        for skipped in (layers, layers // 4, 3 * layers // 4):  # the first is none
            path = tuple(int(layer != skipped) for layer in range(layers))
            began = perf_counter()
            evaluator.evaluate([(place, path) for place in range(len(group))])
            seconds.append(perf_counter() - began)
        tokens = row_tokens([group])
        return cls(seconds[0] / tokens, sum(seconds[1:]) / 2 / tokens)

    def seconds(self, groups: "Iterable[Sequence[Texts]]", paths: int) -> float:
        """What the full path and so many others take on every question."""
        return row_tokens(groups) * (self.full + paths * self.edited)


def row_tokens(groups: "Iterable[Sequence[Texts]]") -> int:
    """Tokens of all rows, each padded to the longest of its group."""
    return sum(len(group) * max(len(texts.row) for texts in group) for group in groups)
