"""``harness new METHOD --family FAMILY``: a package to start a method from, which works and is tested as written."""

import builtins
import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer
from typer import Argument, Option

from harness.contract.families import Family
from harness.core.errors import HarnessError, UnknownNameError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 30
_TEMPLATES = files("harness.cli") / "templates"
_FAMILIES = tuple(family.value for family in Family if family is not Family.BASELINE)


def new(
    method: Annotated[str, Argument(help="The method's name in kebab-case, such as every-other.")],
    family: Annotated[str, Option("--family", "-f", help=f"One of {', '.join(_FAMILIES)}.")],
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder to write to; by default one of the method's name.")
    ] = None,
) -> None:
    """Write a package with one working method, its tests and the line that lets the harness find it."""
    _check_name(method)
    _check_family(family)
    folder = output or Path(method)
    written = _rendered(method, family)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HarnessError(f"{folder} is there already and not empty: nothing was written; give --output DIR")
    try:
        for name, text in written.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HarnessError(f"{folder} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {folder}/: a method that works, to be replaced by yours. Next:\n")
    for command in (
        f"pip install --editable {folder}",
        f"harness check {method}",
        f"harness run --method {method} --task pocket_choice --limit 200",
    ):
        typer.echo(f"  {command}")


def _check_name(name: str) -> None:
    from harness.contract import registry

    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise HarnessError(
            f"{name!r} is no name for a method: expected lower-case words joined by hyphens, such as every-other, "
            f"{_LONGEST} characters at most"
        )
    if name in (known := registry.names()):
        built_in = f"{registry.OWN_DISTRIBUTION}/{name}" in known
        whose = "built in" if built_in else "of an installed package"
        raise HarnessError(f"there is a method {name!r} already ({whose}): choose another name")


def _check_family(family: str) -> None:
    if family == Family.BASELINE:
        raise HarnessError(f"the baseline is dense, and there is one: --family is one of {', '.join(_FAMILIES)}")
    if family not in _FAMILIES:
        raise UnknownNameError("family", family, _FAMILIES, see=f"There are {', '.join(_FAMILIES)}.")


def _rendered(name: str, family: str) -> dict[str, str]:
    """The package's files by path."""
    package = f"harness_{name.replace('-', '_')}"
    class_name = "".join(word.capitalize() for word in name.split("-"))
    source = _text(f"{family}.py")
    if keyword.iskeyword(class_name) or class_name in {*dir(builtins), *_imported(source)}:
        raise HarnessError(f"the class of {name!r} would be {class_name}, which means something else: choose another")
    title = name.replace("-", " ").capitalize()
    values = {"name": name, "family": family, "package": package, "cls": class_name, "title": title}
    texts = {
        "pyproject.toml": _text("pyproject.toml"),
        "README.md": _text("README.md"),
        f"src/{package}/__init__.py": _text("__init__.py"),
        f"src/{package}/method.py": source,
        "tests/test_method.py": _text("test_method.py"),
    }
    return {path: Template(text).substitute(values) for path, text in texts.items()}


def _imported(source: str) -> list[str]:
    """The names that a module takes from others."""
    return [name for names in re.findall(r"^from \S+ import (.+)$", source, re.MULTILINE) for name in names.split(", ")]


def _text(name: str) -> str:
    return (_TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
