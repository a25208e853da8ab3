"""What is packaged is what is in the tree: every package, and the methods by entry point."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


FLOORS = {
    "torch": "2.6",
    "transformers": "5.18",
    "huggingface_hub": "2.4",
}
"""The oldest releases that are admitted; docs/models.md says what was run with each."""


def requirements() -> dict[str, Requirement]:
    parsed = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    return {each.name: each for each in parsed}


@pytest.mark.parametrize("name", FLOORS)
def test_a_floor_is_in_the_table_of_what_was_run(name: str) -> None:
    specifiers = {each.operator: each.version for each in requirements()[name].specifier}
    assert specifiers[">="] == FLOORS[name]
    assert f"| {name} {FLOORS[name]} |" in (ROOT / "docs" / "models.md").read_text()


def test_the_tested_set_is_within_the_floors() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    for name, requirement in requirements().items():
        if (version := versions.get(canonicalize_name(name))) is not None:
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement} leaves out {version}"
