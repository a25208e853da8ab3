"""Methods by name: entry points of the group ``harness.methods``.

Listing imports every plugin, and a broken one is listed with its error and hides no other. Asking for one method
imports that one alone. A built-in wins over an outside method of the same name; ``distribution/name`` asks for one of
them.
"""

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

from harness.contract.facts import mistyped
from harness.contract.families import Family, rank, refusal
from harness.contract.loose import MethodFile, remember
from harness.contract.method import Method
from harness.core.errors import MethodError, UnknownNameError
from harness.core.strangers import METHODS, is_interrupt, message_of, stranger_of

OWN_DISTRIBUTION = "efficiency-harness"
LOOSE = "harness_loose_"
"""What the names of the modules of loose files begin with."""


@dataclass(frozen=True)
class Listing:
    """One declared method: its class, or ``error``, which says why it cannot be used."""

    name: str
    target: str
    distribution: str
    version: str
    method: type[Method] | None = None
    error: str | None = None

    @property
    def built_in(self) -> bool:
        """Whether the method ships with the harness."""
        return self.distribution == OWN_DISTRIBUTION

    @property
    def family(self) -> str | None:
        """The method's family, where it can be used."""
        return None if self.method is None else str(self.method.family)

    @property
    def savings(self) -> str | None:
        """What the method saves, where it can be used."""
        return None if self.method is None else str(self.method.savings)

    @property
    def summary(self) -> str:
        """The first paragraph of the method's docstring."""
        return " ".join((inspect.getdoc(self.method) or "").partition("\n\n")[0].split()) if self.method else ""


def listings() -> list[Listing]:
    """Every declared method, by family and name; broken ones come last."""
    listed = [_listing(point) for point in _points()]
    return sorted(listed, key=lambda item: (item.error is not None, rank(item.family or ""), item.family, item.name))


def names() -> list[str]:
    """Every declared method's name, and ``distribution/name``; nothing is imported."""
    return list(_by_name())


def get(name: str) -> type[Method]:
    """The method class of that name.

    Raises:
        UnknownNameError: no method has the name.
        MethodError: its module cannot be imported, or holds no Method of that name.
    """
    points = _by_name()
    if name not in points:
        known = [key for key in points if "/" not in key]
        raise UnknownNameError("method", name, known, see="`harness ls methods` lists them all.")
    return _loaded(points[name])


def imported() -> bool:
    """Whether this process has imported the module of any method."""
    declared = {point.value.partition(":")[0].strip() for point in _points()}
    return any(name in declared or name.startswith(LOOSE) for name in list(sys.modules))


def from_file(path: Path, class_name: str) -> type[Method]:
    """The method class in a loose Python file.

    Raises:
        MethodError: no such file, or the file holds no Method of that name.
    """
    path = path.expanduser()
    if not path.is_file():
        raise MethodError(f"no such file: {path} (a loose method is written ./file.py:Class)")
    try:
        file = MethodFile(path.name, path.read_bytes())
    except OSError as error:
        raise MethodError(f"{path} cannot be read: {error.strerror}") from error
    # by its whole path: files of one name in two folders are two modules
    module_name = f"{LOOSE}{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up there
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except BaseException as error:  # a stranger's file may fail in any way; the message names it
        if is_interrupt(error):
            raise
        raise MethodError(f"{path} cannot be loaded: {_reason(error)}") from error
    methods = [name for name, value in vars(module).items() if _is_method(value) and value.__module__ == module_name]
    if class_name not in vars(module):
        raise UnknownNameError(f"class in {path}", class_name, methods, see=f"It has: {', '.join(methods) or 'none'}.")
    method = _checked(getattr(module, class_name), f"{path}:{class_name}")
    if class_name in methods:  # and not a class that it imports
        remember(method, file)
    return method


@cache
def _points() -> tuple[EntryPoint, ...]:
    try:
        return tuple(entry_points(group=METHODS))
    except (TypeError, ValueError):  # one distribution's entry_points.txt is broken: do without that one
        return tuple(_readable_points())


def _readable_points() -> Iterator[EntryPoint]:
    seen: set[str] = set()
    for distribution in distributions():
        with suppress(TypeError, ValueError):
            if distribution.name not in seen:  # the first on sys.path is the one that is imported
                yield from distribution.entry_points.select(group=METHODS)
            seen.add(distribution.name)


@cache
def _by_name() -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in sorted(_points(), key=lambda point: _distribution(point) != OWN_DISTRIBUTION):
        points.setdefault(point.name, point)
        points[f"{_distribution(point)}/{point.name}"] = point
    return points


def _distribution(point: EntryPoint) -> str:
    return (point.dist.name if point.dist else None) or "unknown"


def _version(point: EntryPoint) -> str:
    return point.dist.version if point.dist else "?"


def _listing(point: EntryPoint) -> Listing:
    about = point.name, point.value, _distribution(point), _version(point)
    try:
        return Listing(*about, method=_loaded(point))
    except MethodError as error:
        return Listing(*about, error=str(error))


def _loaded(point: EntryPoint) -> type[Method]:
    what = f"{point.name!r} ({_distribution(point)} {_version(point)}, {point.value})"
    if not EntryPoint.pattern.match(point.value):
        raise MethodError(f"method {what} cannot be loaded: its entry point is not of the form module:Class")
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no part of a command's output
            loaded = point.load()
    except BaseException as error:  # a plugin may fail in any way; the message names it
        if is_interrupt(error):
            raise
        raise MethodError(f"method {what} cannot be loaded: {_reason(error)}") from error
    return _checked(loaded, f"method {what}")


def _reason(error: BaseException) -> str:
    place = stranger_of(error)
    return f"{message_of(error)}{f' at {place}' if place else ''}"


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _checked(loaded: Any, what: str) -> type[Method]:
    if not _is_method(loaded):
        raise MethodError(f"{what} is not a subclass of harness.Method")
    missing = [attribute for attribute in ("name", "family") if not isinstance(getattr(loaded, attribute, None), str)]
    reason = refusal(loaded.name, loaded.family) if hasattr(loaded, "family") and "name" not in missing else None
    if missing:
        more = f": {reason}" if reason else ""
        raise MethodError(f"{what} does not declare the class attribute(s) {', '.join(missing)} as text{more}")
    if reason:
        raise MethodError(f"{what} cannot be used: {reason}")
    if inspect.isabstract(loaded):
        raise MethodError(f"{what} does not define {', '.join(sorted(loaded.__abstractmethods__))}")
    if "__dataclass_fields__" not in vars(loaded):
        raise MethodError(f"{what} lacks the decorator @dataclass(frozen=True, kw_only=True)")
    method: type[Method] = loaded
    if wrong := mistyped(method):
        raise MethodError(f"{what} cannot be used: its declaration {'; '.join(wrong)}")
    if method.family == Family.BASELINE and not method.__module__.startswith("harness."):
        raise MethodError(f"{what} claims to be the baseline, which is dense; choose another family")
    return method
