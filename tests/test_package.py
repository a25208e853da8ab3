"""What is installed is what is in the tree: every package, every data file, and the methods by entry point."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


def package(path: Path) -> str:
    """The import name of a folder of the tree."""
    top, *rest = path.relative_to(ROOT).parts
    (name,) = [name for name, folder in FOLDERS.items() if folder == top]
    return ".".join([name, *rest])


def data_folders() -> set[Path]:
    """Folders with an __init__.py of the top-level folders that are packages."""
    return {path.parent for top in FOLDERS.values() for path in (ROOT / top).rglob("__init__.py")}


def test_the_packages_are_those_of_the_tree() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == {package(path) for path in data_folders()}


def test_every_python_file_is_in_a_package() -> None:
    files = {path for top in FOLDERS.values() for path in (ROOT / top).rglob("*.py")}
    assert [path for path in files if path.parent not in data_folders()] == []


@pytest.mark.parametrize("name", FOLDERS)
def test_the_fixed_folders_have_their_import_names(name: str) -> None:
    from importlib import import_module

    assert Path(str(import_module(name).__file__)).parent == ROOT / FOLDERS[name]


def test_every_entry_point_is_a_method_of_its_name() -> None:
    from harness.contract import registry

    points = PROJECT["project"]["entry-points"]["harness.methods"]
    assert {item.name: item.target for item in registry.listings() if item.built_in} == points


def test_the_version_is_one() -> None:
    from importlib.metadata import version

    import harness

    assert harness.__version__ == PROJECT["project"]["version"] == version("efficiency-harness")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the tracked files, built without a network and installed into a folder of its own."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout: what belongs to the tree is not known")
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source]
    subprocess.run(build, check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True)
    return target


def elsewhere(installed: Path, cwd: Path, *args: str) -> str:
    """Output of Python in a folder that is not the checkout, with the installed wheel before all else."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "HARNESS_CACHE": str(cwd / "c")}
    command = [sys.executable, *args]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# published results and what makes them belong to the repository
NOT_INSTALLED = ("leaderboard/data/", "leaderboard/README.md", "leaderboard/own.sh")


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_packages(installed: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    missing = []
    for name in filter(None, tracked.split("\0")):
        top, _, rest = name.partition("/")
        places = [place.replace(".", "/") for place, folder in FOLDERS.items() if folder == top and rest]
        if name.startswith(NOT_INSTALLED):
            continue
        missing += [name for place in places if (ROOT / name).is_file() and not (installed / place / rest).is_file()]
    assert missing == []
    assert (installed / "harness" / "results" / "record.schema.json").is_file()
    assert (installed / "harness" / "py.typed").is_file()


@pytest.mark.slow
def test_a_wheel_has_nothing_else_at_the_top(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} <= {"harness", "bin"}


@pytest.mark.slow
def test_an_installed_wheel_knows_its_methods(installed: Path, tmp_path: Path) -> None:
    where = elsewhere(installed, tmp_path, "-c", "import harness.methods.dense as m; print(m.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    listed: list[dict[str, Any]] = json.loads(
        elsewhere(installed, tmp_path, "-m", "harness", "ls", "methods", "--json")
    )
    own = {item["name"]: item["what"] for item in listed if item["from"] == "built in"}
    assert own.keys() == PROJECT["project"]["entry-points"]["harness.methods"].keys()
    assert not [what for what in own.values() if what.startswith("broken")]


@pytest.mark.slow
def test_an_installed_wheel_loads_its_tasks(installed: Path, tmp_path: Path) -> None:
    code = (
        "from harness.evaluate import tasks; tasks.known_names = dict\n"
        "loaded = tasks.TaskLoader().load('pocket_math', tasks.Overrides())\n"
        "print(tasks.BUNDLED, len(loaded.tasks['pocket_math'].eval_docs))"
    )
    bundled, documents = elsewhere(installed, tmp_path, "-c", code).split()
    assert Path(bundled) == installed / "harness" / "tasks"
    assert int(documents) > 0
