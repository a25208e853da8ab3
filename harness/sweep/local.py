"""Workers as processes of this machine: a GPU each where there are GPUs, a share of the cores where there are none."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from harness.core.errors import LostWorkerError
from harness.run.spec import Job
from harness.sweep.items import Item, Outcome

_GRACE_S = 10.0
"""Seconds that a worker has to end by itself."""


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Attributes:
        results: the folder of results.
        workers: how many.
        gpus: the GPUs to share out, as CUDA_VISIBLE_DEVICES names them; empty where there are none, or where the user
            chose the device.
        threads: that each computes scores with; None for as many as it would by itself.
    """

    results: Path
    workers: int
    gpus: tuple[str, ...] = ()
    threads: int | None = None

    @classmethod
    def here(cls, results: Path, workers: int | None, device: str | None) -> Self:
        """So many workers, else one a GPU, or one.

        Args:
            device: the user's; None, or "cuda" without a number, shares the GPUs out.
        """
        import torch

        gpus = _gpus() if device in (None, "cuda") else ()
        workers = workers or len(gpus) or 1
        shared = workers > 1 and not gpus and "OMP_NUM_THREADS" not in os.environ
        return cls(results, workers, gpus, max(torch.get_num_threads() // workers, 1) if shared else None)

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator["Process"]:
        """A process for the length of a ``with`` block."""
        environment = dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        with TemporaryDirectory(prefix="harness-sweep-") as folder:
            process = Process(self.results, Path(folder) / "log", environment, None if alone else self.threads)
            try:
                yield process
            finally:
                process.close()


def _gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(names[:count] if names else map(str, range(count)))


@dataclass(eq=False)
class Process:
    """One worker: ``harness.sweep.worker``, which reads items from standard input and answers on standard output."""

    results: Path
    log: Path
    environment: dict[str, str]
    threads: int | None = None
    _job: Job | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "harness.sweep.worker", str(self.results), str(self.log)]
        command += [] if self.threads is None else [str(self.threads)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                text=True,
                encoding="utf-8",
            )

    def carry_out(self, item: Item) -> Outcome:
        """What came of an item; its job is sent once."""
        plain = item.model_dump(mode="json", exclude={"job"} if item.job == self._job else None)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(plain) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except (OSError, ValueError):  # a pipe that is closed
            answer = ""
        if not answer.endswith("\n"):
            raise LostWorkerError(self._how_it_ended(), self._log())
        self._job = item.job
        return Outcome.model_validate_json(answer)

    def stop(self) -> None:
        """Kill it: what it finished is on disk."""
        self._process.kill()

    def close(self) -> None:
        """End it: with its standard input."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "the worker does not answer"
        if code >= 0:
            return f"the worker ended with exit code {code}"
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        memory = ", perhaps by the system for want of memory" if -code == signal.SIGKILL else ""
        return f"the worker was killed by {name}{memory}"

    def _log(self) -> bytes:
        try:
            return self.log.read_bytes()
        except OSError:
            return b""
