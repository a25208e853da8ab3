"""Calibration text comes from where it was asked for, and never from a document that is scored."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.contract.study import Needs, Study
from harness.core.errors import HarnessError
from harness.evaluate import tasks as tasks_module
from harness.evaluate.calibration_text import calibration_for
from harness.evaluate.tasks import LoadedTask, Overrides, TaskLoader

DOCUMENTS = Needs().documents


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "known_names", dict)


def task(folder: Path, train: list[str], test: list[str], *, split: str = "train", yaml: str = "") -> LoadedTask:
    """A task that generates, over these questions."""
    for name, questions in (("train", train), ("test", test)):
        lines = [json.dumps({"question": question, "answer": f"answer to {question}"}) for question in questions]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ntest_split: test\noutput_type: generate_until\n"
        f"dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}\n"
        f"{f'training_split: {split}' if split else ''}\n"
        'doc_to_text: "Q: {{question}} A:"\ndoc_to_target: "{{answer}}"\n' + yaml
    )
    return TaskLoader(str(folder)).load("mine", Overrides())


def questions(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_text_is_the_training_split_as_prompt_and_answer(tmp_path: Path) -> None:
    calibration = calibration_for(task(tmp_path, ["a", "b"], ["c"]), "task")
    assert sorted(calibration.texts) == ["Q: a A: answer to a", "Q: b A: answer to b"]
    assert calibration.source == "the training split of mine"


def test_a_scored_document_is_left_out(tmp_path: Path) -> None:
    calibration = calibration_for(task(tmp_path, ["a", "b", "c"], ["c", "d", "b"]), "task")
    assert calibration.texts == ("Q: a A: answer to a",)


@pytest.mark.parametrize("split", ["test", ""])
def test_a_task_without_text_of_its_own_takes_the_bundled(split: str, tmp_path: Path) -> None:
    assert calibration_for(task(tmp_path, ["a"], ["b"], split=split), "task").source == "the bundled text"


def test_a_task_whose_training_documents_are_all_scored_takes_the_bundled(tmp_path: Path) -> None:
    assert calibration_for(task(tmp_path, ["a", "b"], ["b", "a"]), "task").source == "the bundled text"


def test_a_document_that_another_task_of_the_group_scores_is_left_out(tmp_path: Path) -> None:
    task(tmp_path, ["a", "b"], ["c"])
    (tmp_path / "yours.yaml").write_text("include: mine.yaml\ntask: yours\ntest_split: train\ntraining_split: test\n")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [mine, yours]\n")
    assert calibration_for(TaskLoader(str(tmp_path)).load("both", Overrides()), "task").source == "the bundled text"


def test_a_sample_is_taken_of_many_documents(tmp_path: Path) -> None:
    loaded = task(tmp_path, questions("a", 2 * DOCUMENTS), ["b"])
    texts = calibration_for(loaded, "task").texts
    assert len(texts) == len(set(texts)) == DOCUMENTS
    assert not set(texts) <= {f"Q: {question} A: answer to {question}" for question in questions("a", DOCUMENTS)}


def test_more_documents_come_after_the_first(tmp_path: Path) -> None:
    names = questions("a", 2 * DOCUMENTS + 9)
    loaded = task(tmp_path, names, names[:20])
    few, more, every = (calibration_for(loaded, "task", Needs(documents=count)).texts for count in (256, 400, 9999))
    assert (len(few), len(more), len(every)) == (256, 400, len(names) - 20)
    assert (few, more) == (every[:256], every[:400])
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("source", ["task", "bundled"])
def test_a_seed_gives_the_same_texts_again(source: str, tmp_path: Path) -> None:
    loaded = task(tmp_path, questions("a", 20), ["b"])
    first, again, another = (calibration_for(loaded, source, seed=seed).fingerprint for seed in (0, 0, 1))
    assert first == again != another


def test_a_choice_is_its_text(tiny_tasks: Path) -> None:
    loaded = TaskLoader(str(tiny_tasks)).load("tiny_choice", Overrides())
    document = next(iter(loaded.tasks["tiny_choice"].training_docs()))
    expected = f"{document['question']} so {document['choices'][document['answer']]}"
    assert expected in calibration_for(loaded, "task").texts


@pytest.mark.parametrize("name", ["tiny_letters", "tiny_last", "tiny_answer", "tiny_text", "tiny_group"])
def test_every_kind_of_task_gives_text(name: str, tiny_tasks: Path) -> None:
    calibration = calibration_for(TaskLoader(str(tiny_tasks)).load(name, Overrides()), "task")
    assert calibration.source == f"the training split of {name}"
    assert all(calibration.texts)


def test_a_document_that_the_task_cannot_write_is_left_out(tmp_path: Path) -> None:
    loaded = task(tmp_path, ["a", "b"], ["c"], yaml="doc_to_target: \"{{ 1 / 0 if question == 'b' else answer }}\"\n")
    assert calibration_for(loaded, "task").texts == ("Q: a A: answer to a",)


def test_documents_may_come_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = task(tmp_path, ["a", "b"], ["c"])
    leaf = loaded.tasks["mine"]
    documents = list(leaf.training_docs())

    def training_docs() -> Iterator[Any]:
        yield from documents

    monkeypatch.setattr(leaf, "training_docs", training_docs)
    assert len(calibration_for(loaded, "task").texts) == 2


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("née\n\nb")
    assert calibration_for(None, str(tmp_path / "mine.txt")) == Study(("née\n\nb",), "the file mine.txt")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nowhere.txt", "a_folder", "latin.txt", "tsak"])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"n\xe9e")
    with pytest.raises(
        HarnessError, match=rf"--calibration .*{name}: not task, bundled, dataset:NAME:SPLIT:COLUMN or a text file"
    ):
        calibration_for(None, str(tmp_path / name))  # type: ignore[arg-type]


def test_the_bundled_text_is_no_scored_document() -> None:
    from harness.tasks.pocket.text import train_texts

    loaded = TaskLoader().load("pocket_text", Overrides())
    scored = {str(value) for document in loaded.tasks["pocket_text"].eval_docs for value in document.values()}
    assert len(scored) > 10
    assert scored.isdisjoint(train_texts())


def test_a_data_set_is_sampled_without_what_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    asked: list[Any] = []
    mine = task(tmp_path, ["a"], ["c"])
    document = {"question": "c", "answer": "answer to c"}
    elsewhere = {**document, "answer": "in other words"}
    rows = [document, elsewhere, *({**document, "question": f"question {i}"} for i in range(DOCUMENTS + 9))]

    def load(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return Dataset.from_list(rows)

    monkeypatch.setattr("datasets.load_dataset", load)
    calibration = calibration_for(mine, "dataset:an/other,config:train:question")
    assert asked == [(("an/other", "config"), {"split": "train"})]
    assert len(calibration.texts) == DOCUMENTS
    assert document["question"] not in calibration.texts
    assert calibration.source == "question of an/other,config, split train"
    assert calibration.fingerprint == calibration_for(mine, "dataset:an/other,config:train:question").fingerprint
    assert (
        calibration.fingerprint != calibration_for(mine, "dataset:an/other,config:train:question", seed=1).fingerprint
    )
    with pytest.raises(HarnessError, match=r"unknown column of an/other 'questions'\. Did you mean 'question'"):
        calibration_for(mine, "dataset:an/other:train:questions")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("dataset:name:train", "a data set is written dataset:NAME:SPLIT:COLUMN"),
        ("dataset:no/such:train:text", "dataset:no/such:train:text: the data set cannot be loaded: gone"),
    ],
)
def test_a_data_set_that_is_not_there_is_refused(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("gone")

    mine = task(tmp_path, ["a"], ["c"])
    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(HarnessError, match=says):
        calibration_for(mine, source)
