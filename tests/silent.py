"""A reporter that keeps what it is told."""

from collections.abc import Iterator
from contextlib import contextmanager


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.titles: list[str] = []
        self.expected = self.advanced = 0

    def say(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def bar(self, title: str) -> Iterator["Silent"]:
        self.titles.append(title)
        yield self

    def expect(self, requests: int) -> None:
        self.expected += requests

    def advance(self, requests: int) -> None:
        self.advanced += requests
