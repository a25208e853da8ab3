"""Runs of a results folder: named, listed by filter, removed, and read whether they are packed or not."""

import gzip
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from harness.core.errors import HarnessError, StoreError
from harness.evaluate.journal import Journal
from harness.results.compare import compare
from harness.results.record import RunRecord
from harness.results.store import RunFolder, Store
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from harness.run.units import Unit
from tests.conftest import ROOT, Harness
from tests.silent import Silent
from tests.toys import record_json, sample_json

PUBLISHED = ROOT / "leaderboard" / "data"
RUNS = {
    "aaaaaaaaaaaa": ("dense", "arc_easy", "org/small", None),
    "bbbbbbbbbbbb": ("layer-drop:count=2", "arc_easy", "org/small", "first"),
    "cccccccccccc": ("layer-drop:count=2+int8-dynamic", "arc_challenge", "org/large", "first"),
    "dddddddddddd": ("int8-dynamic", "pocket_math", "pocket", "last one"),
}


def finish(folder: RunFolder, run_id: str) -> None:
    label, task, model, name = RUNS[run_id]
    plain = record_json(id=run_id, name=name)
    plain["method"] |= {"label": label, "name": "+".join(part.partition(":")[0] for part in label.split("+"))}
    plain["model"] |= {"name": model.rpartition("/")[2], "pretrained": model, "fingerprint": model}
    plain["evaluation"]["task"] = task
    lines = [sample_json(doc_id=number, doc_hash=f"{number:064x}") for number in range(3)]
    folder.finish(RunRecord.model_validate(plain), lines, {})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Four finished runs, and one that is not."""
    monkeypatch.chdir(tmp_path)
    store = Store(Path("runs"))
    for run_id in RUNS:
        finish(store.folder(run_id, "a", "b"), run_id)
    unfinished = store.folder("eeeeeeeeeeee", "mine_pocket_arc")
    unfinished.path.mkdir()
    unfinished.journal(0).write_text("")
    return store


@pytest.mark.parametrize(
    ("asked", "listed"),
    [
        ([], "abcde"),
        (["--method", "layer-drop"], "bc"),
        (["--method", "layer-drop:count=2"], "b"),
        (["--method", "layer-drop*"], "bc"),
        (["--method", "int8-dynamic", "--method", "dense"], "acd"),
        (["--task", "arc*"], "abc"),
        (["--task", "arc_easy", "--method", "dense"], "a"),
        (["--task", "arc"], ""),
        (["--model", "small"], "ab"),
        (["--model", "org/*"], "abc"),
        (["--name", "first"], "bc"),
        (["--name", "*"], "bcd"),
        (["--name", "last one"], "d"),
        (["ARC_easy"], ""),
        (["arc_easy"], "ab"),
        (["*math"], "d"),
        (["b*"], "b"),
        (["mine*"], "e"),
        (["first", "--task", "arc_easy"], "b"),
    ],
)
def test_runs_are_listed_by_filter(asked: list[str], listed: str, harness: Harness, store: Store) -> None:
    rows = harness("ls", "runs", *asked, "--json").json()
    assert sorted(row["id"][0] for row in rows) == sorted(listed)
    printed = harness("ls", "runs", *asked)
    assert printed.code == 0
    assert all(row["id"] in printed.out for row in rows)
    assert listed or "none of the 5 runs" in printed.err


def test_names_are_a_column_where_there_are_any(harness: Harness, store: Store) -> None:
    assert "last one" in harness("ls", "runs").out
    assert "name" not in harness("ls", "runs", "--method", "dense").out.splitlines()[0]


def test_a_run_is_found_by_its_name(harness: Harness, store: Store) -> None:
    assert harness("show", "last one", "--json").json()["id"] == "d" * 12
    assert "'first' fits 2 runs" in harness("show", "first").sentence


@pytest.mark.parametrize(
    "name",
    ["", " ", "a ", "a\nb", "a\x1b[31m", "<b>", "a" * 101, "p\N{CYRILLIC SMALL LETTER A}y", "a\u202eb", "\u3164"],
)
def test_a_name_is_plain_text(name: str, harness: Harness) -> None:
    assert "--name" in harness("run", "--task", "pocket_choice", "--name", name).sentence


def test_a_name_is_no_part_of_the_id(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    def run(name: str | None) -> RunRecord:
        (record,) = Session(
            tiny_job(methods=("dense",), tasks=("tiny_letters",), limit=2, name=name), store, Silent()
        ).execute()
        return record

    store = Store(tmp_path)
    records = [run(name) for name in ("one", None, "two")]
    assert [record.name for record in records] == ["one", "one", "two"]
    assert len({record.id for record in records}) == 1
    assert "--name" not in (records[0].command or "")


def test_runs_are_removed(harness: Harness, store: Store) -> None:
    done = harness("rm", "bbbb", "last one", "eeee", "--yes")
    assert done.code == 0, done.err
    assert sorted(path.name[-1] for path in store.root.iterdir()) == ["a", "c"]
    assert done.out.count("removed") == 3


@pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
def test_removing_asks(answer: str, harness: Harness, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    record = store.find("b" * 12).record()
    baseline = {"run_id": "a" * 12, "documents": 3, "ratios": {}}
    store.find("b" * 12).rewrite(RunRecord.model_validate(record.model_dump() | {"baseline": baseline}))
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    done = harness("rm", "aaaa", "dddd")
    assert (len(store.folders()) == 3) == (answer == "y\n")
    assert (done.code == 0) == (answer == "y\n")
    assert "1 other run is compared with it" in done.err
    assert "Traceback" not in done.err


def test_only_runs_of_the_folder_are_removed(harness: Harness, store: Store, tmp_path: Path) -> None:
    elsewhere = Store(tmp_path / "elsewhere")
    finish(elsewhere.folder("a" * 12, "x"), "a" * 12)
    notes = store.root / "notes"
    notes.mkdir()
    (notes / "note.txt").write_text("kept")
    named = store.root / f"thesis_{'f' * 12}"
    named.mkdir()
    (named / "note.txt").write_text("kept")
    (store.root / f"link_{'9' * 12}").symlink_to(elsewhere.folders()[0].path, target_is_directory=True)
    inside = store.find("aaaa").path
    (inside / "link").symlink_to(elsewhere.root, target_is_directory=True)
    before = sorted(tmp_path.rglob("*"))
    for name in (
        elsewhere.folders()[0].path,
        elsewhere.root,
        "runs",
        ".",
        "..",
        "/",
        notes,
        named,
        "f" * 12,
        store.root / f"link_{'9' * 12}",
        "9" * 12,
        "runs/../elsewhere",
        "nothing",
        "",
        "*",
    ):
        assert harness("rm", "bbbb", name, "--yes").sentence
        assert sorted(tmp_path.rglob("*")) == before, name
    assert harness("rm", "aaaa", "--yes").code == 0
    assert elsewhere.folders()[0].finished  # what a link leads to stays


def test_a_run_that_is_being_computed_is_not_removed(harness: Harness, store: Store) -> None:
    folder = store.find("eeee")
    with FileLock(f"{folder.journal(0)}.lock"):
        assert "being computed by another process" in harness("rm", "eeee", "--yes").sentence
    assert folder.journal(0).exists()


def pack(folder: RunFolder, board: Path) -> None:
    """As ``harness submit`` does: lines compressed, digests short."""
    packed = board / folder.id
    packed.mkdir(parents=True)
    shutil.copy(folder.path / "record.json", packed)
    lines = [json.dumps({**line, "doc_hash": line["doc_hash"][:16]}) + "\n" for line in folder.samples()]
    (packed / "samples.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))


def test_packed_runs_are_read_like_others(harness: Harness, store: Store) -> None:
    board = Path("board")
    for run_id in ("a", "b"):
        pack(store.find(run_id * 12), board)
    (board / ("f" * 12)).mkdir()  # an empty folder is no packed run
    before = {path: path.read_bytes() for path in board.rglob("*.*")}
    rows = harness("ls", "runs", "-o", board, "--json").json()
    assert sorted(row["id"][0] for row in rows) == ["a", "b"]
    for a, b in (("board", "board"), ("board", "runs"), ("runs", "board")):
        of_a, of_b = Store(Path(a)).find("aaaa"), Store(Path(b)).find("bbbb")
        assert compare(of_a, of_b).baseline.documents == 3
        done = harness("compare", of_a.path, of_b.path, "--json")
        assert done.json()["scores"][0]["vs_baseline"]["difference"] == 0
    assert harness("show", "aaaa", "-o", board).code == 0
    assert before == {path: path.read_bytes() for path in board.rglob("*.*")}
    (board / ("a" * 12) / "samples.jsonl.gz").write_bytes(b"\x1f\x8bnothing")
    assert "samples.jsonl.gz cannot be read" in harness("compare", "aaaa", "bbbb", "-o", board).sentence


def test_no_command_changes_a_packed_run(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    job = tiny_job(methods=("dense",), tasks=("tiny_letters",), limit=2)
    (record,) = Session(job, Store(tmp_path / "runs"), Silent()).execute()
    board = Store(tmp_path / "board")
    pack(Store(tmp_path / "runs").find(record.id), board.root)
    before = {path: path.read_bytes() for path in board.root.rglob("*.*")}
    costs = CostPlan(measure=frozenset({"flops", "memory"}))
    asked = Session(job.model_copy(update={"name": "mine", "costs": costs}), board, Silent())
    asked.evaluate()
    assert not asked.lacks_costs
    asked.measure()
    with pytest.raises(StoreError, match="is a packed run, which nothing changes"):
        Session(job.model_copy(update={"resume": False}), board, Silent()).execute()
    assert before == {path: path.read_bytes() for path in board.root.rglob("*.*")}


def test_a_report_of_published_runs(harness: Harness, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    board = tmp_path / "board"
    for run_id in ("fc51a6c09726", "db7ed337990b"):
        shutil.copytree(PUBLISHED / run_id, board / run_id)
    before = {path: path.read_bytes() for path in board.rglob("*.*")}
    done = harness("report", "--results", board)
    assert done.code == 0, done.err
    page = Path("report/report.html").read_text()
    assert "layer-drop:count=6" in page
    assert "Quality against cost is not drawn" not in page  # it is
    assert (Path("report") / "pareto.svg").exists()
    assert before == {path: path.read_bytes() for path in board.rglob("*.*")}


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    said, entered = [], threading.Event()
    path = tmp_path / "journal.jsonl"

    def second() -> None:
        with Journal(path, waiting=lambda: said.append("waiting") or started.set()) as journal:
            said.append(journal.waited)
        entered.set()

    started = threading.Event()
    with Journal(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert started.wait(10)
        assert not entered.is_set()
    thread.join(10)
    assert said == ["waiting", True]
    with Journal(path, waiting=lambda: None) as journal:
        assert not journal.waited


def test_what_the_first_process_finished_is_not_done_again(
    tiny_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process ends its run while this one waits for it."""
    from harness.run import quality

    job = tiny_job(methods=("dense",), tasks=("tiny_letters",), limit=2)
    store = Store(tmp_path / "runs")
    (record,) = Session(job, store, Silent()).execute()
    path = store.find(record.id).path
    away = path.rename(tmp_path / "away")
    progress = Silent()
    lock = FileLock(path / "journal.jsonl.lock")
    path.mkdir()
    lock.acquire()

    def say(message: str) -> None:
        if message == quality.WAITING:
            for file in away.iterdir():
                file.rename(path / file.name)
            lock.release()

    progress.say = say
    monkeypatch.setattr(quality, "_carry_out", lambda *_: pytest.fail("it was computed again"))
    assert Session(job, store, progress).execute() == [record]
    assert not list(path.glob("journal*"))


def test_costs_are_measured_by_one_process_at_a_time(
    tiny_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, store = [], Store(tmp_path / "runs")
    job = tiny_job(methods=("dense",), tasks=("tiny_letters",), limit=2)
    session = Session(job, store, Silent())
    (spec,) = session.plan.specs
    path = session.folder(spec).path
    path.mkdir(parents=True)
    lock = FileLock(path / "costs.lock")
    lock.acquire()

    def say(message: str) -> None:
        said.append(message)
        lock.release()

    session.progress.say = say
    monkeypatch.setattr(Session, "_measure", lambda *_: said.append("measured"))
    session.carry_out(Unit(kind="costs", task=spec.task.name))
    assert said == [f"another process measures the costs of {spec.task.name}: waiting; Ctrl-C to stop", "measured"]
    assert not list(path.iterdir())


def test_a_launch_does_not_wait(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(HarnessError, match="another process"), Journal(tmp_path / "j"):
        pass
