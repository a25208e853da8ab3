"""A task's training documents as questions with their right answers, for methods that learn from answers.

Documents that are scored are left out, by the digest of what the model would read: a training document that is also a
test document, or reads like one, is not learnt from.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from harness.contract.study import Question
from harness.evaluate.tasks import LoadedTask


def training_questions(loaded: LoadedTask, count: int, seed: int = 0) -> list[Question]:
    """At most ``count`` questions of the training split, a seeded sample over the tasks that the name stands for.

    Prompts have the few-shot examples that the evaluation has. Tasks of running text give none.
    """
    tasks = [task for task in loaded.tasks.values() if task.has_training_docs()]
    held_out = {digest for task in loaded.tasks.values() for digest in _scored(task)}
    questions: list[Question] = []
    for index, task in enumerate(tasks):
        share = (count - len(questions)) // (len(tasks) - index)
        questions += _of_task(task, share, held_out, random.Random(seed))
    return questions


def _of_task(task: Any, count: int, held_out: set[str], rng: random.Random) -> list[Question]:
    documents = task.training_docs()
    if not hasattr(documents, "__len__"):  # a task in Python may yield them
        documents = list(documents)
    questions: list[Question] = []
    for index in rng.sample(range(len(documents)), len(documents)):
        if len(questions) == count:
            break
        if _digest(task, documents[index]) not in held_out:
            questions += _question(task, documents[index])
    return questions


def _scored(task: Any) -> Iterator[str]:
    """Digests of the documents that are scored, and of the test split, which may be another one."""
    for document in task.eval_docs:
        yield _digest(task, document)
    if task.has_test_docs():
        for document in task.test_docs():
            yield _digest(task, document)


def _digest(task: Any, document: Any) -> str:
    """What the model reads of a document: its text and its choices in any order."""
    choices = []
    if task.config.doc_to_choice is not None:
        with suppress(Exception):  # the task's own code, which need not work for every split
            choices = sorted(map(str, task.doc_to_choice(document)))
    return hashlib.sha256(f"{task.doc_to_text(document)}{choices}".encode("utf-8", "surrogatepass")).hexdigest()


def _question(task: Any, document: Any) -> Iterator[Question]:
    """The document as the evaluation would ask it; nothing where no single answer is right."""
    config = task.config
    try:
        prompt = task.fewshot_context(document, config.num_fewshot or 0)
        target = task.doc_to_target(document)
        choices = task.doc_to_choice(document) if config.output_type == "multiple_choice" else None
    except Exception:  # tasks compute these with their own code, some only for scored splits
        return
    if not isinstance(prompt, str) or not prompt.strip():
        return
    delimiter = config.target_delimiter
    if choices is not None:
        right = choices.index(target) if isinstance(target, str) and target in choices else target
        if isinstance(right, int) and 0 <= right < len(choices) > 1:
            yield Question(prompt, tuple(f"{delimiter}{choice}" for choice in choices), right, "choice")
    elif isinstance(target, str) and target.strip() and config.output_type in ("loglikelihood", "generate_until"):
        until = (config.generation_kwargs or {}).get("until") or []
        ends = tuple([until] if isinstance(until, str) else until) if config.output_type == "generate_until" else ()
        yield Question(prompt, (f"{delimiter}{target}",), 0, "answer", ends)
