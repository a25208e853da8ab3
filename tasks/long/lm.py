"""The long tasks as lm-eval sees them: where their documents come from."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from . import counted_words, listops, lookup, needles, pocket_recall, variables
from .counting import counter
from .documents import Kind, documents

SIZES: Final = {"train": 32, "validation": 16, "test": 100}
KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("needle", needles.needle, answer_tokens=16),
        Kind("keys", needles.keys, answer_tokens=16),
        Kind("keys-choice", needles.choice, answer_tokens=10),
        Kind("queries", needles.queries, answer_tokens=64),
        Kind("variables", variables.variables, answer_tokens=48),
        Kind("common-words", counted_words.common, answer_tokens=48, least=20),
        Kind("frequent-words", counted_words.frequent, answer_tokens=32, least=30),
        Kind("listops", listops.listops, answer_tokens=4, least=8),
        Kind("pairs", lookup.pairs, answer_tokens=16, least=2),
        Kind("passkey", lookup.passkey, answer_tokens=12),
        Kind("pocket-needle", pocket_recall.needle, answer_tokens=8),
        Kind("pocket-keys", pocket_recall.keys, answer_tokens=8),
        Kind("pocket-pairs", pocket_recall.pairs, answer_tokens=8),
    )
}


def data(kind: str, tokens: int, **metadata: Any) -> DatasetDict:
    """The documents of a kind at a length, in tokens of the model that lm-eval names in the metadata.

    Args:
        metadata: of the task and of the run; see ``counting.counter`` for what is read of it.
    """
    named = ("tokenizer", "pretrained", "revision", "subfolder", "trust_remote_code")
    count = counter(**{name: metadata[name] for name in named if name in metadata})
    made = {split: islice(documents(KINDS[kind], tokens, count, split), size) for split, size in SIZES.items()}
    return DatasetDict({split: Dataset.from_list([each.row for each in stream]) for split, stream in made.items()})


class LongTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose documents are generated at a length."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Generate the documents; nothing is downloaded."""
        self.dataset = self.config.custom_dataset(**(dataset_kwargs or {}), **(self.config.metadata or {}))
