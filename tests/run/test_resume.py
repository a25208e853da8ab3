"""A run that is stopped goes on where it stopped, loses no finished batch, and ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.contract import prepared
from harness.evaluate.journal import Journal
from harness.results.store import RunFolder, Store
from harness.run.session import Session
from harness.run.spec import Job
from tests.silent import Silent

Settings = dict[str, Any]


@pytest.fixture
def settings(tiny_folder: Path, tiny_tasks: Path, device: str) -> Settings:
    return {"methods": ("dense",), "pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "device": device}


class Killed(KeyboardInterrupt):
    """As Ctrl-C, but from a test."""


def execute(settings: Settings, store: Store, **more: Any) -> RunFolder:
    record = Session(Job(**settings, **more), store, Silent()).execute()[-1]
    return store.find(record.id)


@contextmanager
def stopped_at(target: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Be stopped inside the ``with`` block by what replaces a function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, replacement)
        try:
            yield
        except Killed:
            return
    pytest.fail("was not stopped")


def stopped_after(batches: int) -> AbstractContextManager[None]:
    """Be stopped when so many batches are kept."""
    write = Journal.write
    left = [None] * batches

    def counted(journal: Journal, batch: list[Any]) -> None:
        if not left:
            raise Killed
        left.pop()
        write(journal, batch)

    return stopped_at(Journal, "write", counted)


def forwards(patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the batches that are computed from now on."""
    seen = []
    write = Journal.write
    patch.setattr(Journal, "write", lambda journal, batch: (seen.append(batch), write(journal, batch))[1])
    return lambda: len(seen)


def outcome(folder: RunFolder) -> dict[str, Any]:
    """What must not depend on how often a run was stopped."""
    record = folder.record()
    parts = {"id", "scores", "trace", "flops", "memory", "method", "model", "evaluation", "baseline", "missing"}
    return {**record.model_dump(include=parts), "samples": (folder.path / "samples.jsonl").read_bytes()}


@pytest.mark.parametrize(
    ("task", "batch_size", "score_mode"),
    [
        ("tiny_choice", 1, None),
        ("tiny_choice", 8, None),
        ("tiny_choice", 8, "context-first"),
        ("tiny_letters", 1, None),
        ("tiny_answer", 1, None),
        ("tiny_answer", 8, None),
        ("tiny_text", 8, None),
        ("tiny_group", 8, None),
    ],
)
def test_stopped_run_ends_as_an_uninterrupted_one(
    task: str,
    batch_size: int,
    score_mode: str | None,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job: Settings = {**settings, "tasks": (task,), "batch_size": batch_size, "score_mode": score_mode}
    with monkeypatch.context() as patch:
        count = forwards(patch)
        whole = execute(job, Store(tmp_path / "whole"))
        batches = count()
    half = batches // 2
    with stopped_after(half):
        execute(job, Store(tmp_path / "stopped"))
    (stopped,) = Store(tmp_path / "stopped").folders()
    assert not stopped.finished
    with stopped.journal(0).open("a") as file:
        file.write('[{"requests": [["tiny')  # a line torn by the kill
    with monkeypatch.context() as patch:
        count = forwards(patch)
        resumed = execute(job, Store(tmp_path / "stopped"))
        assert count() == batches - half
    assert outcome(resumed) == outcome(whole)
    assert resumed.record().flops.audit_ratio == 1
    assert {path.name for path in resumed.path.iterdir()} == {"record.json", "samples.jsonl", "manifest.json"}


def test_other_batch_size_is_another_run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_after(3):
        execute(settings, Store(tmp_path), tasks=("tiny_choice",))
    count = forwards(monkeypatch)
    execute(settings, Store(tmp_path), tasks=("tiny_choice",), batch_size=8)
    assert count() == 9
    assert len(Store(tmp_path).folders()) == 2


@pytest.mark.parametrize("drawing", [{"do_sample": True, "temperature": 1.0}, {"do_sample": None, "temperature": 0.9}])
def test_sampled_answers_start_over(
    drawing: Settings, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator's state after the finished batches is gone, so they are drawn again from the seed."""
    job: Settings = {**settings, "tasks": ("tiny_answer",), "gen_kwargs": drawing, "limit": 6}
    whole = execute(job, Store(tmp_path / "whole"))
    assert len({str(line["responses"]) for line in whole.samples()}) > 1
    with stopped_after(3):
        execute(job, Store(tmp_path / "stopped"))
    count = forwards(monkeypatch)
    resumed = execute(job, Store(tmp_path / "stopped"))
    assert count() == 6
    assert outcome(resumed) == outcome(whole)


def test_stopped_between_samples_and_record(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job: Settings = {**settings, "tasks": ("tiny_choice",), "batch_size": 8}
    with stopped_at(RunFolder, "rewrite", _killed):
        execute(job, Store(tmp_path / "stopped"))
    (stopped,) = Store(tmp_path / "stopped").folders()
    assert (stopped.path / "samples.jsonl").exists()
    assert not stopped.finished
    with monkeypatch.context() as patch:
        count = forwards(patch)
        resumed = execute(job, Store(tmp_path / "stopped"))
        assert count() == 0
    assert outcome(resumed) == outcome(execute(job, Store(tmp_path / "whole")))
    assert resumed.record().flops.audit_ratio == 1  # a few are served again, whoever answered them first


def test_stopped_while_a_method_prepares(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    job: Settings = {**settings, "methods": ("layer-drop:count=1",), "tasks": ("tiny_letters",), "limit": 4}
    with stopped_at(prepared, "write_atomic", _killed):  # tensors are written, facts are not
        execute(job, Store(tmp_path / "runs"))
    assert [path.name for path in (tmp_path / "cache" / "prepared").iterdir()] == [".locks"]
    assert execute(job, Store(tmp_path / "runs")).record().method.state[0]["dropped"]


def test_stopped_method_leaves_the_model_dense(settings: Settings, tmp_path: Path) -> None:
    session = Session(
        Job(**settings, tasks=("tiny_letters",), limit=4).model_copy(update={"methods": ("layer-drop:layers=1",)}),
        Store(tmp_path),
        Silent(),
    )
    before = dict(session.lm.decoder.module.named_modules())
    with stopped_after(6):  # dense has 4 batches
        session.execute()
    assert dict(session.lm.decoder.module.named_modules()) == before
    assert session.lm.mode is None
    assert session.lm.decoder.context is None


def _killed(*_: Any, **__: Any) -> None:
    raise Killed


# ---- processes ---------------------------------------------------------------------------------------------------


BATCHES = 3

HALTED = f"""
import time
from harness.cli import main
from harness.evaluate.journal import Journal

write, batches = Journal.write, []


def write_and_halt(journal, batch):
    write(journal, batch)
    batches.append(batch)
    if len(batches) == {BATCHES}:
        time.sleep(600)


Journal.write = write_and_halt
main()
"""
"""A program that halts in the middle of a run, so that it is stopped there on any machine."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "task", "batch_size"),
    [
        (signal.SIGINT, "tiny_answer", 1),
        (signal.SIGKILL, "tiny_choice", 8),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_killed_process(how: signal.Signals, task: str, batch_size: int, settings: Settings, tmp_path: Path) -> None:
    job: Settings = {**settings, "tasks": (task,), "batch_size": batch_size}
    arguments = ["run", "--tasks", task, "--batch_size", batch_size, "--output_path", tmp_path / "stopped"]
    for name in ("pretrained", "include_path", "device"):
        arguments += [f"--{name}", settings[name]]
    process = subprocess.Popen(
        [sys.executable, "-c", HALTED, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell starts background jobs, and what they start, with Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    _wait_for_lines(tmp_path / "stopped", BATCHES, process)
    process.send_signal(how)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in output
    if how == signal.SIGINT:
        assert "give the same command again" in output
    (stopped,) = Store(tmp_path / "stopped").folders()
    assert not stopped.finished
    assert len(stopped.journal(0).read_bytes().split(b"\n")) - 1 == BATCHES
    with pytest.MonkeyPatch.context() as patch:
        count = forwards(patch)
        resumed = execute(job, Store(tmp_path / "stopped"))
        computed = count()
    with pytest.MonkeyPatch.context() as patch:
        count = forwards(patch)
        whole = execute(job, Store(tmp_path / "whole"))
        assert computed == count() - BATCHES
    assert outcome(resumed) == outcome(whole)


def _wait_for_lines(root: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many batches are in the journal."""
    deadline = time.monotonic() + 300
    while not any(path.read_bytes().count(b"\n") >= lines for path in root.glob("*/journal.jsonl")):
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.05)


def test_outcome_has_what_can_differ(settings: Settings, tmp_path: Path) -> None:
    """The comparison of this file sees a difference when there is one."""
    first = outcome(execute(settings, Store(tmp_path), tasks=("tiny_letters",), limit=4))
    second = outcome(execute(settings, Store(tmp_path), tasks=("tiny_letters",), limit=5))
    assert {key for key in first if first[key] != second[key]} >= {"scores", "trace", "samples", "flops"}
    assert json.loads(first["samples"].splitlines()[0])["doc_id"] == 0
