"""The pocket tasks as lm-eval sees them: where their documents come from, and a score for every level.

Scoring is lm-eval's own. Each metric is also reported for the documents of one level, under its name and
``_level_1`` and so on.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from . import arithmetic, choice, recall, text
from .splits import Split, first

SIZES: Final[Mapping[Split, int]] = {Split.TRAIN: 960, Split.VALIDATION: 480, Split.TEST: 1200}
"""Documents that each split publishes; training may draw any number more."""


def data(kind: ModuleType, sizes: Mapping[Split, int] = SIZES) -> DatasetDict:
    """The documents of a kind: its fields and the ``level`` of each, the levels taking turns."""
    splits = {}
    for split, size in sizes.items():
        made = first(size, kind.make, kind.LEVELS, split)
        splits[str(split)] = Dataset.from_list([{"level": one.level, **one.fields} for one in made])
    return DatasetDict(splits)


def math_data() -> DatasetDict:
    """The documents of ``pocket_math``."""
    return data(arithmetic)


def choice_data() -> DatasetDict:
    """The documents of ``pocket_choice``."""
    return data(choice)


def text_data() -> DatasetDict:
    """The documents of ``pocket_text``."""
    return data(text)


def recall_data() -> DatasetDict:
    """The documents of ``pocket_recall``, which are long and therefore fewer."""
    return data(recall, {Split.TRAIN: 200, Split.VALIDATION: 200, Split.TEST: 1000})


class LevelledTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose documents have a level."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Generate the documents; nothing is downloaded."""
        self.dataset = self.config.custom_dataset(**(dataset_kwargs or {}))
        self.levels = sorted(set(self.dataset[str(Split.TEST)]["level"]))

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """The scores of a document, each also under the name of its level."""
        scores: dict[str, Any] = super().process_results(doc, results)
        return scores | {f"{metric}_level_{doc['level']}": score for metric, score in scores.items()}

    def aggregation(self) -> dict[str, Any]:
        """How each metric and each of its levels becomes one number."""
        return self._with_levels(super().aggregation())

    def higher_is_better(self) -> dict[str, Any]:
        """Which way each metric and each of its levels improves."""
        return self._with_levels(super().higher_is_better())

    def _with_levels(self, metrics: dict[str, Any]) -> dict[str, Any]:
        by_level = {f"{name}_level_{level}": value for name, value in metrics.items() for level in self.levels}
        return metrics | by_level
