"""A loose method's file goes with its run: kept, packed, checked, shown, and run by nobody but its user."""

import hashlib
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.leaderboard.rerun import rerun
from harness.leaderboard.results import load
from harness.leaderboard.rules import read
from harness.leaderboard.site import build
from harness.leaderboard.submit import submit
from harness.leaderboard.validate import validate
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from tests.conftest import Harness
from tests.leaderboard.tampered import Submission
from tests.silent import Silent

METHOD = '''
"""Drop the last MLPs. </code></pre><script>alert(1)</script>"""
from dataclasses import dataclass
from pathlib import Path
from harness import Family, Method, Savings, without_branches

with (Path(__file__).parent / "imported").open("a") as file:
    file.write(".")


@dataclass(frozen=True, kw_only=True)
class Short(Method):
    """Drops the last MLPs."""

    name = "short"
    family = Family.PRUNING
    savings = Savings.REAL
    count: int = 1

    def attach(self, model, prepared):
        """Without them."""
        layers = len(model.anatomy.blocks)
        return without_branches(model, mlp=range(layers - self.count, layers))
'''


@pytest.fixture(scope="module")
def made(tiny_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of dense and of a loose method, the folder of its file beside them."""
    root = tmp_path_factory.mktemp("loose")
    (root / "plug in").mkdir()
    (root / "plug in" / "short.py").write_text(METHOD)
    job = tiny_job(methods=("dense", f"{root}/plug in/short.py:Short:count=2"), tasks=("tiny_letters",))
    Session(job, Store(root / "runs"), Silent()).execute()
    return root


@pytest.fixture(scope="module")
def folder(made: Path) -> Path:
    return next((made / "runs").glob("short*"))


@pytest.fixture(scope="module")
def packed(made: Path, folder: Path) -> Path:
    submit(folder.name, Store(made / "runs"), made / "packed")
    return made / "packed"


@pytest.fixture
def victim(packed: Path, folder: Path, tmp_path: Path) -> Submission:
    board = shutil.copytree(packed, tmp_path / "data")
    return Submission(board / load(folder).record["id"])


def errors(submission: Submission) -> list[str]:
    return [each.text for each in validate(submission.folder.parent).findings if each.severity == "error"]


def test_the_run_keeps_the_file_and_a_command_that_works_beside_it(folder: Path, harness: Harness, tiny: Any) -> None:
    record = load(folder).record
    assert (folder / "short.py").read_text() == METHOD
    assert record["method"]["files"] == {"short.py": hashlib.sha256(METHOD.encode()).hexdigest()}
    words = shlex.split(record["command"])
    assert words[words.index("--method") + 1] == "./short.py:Short:count=2"
    shown = harness("show", folder).out
    assert "to make it again, in" in shown
    assert record["command"] in shown.splitlines()
    os.chdir(folder)
    (again,) = harness(*words[1:], "--no_baseline", "--dry_run", "--json").json()
    assert again["id"] == record["id"]


def test_it_is_packed_and_accepted_and_nobody_runs_it(made: Path, victim: Submission) -> None:
    assert (victim.folder / "short.py").read_text() == METHOD
    imported = (made / "plug in" / "imported").read_text()
    assert errors(victim) == []
    assert "never run" in str(rerun(read(load(victim.folder)), 3))
    assert (made / "plug in" / "imported").read_text() == imported
    assert not (victim.folder / "imported").exists()


def test_the_site_offers_it_as_text(victim: Submission, tmp_path: Path) -> None:
    build(victim.folder.parent, tmp_path / "site")
    assert (tmp_path / "site" / "data" / victim.folder.name / "short.py").read_text() == METHOD
    page = (tmp_path / "site" / "runs" / f"{victim.folder.name}.html").read_text()
    assert "class Short(Method)" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert f'href="../data/{victim.folder.name}/short.py" download' in page
    assert "./short.py:Short:count=2" in page


Attack = Callable[[Submission], object]


def files(**stated: str) -> Attack:
    return lambda run: run.edit(lambda record: record["method"].update(files=stated))


def put(name: str, content: str = METHOD) -> Attack:
    return lambda run: (run.folder / name).write_text(content)


def renamed(name: str) -> Attack:
    """The file under another name, everywhere."""

    def attack(run: Submission) -> None:
        (run.folder / "short.py").rename(run.folder / name)

        def change(record: dict[str, Any]) -> None:
            record["method"]["files"] = {name: record["method"]["files"].pop("short.py")}
            record["command"] = record["command"].replace("short.py", name)

        run.edit(change)

    return attack


def grown(run: Submission) -> None:
    text = "#" * 300_000
    (run.folder / "short.py").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    run.edit(lambda record: record["method"].update(files={"short.py": digest}))


def linked(run: Submission) -> None:
    (run.folder / "short.py").rename(run.folder.parent / "elsewhere")
    (run.folder / "short.py").symlink_to(run.folder.parent / "elsewhere")


def without_command(run: Submission) -> None:
    run.edit(lambda record: record.update(command="harness run --method short --tasks tiny_letters"))


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (put("short.py", METHOD + "# more\n"), "sha256"),
        (lambda run: (run.folder / "short.py").unlink(), "no short.py"),
        (put("other.py"), "unexpected files: 'other.py'"),
        (put("install.sh"), "unexpected files"),
        (files(), "unexpected files: 'short.py'"),
        (files(**{"../../x.py": "0" * 64}), "a method's file of the name ../../x.py"),
        (files(**{"short.py": "0" * 64, "more.py": "0" * 64}), "2 files of 1 methods"),
        (renamed("conftest.py"), "a method's file of the name conftest.py"),
        (renamed("record.json.py"), None),
        (grown, "bytes"),
        (linked, "plain file"),
        (without_command, "no file that the run's command names"),
    ],
)
def test_only_this_file_is_accepted(attack: Attack, says: str | None, victim: Submission) -> None:
    attack(victim)
    victim.sign("short.py", "record.json.py", "conftest.py")
    found = errors(victim)
    assert (not found) if says is None else any(says in text for text in found), found


def test_a_site_of_anything_shows_no_file_that_is_not_what_ran(victim: Submission, tmp_path: Path) -> None:
    (victim.folder / "short.py").write_text("print('another')")
    build(victim.folder.parent, tmp_path / "site")
    assert not (tmp_path / "site" / "data" / victim.folder.name / "short.py").exists()
    assert "is not the file that ran" in (tmp_path / "site" / "runs" / f"{victim.folder.name}.html").read_text()
