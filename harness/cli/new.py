"""``harness new METHOD --family FAMILY``: a package to start a method from, which works and is tested as written.

The starting point is a small method on one of the engines; a family has one that its methods mostly stand on.
"""

import builtins
import keyword
import re
from difflib import get_close_matches
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
_MISSPELT = 0.8  # share of letters in common from which a family is taken for a known one, misspelt
_TEMPLATES = files("harness.cli") / "templates"
_FAMILIES = tuple(family.value for family in Family if family is not Family.BASELINE)
_ENGINES = tuple(sorted(path.name.removesuffix(".py.txt") for path in (_TEMPLATES / "engines").iterdir()))
_USUAL = {
    Family.ROUTING: "paths",
    Family.EARLY_EXIT: "tokens",
    Family.QUANTIZATION: "replaced",
    Family.SPARSE: "linear",
    Family.LOW_RANK: "linear",
    Family.LOSSLESS: "speculation",
    Family.CACHE: "cache",
    Family.CONTEXT: "cache",
}
"""The engine that methods of a family mostly stand on."""
_ANY = "surgery"


def new(
    method: Annotated[str, Argument(help="The method's name in kebab-case, such as every-other.")],
    family: Annotated[str, Option("--family", "-f", help=f"{', '.join(_FAMILIES)}, or one of your own.")],
    engine: Annotated[
        str | None, Option("--engine", "-e", help=f"What it stands on: {', '.join(_ENGINES)}. By default the family's.")
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder to write to; by default one of the method's name.")
    ] = None,
) -> None:
    """Write a package with one working method, its tests and the line that lets the harness find it."""
    _check_name(method)
    _check_family(family)
    if engine is None:
        engine = _USUAL.get(Family(family), _ANY) if family in _FAMILIES else _ANY
    if engine not in _ENGINES:
        raise UnknownNameError("engine", engine, _ENGINES)
    folder = output or Path(method)
    texts = _rendered(method, family, engine)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HarnessError(f"{folder} is there already and not empty: nothing was written; give --output DIR")
    try:
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HarnessError(f"{folder} cannot be written: {error.strerror}") from error
    if family not in _FAMILIES:
        typer.echo(f"{family} is a family of your own: lists and figures show it after the known ones")
    typer.echo(f"wrote {folder}/: a method that works, to be replaced by yours. Next:\n")
    for command in (
        f"pip install --editable {folder}",
        f"harness check {method}",
        f"harness run --method {method} --task pocket_choice --limit 200",
    ):
        typer.echo(f"  {command}")


def _check_name(name: str) -> None:
    from harness.contract import registry

    _check_words(name, "method", "every-other")
    if name in (known := registry.names()):
        built_in = f"{registry.OWN_DISTRIBUTION}/{name}" in known
        whose = "built in" if built_in else "of an installed package"
        raise HarnessError(f"there is a method {name!r} already ({whose}): choose another name")


def _check_family(family: str) -> None:
    if family == Family.BASELINE:
        raise HarnessError(
            f"the baseline is dense, and there is one: --family is {', '.join(_FAMILIES)}, or one of your own"
        )
    if family not in _FAMILIES and get_close_matches(family, _FAMILIES, n=1, cutoff=_MISSPELT):
        raise UnknownNameError("family", family, _FAMILIES, see="A family of your own needs a name less alike.")
    _check_words(family, "family", "kv-cache")


def _check_words(name: str, kind: str, example: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise HarnessError(
            f"{name!r} is no name for a {kind}: expected lower-case words joined by hyphens, such as {example}, "
            f"{_LONGEST} characters at most"
        )


def _rendered(name: str, family: str, engine: str) -> dict[str, str]:
    """The package's files by path."""
    package = f"harness_{name.replace('-', '_')}"
    class_name = "".join(word.capitalize() for word in name.split("-"))
    source = _text(f"engines/{engine}.py")
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
    statements = re.findall(r"^ *from \S+ import (\([^)]*\)|.+)$", source, re.MULTILINE)
    return [name for names in statements for name in re.findall(r"\w+", names)]


def _text(name: str) -> str:
    return (_TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
