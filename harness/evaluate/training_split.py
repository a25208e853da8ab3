"""The training documents of a task: as texts and as questions, without any that is scored, read and digested once.

A document is scored if it is one of those that are evaluated or of the test split, or if the model would read the same:
other fields, such as an id, do not make it another.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any, Final

from harness.contract.study import Question

SAMPLE: Final = 256
"""Documents that are drawn and mixed before any others are."""


class TrainingSplit:
    """The training documents of the lm-eval tasks that one name stands for."""

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self._all = list(tasks.values())
        self._texts: dict[int, tuple[list[str], Iterator[str]]] = {}
        self._questions: dict[tuple[int, int], tuple[list[Question], Iterator[Question]]] = {}

    @cached_property
    def _tasks(self) -> list[tuple[Any, Any]]:
        """The tasks that have training documents, each with these as a sequence."""
        pairs = [(task, task.training_docs()) for task in self._all if task.has_training_docs()]
        # a task in Python may yield them
        return [(task, documents if hasattr(documents, "__len__") else list(documents)) for task, documents in pairs]

    @cached_property
    def _scored(self) -> set[str | None]:
        """What the model would read of scored documents, and of the test split, which may be another one."""
        digests: set[str | None] = set()
        for task in self._all:
            splits = [task.eval_docs, *([task.test_docs()] if task.has_test_docs() else [])]
            documents = {written(document): document for split in splits for document in split}
            digests |= {_digest(task, document) for document in documents.values()}
        return digests - {None}

    @cached_property
    def _evaluated(self) -> set[str]:
        return {written(document) for task in self._all for document in task.eval_docs}

    def texts(self, count: int, seed: int) -> tuple[str, ...]:
        """Prompt and answer of at most ``count`` documents, a seeded sample; of more, the first are the same."""
        if seed not in self._texts:
            self._texts[seed] = [], self._texts_in_order(seed)
        texts, following = self._texts[seed]
        texts += islice(following, max(count - len(texts), 0))
        return tuple(texts[:count])

    def _texts_in_order(self, seed: int) -> Iterator[str]:
        first, others = [], []
        for task, documents in self._tasks:
            order = sampled(len(documents), seed)
            first += [(task, documents[index]) for index in order[:SAMPLE]]
            others += [(task, documents, index) for index in order[SAMPLE:]]
        texts = [text for task, document in first for text in self._text(task, document)]
        random.Random(seed).shuffle(texts)
        yield from texts
        random.Random(seed).shuffle(others)
        for task, documents, index in others:
            yield from self._text(task, documents[index])

    def _text(self, task: Any, document: Any) -> Iterator[str]:
        if not self._is_scored(task, document):
            yield from _text(task, document)

    def questions(self, count: int, seed: int) -> list[Question]:
        """At most ``count`` questions, a seeded sample over the tasks.

        Prompts have the few-shot examples that the evaluation has. Tasks of running text give none.
        """
        questions: list[Question] = []
        for index in range(len(self._tasks)):
            share = (count - len(questions)) // (len(self._tasks) - index)
            questions += self._first_questions(index, share, seed)
        return questions

    def _first_questions(self, index: int, count: int, seed: int) -> list[Question]:
        """The first questions of one task in the seed's order; each is made once."""
        if (index, seed) not in self._questions:
            self._questions[index, seed] = [], self._in_order(*self._tasks[index], random.Random(seed))
        questions, following = self._questions[index, seed]
        questions += islice(following, max(count - len(questions), 0))
        return questions[:count]

    def _in_order(self, task: Any, documents: Any, rng: random.Random) -> Iterator[Question]:
        for index in rng.sample(range(len(documents)), len(documents)):
            if not self._is_scored(task, documents[index]):
                yield from _question(task, documents[index])

    def _is_scored(self, task: Any, document: Any) -> bool:
        return written(document) in self._evaluated or _digest(task, document) in self._scored


def sampled(count: int, seed: int) -> list[int]:
    """The indices of so many documents in the order in which they are drawn."""
    first = random.Random(seed).sample(range(count), min(SAMPLE, count))
    others = sorted({*range(count)} - {*first})
    random.Random(seed).shuffle(others)
    return first + others


def written(document: Any) -> str:
    """A document as text, whatever its fields."""
    return json.dumps(document, sort_keys=True, default=str)


def _digest(task: Any, document: Any) -> str | None:
    """What the model reads of a document: its text and its choices in any order; None where the task's code fails."""
    choices = []
    if task.config.doc_to_choice is not None:
        with suppress(Exception):  # the task's own code, which need not work for every split
            choices = sorted(map(str, task.doc_to_choice(document)))
    whole = task.config.output_type == "loglikelihood_rolling"  # a text without a prompt is read as its target
    try:
        text = task.doc_to_target(document) if whole else task.doc_to_text(document)
    except Exception:  # as above
        return None
    return hashlib.sha256(f"{text}{choices}".encode("utf-8", "surrogatepass")).hexdigest()


def _text(task: Any, document: Any) -> Iterator[str]:
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
