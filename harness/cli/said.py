"""Sentences below tables, each said once with the methods and tasks that it is about."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """A sentence about a task's runs, or about one method's.

    Attributes:
        method: its label; None for a sentence about all of them.
    """

    sentence: str
    task: str
    method: str | None = None


def once(said: Sequence[Said], tasks: Sequence[str]) -> Iterator[str]:
    """Every sentence once, with the methods and, of several tasks, those that it is about.

    Args:
        tasks: all that there are.
    """
    about: dict[str, dict[str | None, list[str]]] = {}  # tasks by sentence and method
    for each in said:
        where = about.setdefault(each.sentence, {}).setdefault(each.method, [])
        if each.task not in where:
            where.append(each.task)
    for sentence, places in about.items():
        together: dict[tuple[str, ...], list[str]] = {}  # methods by their tasks
        for method, where in places.items():
            together.setdefault(tuple(where), []).extend([method] if method else [])
        for of_tasks, labels in together.items():
            on = "" if len(of_tasks) == len(tasks) else f"on {', '.join(of_tasks)}"
            lead = " ".join(filter(None, (", ".join(labels), on)))
            yield f"{lead}: {sentence}" if lead else sentence
