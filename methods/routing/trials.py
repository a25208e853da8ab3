"""Trying paths on a group of questions after the other, with what is finished kept on disk."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.core.text import duration
from harness.methods.routing.journal import Journal
from harness.methods.routing.labels import Asked, Goal, groups
from harness.methods.routing.pace import Pace
from harness.model.paths.path_evaluator import PathEvaluator

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.study import Workbench
    from harness.core.progress import Bar
    from harness.model.paths.routed_cache import LayerPath


class Trials:
    """Paths that are tried on the same questions; resumed trials compute what uninterrupted ones do."""

    def __init__(self, model: "Decoder", asked: Sequence[Asked], goal: Goal, workbench: "Workbench") -> None:
        self._model, self._goal, self._workbench = model, goal, workbench
        self._groups = list(groups(asked))
        self._journal = Journal(workbench.folder, "trials", model, [each.question.digest for each in asked], [goal])
        self._kept: dict[str, list[tuple[int, float]]] = self._journal.read()

    def announce(self, title: str, paths: int) -> None:
        """Say how long it takes to try so many paths, where nothing has been tried yet."""
        texts = [[each.texts for each in group] for group in self._groups]
        if texts and not self._kept:
            about = duration(Pace.of(self._model, texts[len(texts) // 2]).seconds(texts, paths))
            self._workbench.say(
                f"{title}: {paths} paths on {sum(map(len, texts))} questions, about {about}, estimated from three "
                "paths; finished trials are kept when it is stopped"
            )

    def worth(self, paths: "Sequence[LayerPath]", bar: "Bar | None") -> list[tuple[int, float]]:
        """For each path how many questions it answers right, and the sum of their margins."""
        if bar is not None:
            bar.expect(len(paths) * len(self._groups))
        of_groups = []
        for number, group in enumerate(self._groups):
            key = f"{number} {paths[-1]}"
            if key not in self._kept:
                evaluator = PathEvaluator(self._model, [each.texts for each in group])
                self._kept[key] = [self._worth(group, evaluator, path) for path in paths]
                self._journal.write(self._kept)
            of_groups.append(self._kept[key])
            if bar is not None:
                bar.advance(len(paths))
        return [
            (sum(right for right, _ in values), sum(margin for _, margin in values))
            for values in zip(*of_groups, strict=True)
        ]

    def _worth(self, group: Sequence[Asked], evaluator: PathEvaluator, path: "LayerPath") -> tuple[int, float]:
        scores = evaluator.evaluate([(place, path) for place in range(len(group))])
        rewards = [question.reward(score, self._goal, None) for question, score in zip(group, scores, strict=True)]
        return sum(reward.right for reward in rewards), sum(reward.margin for reward in rewards)
