"""Built wheels, away from this checkout: they hold the packages, and what an outside author does works with them."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Done, Machine
from tests.test_package import FOLDERS, PROJECT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
# published results and what makes them belong to the repository
NOT_INSTALLED = ("leaderboard/data/", "leaderboard/README.md", "leaderboard/own.sh")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
Outside = Callable[..., list[Done]]


def tracked() -> list[str]:
    """The files that belong to the tree, relative to its root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: what belongs to the tree is not known")
    names = listed.stdout.decode().split("\0")
    return [name for name in names if (ROOT / name).is_file()]


def build(source: Path, into: Path) -> None:
    """Build a wheel as pip asks setuptools to, and unpack it, which is all that installing it does."""
    wheels = source / "dist"
    wheels.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, wheels], cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(into)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the harness, from a wheel of the tracked files."""
    source, into = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build(source, into)
    return into


@pytest.fixture(scope="module")
def with_package(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folders on the path of somebody who has installed the harness and the outside package."""
    source, into = tmp_path_factory.mktemp("outside"), tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__")
    build(shutil.copytree(EXAMPLES / "every-other", source / "every-other", ignore=ignored), into)
    return f"{into}{os.pathsep}{installed}"


def python(*args: object, cwd: Path, path: object) -> str:
    """Output of Python in a folder that is not the checkout, with these folders ahead of any other."""
    environment = {**os.environ, "PYTHONPATH": str(path), "HARNESS_CACHE": str(cwd / "cache")}
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_every_file_of_the_packages(installed: Path) -> None:
    missing = []
    for name in tracked():
        top, _, rest = name.partition("/")
        places = [place.replace(".", "/") for place, folder in FOLDERS.items() if folder == top and rest]
        if not name.startswith(NOT_INSTALLED):
            missing += [name for place in places if not (installed / place / rest).is_file()]
    assert missing == []
    assert (installed / "harness" / "results" / "record.schema.json").is_file()
    assert (installed / "harness" / "py.typed").is_file()


def test_a_wheel_has_nothing_else_at_the_top(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"harness"}


def test_an_installed_wheel_knows_its_methods_and_loads_its_tasks(installed: Path, tmp_path: Path) -> None:
    code = """
import harness, harness.methods.dense
from harness.contract import registry
from harness.evaluate import tasks

print(harness.__file__, harness.methods.dense.__file__, tasks.BUNDLED)
print(*(item.name for item in registry.listings() if item.built_in and registry.get(item.name)))
tasks.known_names = dict
print(len(tasks.TaskLoader().load("pocket_math", tasks.Overrides()).tasks["pocket_math"].eval_docs))
"""
    places, methods, documents = python("-c", code, cwd=tmp_path, path=installed).splitlines()
    assert all(Path(place).is_relative_to(installed) for place in places.split())
    assert set(methods.split()) == PROJECT["project"]["entry-points"]["harness.methods"].keys()
    assert int(documents) > 0


def test_outside_methods_are_listed_shown_and_run(
    with_package: str, machine: Machine, tmp_path: Path, tiny: list[object]
) -> None:
    run = ["run", "--limit", 4, *tiny, "--json"]
    loose = f"{EXAMPLES / 'loose_method.py'}:Funnel:keep=0.5"
    listed, shown, packaged, from_file = machine(
        ["ls", "methods", "--json"],
        ["show", "every-other"],
        [*run, "--method", "every-other:start=0.25", "--task", "tiny_choice"],
        [*run, "--method", loose, "--task", "tiny_letters"],
        PYTHONPATH=with_package,
    )
    rows = {row["name"]: row for row in listed.json()}
    assert rows["every-other"]["from"] == "harness-every-other 0.1.0"
    assert rows["layer-drop"]["from"] == "built in"
    assert "every second layer" in shown.out
    dense, record = packaged.json()
    assert (dense["method"]["name"], record["method"]["label"]) == ("dense", "every-other:start=0.25")
    assert record["trace"]["executed"]
    assert record["baseline"]["documents"] == 4
    assert record["flops"]["total"] < dense["flops"]["total"]
    assert record["flops"]["audit_ratio"] == pytest.approx(1)
    _, record = from_file.json()
    assert record["method"]["label"] == "funnel:keep=0.5"
    assert record["trace"]["mean_depth_prefill"] == pytest.approx(0.5)


def test_the_outside_package_passes_its_own_tests(with_package: str, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "every-other" / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLES / "every-other" / "pyproject.toml", tmp_path)
    chosen = "attention or layers"  # one of its two settings, and what is no check of the kit
    assert " passed" in python("-m", "pytest", "-q", "-k", chosen, "tests", cwd=tmp_path, path=with_package)


def test_from_new_to_a_row_in_four_commands(
    installed: Path, machine: Machine, tmp_path: Path, tiny: list[object]
) -> None:
    (made,) = machine(["new", "my-idea", "--family", "routing"], PYTHONPATH=str(installed))
    assert made.code == 0, made.err
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    python("-m", "pip", "install", *offline, "--target", tmp_path / "own", "./my-idea", cwd=tmp_path, path=installed)
    checked, done = machine(
        ["check", "my-idea", "--family", "llama"],
        ["run", "--method", "my-idea:longest=1", "--task", "tiny_answer", "--limit", 4, *tiny, "--json"],
        PYTHONPATH=f"{tmp_path / 'own'}{os.pathsep}{installed}",
    )
    assert checked.code == 0, checked.out
    _, record = done.json()
    assert record["trace"]["executed"]
    assert record["baseline"]["ratios"]["flops"]["value"] < 1
