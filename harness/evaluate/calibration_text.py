"""Where calibration text comes from: a task's training split, a data set, a file or the bundled text. Never scored."""

import random
from itertools import islice
from pathlib import Path

from harness.contract.study import Needs, Study
from harness.core.errors import HarnessError, UnknownNameError
from harness.evaluate.tasks import LoadedTask
from harness.evaluate.training_split import sampled, written


def calibration_for(task: LoadedTask, source: str, needs: Needs = Needs(), *, seed: int = 0) -> Study:  # noqa: B008
    """The calibration text that ``--calibration`` names: "task", "bundled", a data set or a text file.

    "task" means the training split of the task, a seeded sample of as many documents and questions as are needed, and
    the bundled text for tasks that have none. A data set is written ``dataset:NAME:SPLIT:COLUMN``, with a configuration
    after a comma (``dataset:allenai/ai2_arc,ARC-Easy:train:question``), and sampled in the same way.

    Raises:
        HarnessError: the file or the data set cannot be read.
    """
    if source == "task":
        texts = task.training.texts(needs.documents, seed)
        if texts:
            questions = task.training.questions(needs.questions, seed)
            return Study(texts, f"the training split of {task.name}", tuple(questions))
    elif source.startswith("dataset:"):
        return _from_dataset(task, source, needs, seed)
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
    return Study((text,), f"the file {path.name}", whole=True)


def _from_dataset(task: LoadedTask, source: str, needs: Needs, seed: int) -> Study:
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
    documents = [document for leaf in task.tasks.values() for document in leaf.eval_docs]
    scored = {written(document) for document in documents}
    # a row may be the document under other names of columns
    scored |= {value for document in documents if isinstance(document, dict) for value in map(str, document.values())}
    chosen = ((rows[index], str(rows[index][column])) for index in sampled(len(rows), seed))
    unscored = (text for row, text in chosen if scored.isdisjoint((written(row), text)))
    texts = tuple(islice(unscored, needs.documents))
    if not texts:
        raise HarnessError(f"--calibration {source}: all of its documents are scored by {task.name}")
    return Study(texts, f"{column} of {name}, split {split}")


def _bundled(seed: int) -> Study:
    from harness.tasks.pocket.text import train_texts

    texts = train_texts()
    random.Random(seed).shuffle(texts)
    return Study(tuple(texts), "the bundled text", whole=True)
