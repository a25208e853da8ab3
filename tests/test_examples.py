"""What an outside author does works from built wheels, away from this checkout."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.contract import registry
from harness.contract.describe import describe
from harness.testing.tiny import tiny_decoder
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
Outside = Callable[..., str]


def python(*args: object, cwd: Path, **env: str) -> str:
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, into: Path, wheels: Path) -> None:
    """Build a wheel from a copy of the source, so that nothing is left in it, and install the wheel."""
    copy = shutil.copytree(
        source,
        wheels / "sources" / source.name,
        ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "runs"),
    )
    before = set(wheels.glob("*.whl"))
    offline = ("--no-deps", "--no-index", "--quiet")
    python("-m", "pip", "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, copy, cwd=wheels)
    (wheel,) = set(wheels.glob("*.whl")) - before
    python("-m", "pip", "install", *offline, "--target", into, wheel, cwd=wheels)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the harness and the outside package, both from wheels."""
    into, wheels = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("wheels")
    build(ROOT, into, wheels)
    build(EXAMPLES / "every-other", into, wheels)
    return into


@pytest.fixture
def outside(installed: Path, tmp_path: Path) -> Outside:
    """Run Python with the installed wheels, ahead of any checkout, in an empty folder."""

    def run(*args: object) -> str:
        return python(*args, cwd=tmp_path, PYTHONPATH=str(installed), HF_HUB_OFFLINE="1", COLUMNS="100")

    return run


@pytest.mark.slow
def test_the_wheels_are_what_runs(outside: Outside, installed: Path) -> None:
    code = "import harness, harness_every_other; print(harness.__file__, harness_every_other.__file__)"
    assert all(Path(name).is_relative_to(installed) for name in outside("-c", code).split())


@pytest.mark.slow
def test_the_outside_method_is_listed_shown_and_run(outside: Outside, tiny_folder: Path, tiny_tasks: Path) -> None:
    listed = {row["name"]: row for row in json.loads(outside("-m", "harness", "ls", "methods", "--json"))}
    assert listed["every-other"]["from"] == "harness-every-other 0.1.0"
    assert listed["layer-drop"]["from"] == "built in"
    assert "every second layer" in outside("-m", "harness", "show", "every-other")
    model = ("--pretrained", tiny_folder, "--include_path", tiny_tasks, "--device", "cpu")
    args = ("--method", "every-other:start=0.25", "--task", "tiny_choice", "--limit", "4", *model)
    dense, record = json.loads(outside("-m", "harness", "run", *args, "--json"))
    assert (dense["method"]["name"], record["method"]["label"]) == ("dense", "every-other:start=0.25")
    assert record["trace"]["executed"]
    assert record["baseline"]["documents"] == 4
    assert record["flops"]["total"] < dense["flops"]["total"]
    assert record["flops"]["audit_ratio"] == pytest.approx(1)


@pytest.mark.slow
def test_the_outside_package_passes_its_own_tests(outside: Outside, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "every-other" / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLES / "every-other" / "pyproject.toml", tmp_path)
    assert " passed" in outside("-m", "pytest", "-q", "tests")


@pytest.mark.slow
def test_from_new_to_a_row_in_four_commands(
    outside: Outside, installed: Path, tmp_path: Path, tiny_folder: Path, tiny_tasks: Path
) -> None:
    outside("-m", "harness", "new", "my-idea", "--family", "routing")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    own = tmp_path / "own"
    outside("-m", "pip", "install", *offline, "--target", own, "./my-idea")
    both = {"PYTHONPATH": f"{own}{os.pathsep}{installed}", "HF_HUB_OFFLINE": "1"}
    python("-m", "harness", "check", "my-idea", "--family", "llama", cwd=tmp_path, **both)
    model = ("--pretrained", tiny_folder, "--include_path", tiny_tasks, "--device", "cpu")
    args = ("--method", "my-idea:longest=1", "--task", "tiny_answer", "--limit", "4", *model)
    _, record = json.loads(python("-m", "harness", "run", *args, "--json", cwd=tmp_path, **both))
    assert record["trace"]["executed"]
    assert record["baseline"]["ratios"]["flops"]["value"] < 1


def test_the_loose_method_keeps_the_ends() -> None:
    method = registry.from_file(EXAMPLES / "loose_method.py", "Funnel")
    model, ids = tiny_decoder("llama", layers=4), torch.arange(3, 15)[None]
    blocks = [block.module for block in model.anatomy.blocks]
    with method.from_args({"keep": "0.5"}).attach(model, method().prepare(model, None)), torch.no_grad():
        assert [blocks.index(layer) for layer in model.module.model.layers] == [0, 3]
        model.module(ids)
    assert list(model.module.model.layers) == blocks
    with method.from_args({"keep": "0"}).attach(model, method().prepare(model, None)):
        assert len(model.module.model.layers) == 2
    assert describe(method).neutral == "funnel:keep=1.0"


@pytest.mark.slow
def test_the_loose_method_runs(outside: Outside, tiny_folder: Path, tiny_tasks: Path) -> None:
    model = ("--pretrained", tiny_folder, "--include_path", tiny_tasks, "--device", "cpu")
    method = f"{EXAMPLES / 'loose_method.py'}:Funnel:keep=0.5"
    args = ("--method", method, "--task", "tiny_letters", "--limit", "4", *model)
    _, record = json.loads(outside("-m", "harness", "run", *args, "--json"))
    assert record["method"]["label"] == "funnel:keep=0.5"
    assert record["trace"]["mean_depth_prefill"] == pytest.approx(0.5)
