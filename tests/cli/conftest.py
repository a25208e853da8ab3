"""The command line called in this process: seconds cheaper than a process of its own."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What a user is told who asked for the impossible: the last line of stderr, after progress."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        assert not self.out
        return self.err.rpartition("harness: ")[2].strip()

    def json(self) -> Any:
        """Standard output as strict JSON: JSON has no NaN."""
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


Harness = Callable[..., Done]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Harness:
    """Call ``harness`` with these arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args: object) -> Done:
        from harness.cli import main

        monkeypatch.setattr(sys, "argv", ["harness", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Done(exit_.value.code or 0, captured.out, captured.err)

    return call


@pytest.fixture
def tiny(tiny_folder: Path, tiny_tasks: Path) -> list[object]:
    """Arguments that name the tiny model and the tiny tasks."""
    return ["--pretrained", tiny_folder, "--include_path", tiny_tasks, "--device", "cpu"]
