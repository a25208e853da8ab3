"""``ls``, ``show`` and ``doctor``: a stranger's results are shown as text, and what is broken says so."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from tests.conftest import Harness
from tests.silent import Silent

HOSTILE = "[red]x[/red] [link=http://a.b]y[/link] \x1b[31mz\x1b]0;title\x07 \x9b2J \u202eabc\r\nnew\tline [/]"


@pytest.fixture(scope="module")
def results(tiny_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("results")
    job = tiny_job(
        methods=("layer-drop:layers=1",),
        tasks=("tiny_letters",),
        limit=3,
    )
    Session(job, Store(folder), Silent()).execute()
    return folder


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    """The runs again, to be spoiled."""
    return shutil.copytree(results, tmp_path / "runs")


def spoil(record: Path) -> None:
    """Put hostile text into every string of a record that may hold any text."""

    def hostile(value: object, key: str) -> object:
        if isinstance(value, dict):
            return {name: hostile(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [hostile(part, key) for part in value]
        fixed = ("id", "run_id", "started", "savings", "score_mode")
        return HOSTILE if isinstance(value, str) and key not in fixed else value

    spoiled = hostile(json.loads(record.read_text()), "")
    spoiled["warnings"] = [HOSTILE]
    spoiled["missing"] = {HOSTILE: HOSTILE}
    record.write_text(json.dumps(spoiled))


def assert_plain(text: str) -> None:
    assert "[red]x[/red]" in text.replace("\n", "")
    assert all(char.isprintable() or char == "\n" for char in text)


def test_ls_runs_lists_the_newest_first(harness: Harness, copied: Path) -> None:
    rows = harness("ls", "runs", "--json").json()
    assert {row["method"].partition(":")[0] for row in rows} == {"dense", "layer-drop"}
    assert {row["state"] for row in rows} == {"finished"}
    assert rows[0]["score"].startswith("acc ")
    assert rows[0]["id"] in harness("ls", "runs").out


def test_hostile_records_are_text(harness: Harness, copied: Path) -> None:
    for record in copied.glob("*/record.json"):
        spoil(record)
    for command in (["ls", "runs"], ["show", Store(copied).folders()[0].path]):
        done, as_json = harness(*command), harness(*command, "--json")
        assert done.code == 0, done.err
        assert_plain(done.out)
        assert as_json.json()
        assert as_json.out.isascii()


def test_hostile_record_in_the_summary_of_a_run(harness: Harness, copied: Path, tiny: list[object]) -> None:
    for record in copied.glob("*/record.json"):
        spoil(record)
    done = harness("run", *tiny, "--tasks", "tiny_letters", "--limit", 3, "--method", "layer-drop:layers=1")
    assert done.code == 0, done.err
    assert_plain(done.out)


def test_hostile_names_in_a_refusal(harness: Harness, copied: Path) -> None:
    record = next(copied.glob("*/record.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "\x1b[31mred\x9b": 1}))
    sentence = harness("show", record.parent).sentence
    assert "red" in sentence
    assert sentence.isprintable()


def test_broken_runs_are_listed_with_the_reason(harness: Harness, copied: Path) -> None:
    first, second = sorted(copied.iterdir())
    (first / "record.json").write_text('{"id": ')
    (second / "record.json").unlink()
    (copied / "notes").mkdir()
    (copied / "notes_0123456789ab").write_text("a file")
    (copied / "empty_ba9876543210").mkdir()
    states = {row["id"]: row["state"] for row in harness("ls", "runs", "--json").json()}
    assert states.pop(first.name[-12:]).startswith("unreadable:")
    assert states == {second.name[-12:]: "unfinished", "ba9876543210": "unfinished"}
    assert harness("ls", "runs").code == 0


def test_show_takes_id_beginning_folder_and_file(harness: Harness, copied: Path) -> None:
    folder = min(copied.iterdir())
    wanted = json.loads((folder / "record.json").read_text())
    for name in (folder.name[-12:], folder.name[-12:-8], folder, folder / "record.json"):
        assert harness("show", name, "--json").json() == wanted
    assert "flops.total" in harness("show", folder).out


def test_show_says_how_the_run_was_made(harness: Harness, copied: Path) -> None:
    folder = min(copied.iterdir())
    (folder / "manifest.json").write_text(json.dumps({"command": f"harness run {HOSTILE}"}))
    assert "made by: harness run [red]" in harness("show", folder).out
    for manifest in ("", "[]", "{}", '{"command": 1}'):
        (folder / "manifest.json").write_text(manifest)
        assert harness("show", folder).code == 0


def test_ls_tasks_finds_names_by_pattern(harness: Harness) -> None:
    rows = harness("ls", "tasks", "blimp_passive*", "--json").json()
    assert [row["name"] for row in rows] == ["blimp_passive_1", "blimp_passive_2"]
    assert harness("ls", "tasks", "no such task*", "--json").json() == []


def test_ls_tasks_says_what_models_score_and_which_are_for_the_bundled_one(harness: Harness) -> None:
    rows = {row["name"]: row for row in harness("ls", "tasks", "--json").json()}
    choice = rows["pocket_choice"]
    assert choice["chance"] == "0.25"
    assert "pocket 0.694" in choice["dense"]
    assert rows["pocket_math"]["for"] == "pocket"
    assert rows["pocket"]["for"] == rows["pocket_text"]["for"] == "any model"


def test_ls_methods_as_json(harness: Harness) -> None:
    rows = {row["name"]: row for row in harness("ls", "methods", "--json").json()}
    assert (rows["layer-drop"]["family"], rows["layer-drop"]["saving"]) == ("pruning", "real")


def test_ls_models_reads_the_hub_cache(harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--org--odd" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for config in ("[]", "{", '{"text_config": 1}', '{"model_type": "\\u001b[31mx", "n_layer": [1]}'):
        (snapshot / "config.json").write_text(config)
        assert "org/odd" in [row["name"] for row in harness("ls", "models", "--json").json()]
        assert "\x1b" not in harness("ls", "models").out


def test_doctor_finds_what_is_broken(harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from harness.cli import doctor

    monkeypatch.setattr("harness.model.source.BUNDLED", tmp_path)
    assert harness("doctor").code == 1
    (tmp_path / "config.json").write_text("{}")
    healthy = harness("doctor", "-o", "deep/inside")
    assert healthy.code == 0, healthy.out
    assert "layer-drop" in healthy.out
    monkeypatch.setattr(doctor, "_devices", lambda: iter([("gpu", "broken", "[red]lost\x1b[0m")]))
    broken = harness("doctor")
    assert broken.code == 1
    assert "[red]lost" in broken.out


@pytest.mark.parametrize("command", ["ls tasks mmlu*", "ls tasks mmlu* --json", "run --help"])
def test_reader_that_leaves_early(command: str, tmp_path: Path) -> None:
    """As under ``head -1``: no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *command.split()],
        cwd=tmp_path,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    error = process.stderr.read()
    process.wait()
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
