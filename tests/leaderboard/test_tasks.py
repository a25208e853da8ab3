"""The board's tasks: lm-eval's own on fixed documents, and one of written words."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, NamedSplit

from harness.leaderboard.tasks.documents import first, following, word_score
from tests.conftest import ROOT

TASKS = ROOT / "leaderboard" / "tasks"


def yaml(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(path, resolve_func=False)


@pytest.mark.parametrize("name", ["arc/arc_easy", "lambada/lambada_openai"])
def test_they_ask_and_score_as_lm_eval_does(name: str) -> None:
    import lm_eval.tasks

    original = yaml(Path(lm_eval.tasks.__file__).parent / f"{name}.yaml")
    own = yaml(TASKS / f"{Path(name).name}_500.yaml")
    changed = ("task", "tag", "should_decontaminate", "doc_to_decontamination_query", "process_docs")
    assert [{key: value for key, value in each.items() if key not in changed} for each in (own, original)] == [
        {key: value for key, value in original.items() if key not in changed}
    ] * 2


def documents(count: int, split: str) -> Dataset:
    return Dataset.from_dict({"number": list(range(count))}, split=NamedSplit(split))


def test_which_documents_are_scored_and_that_training_ones_stay() -> None:
    assert first(documents(700, "test"))["number"][:] == list(range(500))
    assert following(documents(900, "test"))["number"][:] == list(range(500, 700))
    assert len(first(documents(20, "test"))) == 20
    assert len(first(documents(700, "train"))) == 700


@pytest.mark.parametrize(
    ("text", "right"), [(" signs", 1), (' signs." She', 1), (" sign", 0), (" the signs", 0), ("", 0), (" ...", 0)]
)
def test_the_first_written_word_is_compared_with_the_last_of_the_text(text: str, right: float) -> None:
    assert word_score({"text": "they were only signs"}, [text]) == {"acc": right}
