"""Where calibration text comes from: a task's training split, a data set, a file or the bundled text. Never scored."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.contract.study import Study
from harness.core.errors import HarnessError, UnknownNameError
from harness.evaluate.questions import training_questions
from harness.evaluate.tasks import LoadedTask

DOCUMENTS = 256


def calibration_for(task: LoadedTask, source: str, *, questions: int = 0, seed: int = 0) -> Study:
    """The calibration text that ``--calibration`` names: "task", "bundled", a data set or a text file.

    "task" means the training split of the task, seeded sample of at most 256 documents, and the bundled text for
    tasks that have none; and as many of its questions, for methods that need any. A data set is written
    ``dataset:NAME:SPLIT:COLUMN``, with a configuration after a comma
    (``dataset:allenai/ai2_arc,ARC-Easy:train:question``), and sampled in the same way.

    Raises:
        HarnessError: the file or the data set cannot be read.
    """
    if source == "task":
        texts = _training_texts(task, seed)
        if texts:
            chosen = tuple(training_questions(task, questions, seed)) if questions else ()
            return Study(tuple(texts), f"the training split of {task.name}", chosen)
    elif source.startswith("dataset:"):
        return _from_dataset(task, source, seed)
    elif source != "bundled":
        return _from_file(Path(source))
    return _bundled(seed)


def _from_file(path: Path) -> Study:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(
            f"--calibration {path}: not task, bundled, dataset:NAME:SPLIT:COLUMN or a text file ({error})"
        ) from error
    return Study((text,), f"the file {path.name}")


def _from_dataset(task: LoadedTask, source: str, seed: int) -> Study:
    """A column of a data set, without the documents that are scored."""
    from datasets import load_dataset

    try:
        _, name, split, column = source.split(":")
    except ValueError:
        raise HarnessError(f"--calibration {source}: a data set is written dataset:NAME:SPLIT:COLUMN") from None
    path, _, configuration = name.partition(",")
    try:
        rows = load_dataset(path, configuration or None, split=split)
    except Exception as error:  # a data set can fail to load in any way
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise HarnessError(f"--calibration {source}: the data set cannot be loaded: {reason}") from error
    if column not in rows.column_names:
        raise UnknownNameError(f"column of {name}", column, rows.column_names)
    scored = {_key(document) for leaf in task.tasks.values() for document in leaf.eval_docs}
    order = random.Random(seed).sample(range(len(rows)), min(DOCUMENTS, len(rows)))
    chosen = (rows[index] for index in order)
    texts = tuple(str(row[column]) for row in chosen if _key(row) not in scored)
    if not texts:
        raise HarnessError(f"--calibration {source}: all of its documents are scored by {task.name}")
    return Study(texts, f"{column} of {name}, split {split}")


def _bundled(seed: int) -> Study:
    from harness.tasks.pocket.text import train_texts

    texts = train_texts()
    random.Random(seed).shuffle(texts)
    return Study(tuple(texts), "the bundled text")


def _training_texts(loaded: LoadedTask, seed: int) -> list[str]:
    """Prompt and answer of sampled training documents, without any that is also scored."""
    texts = []
    scored = {_key(document) for task in loaded.tasks.values() for document in task.eval_docs}
    for task in loaded.tasks.values():
        if not task.has_training_docs():
            continue
        documents = task.training_docs()
        if not hasattr(documents, "__len__"):  # a task in Python may yield them
            documents = list(documents)
        order = random.Random(seed).sample(range(len(documents)), min(DOCUMENTS, len(documents)))
        chosen = (documents[index] for index in order)
        texts += [text for doc in chosen if _key(doc) not in scored for text in _as_text(task, doc)]
    random.Random(seed).shuffle(texts)
    return texts[:DOCUMENTS]


def _key(document: Any) -> str:
    return json.dumps(document, sort_keys=True, default=str)


def _as_text(task: Any, document: Any) -> Iterator[str]:
    """The document as the model would read it in a few-shot prompt; nothing where the task's own code fails on it."""
    try:
        example = task.fewshot_context(document, 0)
        target = task.doc_to_target(document)
        if task.config.doc_to_choice is not None and isinstance(target, int):
            target = task.doc_to_choice(document)[target]
    except Exception:  # tasks compute these with their own code, some only for scored splits
        return
    prompt = example if isinstance(example, str) else ""
    yield f"{prompt}{task.config.target_delimiter}{target}".strip()
