"""The answers of an unfinished run, one line per batch, so that a killed run resumes where it stopped.

A batch is the unit: its line is written once, after its forward, and a torn last line counts as
a batch that has not run. Recomputing whole batches keeps their composition, hence every rounding, as in an
uninterrupted run.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from filelock import BaseFileLock, FileLock, Timeout

from harness.core.errors import HarnessError
from harness.core.files import writing
from harness.measure.segment import Segment

PADDING = -1


class Request(NamedTuple):
    """One question to the model: its task, its document, and the part of the document.

    Attributes:
        part: the request within the document, such as the answer choice.
        turn: the repetition of the same request, or the window of a long text; PADDING for a request that
            lm-eval repeats only to keep the processes of a launch in step.
        kind: lm-eval's type of request: of each, a document's requests are numbered from 0.
    """

    task: str
    document: int
    part: int
    turn: int
    kind: str


@dataclass(frozen=True)
class Served:
    """One row of a finished batch.

    Attributes:
        requests: what it answered.
        answers: lm-eval's answers to them, in the same order.
        prompt_tokens, output_tokens: tokens read (a scored text is all read) and tokens generated and used.
        segments: what ran for it.
        is_broken: whether logits that it read an answer from were no numbers.
    """

    requests: tuple[Request, ...]
    answers: tuple[Any, ...]
    prompt_tokens: int
    output_tokens: int
    segments: tuple[Segment, ...]
    is_broken: bool = False

    @property
    def is_padding(self) -> bool:
        """Whether the row only keeps the processes of a launch in step."""
        return all(request.turn == PADDING for request in self.requests)

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON."""
        plain = {"requests": self.requests, "answers": self.answers}
        tokens = {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}
        traced = {"segments": [segment.to_json() for segment in self.segments], "is_broken": self.is_broken}
        return plain | tokens | traced

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The row that ``to_json`` wrote."""
        return cls(
            tuple(Request(*request) for request in plain["requests"]),
            tuple(tuple(answer) if isinstance(answer, list) else answer for answer in plain["answers"]),
            plain["prompt_tokens"],
            plain["output_tokens"],
            tuple(Segment.from_json(segment) for segment in plain["segments"]),
            plain["is_broken"],
        )


@dataclass
class Journal:
    """Finished rows, kept in memory and in a file that one process at a time may lock.

    Attributes:
        processes: how many share the run. Another number forms other batches, so their answers are not used.
        fresh: discard what the file contains.
        waiting: called before another process that executes the run is waited for; without it, that is an error.
        others: other journals of the run, such as those of its shards: a batch that is asked for is taken from there.
        waited: whether there was one, which may have finished the run.

    Raises:
        DiskError: the file cannot be written; what was written before is kept.
        HarnessError: another process is already executing the run.
    """

    path: Path
    processes: int = 1
    fresh: bool = False
    waiting: Callable[[], None] | None = None
    others: Sequence[Path] = ()
    waited: bool = field(default=False, init=False)
    served: list[Served] = field(default_factory=list)
    _answers: dict[Request, Any] = field(default_factory=dict)
    _elsewhere: dict[Request, list[Served]] = field(default_factory=dict)  # batches of other journals
    _file: IO[str] | None = None
    _lock: BaseFileLock | None = None

    def __enter__(self) -> Self:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(f"{self.path}.lock")
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                if self.waiting is None:
                    raise HarnessError(f"another process is already executing this run: {self.path.parent}") from error
                self.waited = True
                self.waiting()
                self._lock.acquire()
            whole = self._read() if self.path.exists() and not self.fresh else 0
            for path in () if self.fresh else self.others:
                with suppress(FileNotFoundError):  # of a run that another process has finished meanwhile
                    for batch, _ in self._batches(path):
                        self._elsewhere |= {request: batch for row in batch for request in row.requests}
            self._file = self.path.open("r+" if self.path.exists() else "w", encoding="utf-8")
            self._file.seek(whole)
            self._file.truncate()
            if whole == 0 and self.processes > 1:
                self._file.write(self._header)
                self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk has been reported by the write; closing tries to write again
                self._file.close()
        if self._lock is not None:
            self._lock.release()

    def __contains__(self, request: Request) -> bool:
        return request in self._answers

    def __getitem__(self, request: Request) -> Any:
        return self._answers[request]

    def __len__(self) -> int:
        return len(self._answers)

    def answers(self, batch: Sequence[Request]) -> list[Any] | None:
        """The answers to a batch that is finished, here or in another journal; None if any is missing.

        Raises:
            DiskError: the batch of another journal cannot be written here.
        """
        kept = self._elsewhere.get(batch[0]) if batch and batch[0] not in self._answers else None
        if kept is not None and {request for row in kept for request in row.requests} == set(batch):
            self.write(kept)
        with suppress(KeyError):
            return [self._answers[request] for request in batch]
        return None

    def row(self, request: Request) -> Served:
        """The finished row that answered a request.

        Raises:
            KeyError: there is none.
        """
        for row in self.served:
            if request in row.requests:
                return row
        raise KeyError(request)

    def write(self, batch: list[Served]) -> None:
        """Keep a finished batch."""
        assert self._file is not None
        line = json.dumps([row.to_json() for row in batch], ensure_ascii=False)
        with writing(self.path):
            self._file.write(line + "\n")
            self._file.flush()
        self._remember(batch)

    @property
    def _header(self) -> str:
        """The first line of a journal that several processes have one each of; empty for a single process."""
        return json.dumps({"processes": self.processes}) + "\n" if self.processes > 1 else ""

    def _remember(self, batch: list[Served]) -> None:
        answers = [pair for row in batch for pair in zip(row.requests, row.answers, strict=True)]
        self.served += batch
        self._answers.update(answers)

    def _read(self) -> int:
        """Read the file's batches; return the offset in bytes at which the last whole one ends."""
        whole = 0
        for batch, end in self._batches(self.path):
            self._remember(batch)
            whole = end
        return whole

    def _batches(self, path: Path) -> Iterator[tuple[list[Served], int]]:
        """The whole batches of a journal, each with the offset in bytes at which it ends; the header is one of none."""
        header = self._header.encode()
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                return
            whole = len(header)
            yield [], whole
            for line in file:
                try:
                    batch = [Served.from_json(row) for row in json.loads(line)]
                    if not line.endswith(b"\n") or any(len(row.requests) != len(row.answers) for row in batch):
                        return
                except (ValueError, KeyError, TypeError):
                    return
                whole += len(line)
                yield batch, whole
