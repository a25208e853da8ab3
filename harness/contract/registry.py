"""Methods by name: entry points of the group ``harness.methods``, found without importing them.

Listing reads each plugin's source and imports nothing; the class is imported when its method is asked for. A
built-in wins over an outside method of the same name; ``distribution/name`` asks for one of them.
"""

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

from harness.contract.families import Family
from harness.contract.method import Method
from harness.core.errors import MethodError, UnknownNameError

GROUP = "harness.methods"
OWN_DISTRIBUTION = "efficiency-harness"


@dataclass(frozen=True)
class Listing:
    """One method as its metadata and source describe it; ``error`` says why it cannot be used, if it cannot."""

    name: str
    target: str
    distribution: str
    version: str
    family: str | None = None
    savings: str | None = None
    summary: str = ""
    error: str | None = None

    @property
    def built_in(self) -> bool:
        """Whether the method ships with the harness."""
        return self.distribution == OWN_DISTRIBUTION


def listings() -> list[Listing]:
    """Every declared method, by family and name, without importing any of them."""
    families = list(Family)

    def order(item: Listing) -> tuple[bool, int, str]:
        rank = families.index(Family(item.family)) if item.family in families else len(families)
        return item.error is not None, rank, item.name

    return sorted((_describe(point) for point in _points()), key=order)


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
    point = points[name]
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:  # a plugin may fail in any way; the message names it
        raise MethodError(f"method {name!r} ({_origin(point)}) cannot be loaded: {_reason(error)}") from error
    return _checked(loaded, f"{name!r} ({_origin(point)})")


def from_file(path: Path, class_name: str) -> type[Method]:
    """The method class in a loose Python file.

    Raises:
        MethodError: no such file, or the file holds no Method of that name.
    """
    path = path.expanduser()
    if not path.is_file():
        raise MethodError(f"no such file: {path} (a loose method is written ./file.py:Class)")
    # by its whole path: files of one name in two folders are two modules
    module_name = f"harness_loose_{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a stranger's file may fail in any way; the message names it
        raise MethodError(f"{path} cannot be loaded: {_reason(error)}") from error
    methods = [name for name, value in vars(module).items() if _is_method(value) and value.__module__ == module_name]
    if class_name not in vars(module):
        raise UnknownNameError(f"class in {path}", class_name, methods, see=f"It has: {', '.join(methods) or 'none'}.")
    return _checked(getattr(module, class_name), f"{path}:{class_name}")


@cache
def _points() -> tuple[EntryPoint, ...]:
    try:
        return tuple(entry_points(group=GROUP))
    except (TypeError, ValueError):  # one distribution's entry_points.txt is broken: do without that one
        return tuple(_readable_points())


def _readable_points() -> Iterator[EntryPoint]:
    seen: set[str] = set()
    for found in distributions():
        with suppress(TypeError, ValueError):
            if found.name not in seen:  # the first on sys.path is the one that is imported
                yield from found.entry_points.select(group=GROUP)
            seen.add(found.name)


@cache
def _by_name() -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in sorted(_points(), key=lambda point: _distribution(point) != OWN_DISTRIBUTION):
        points.setdefault(point.name, point)
        points[f"{_distribution(point)}/{point.name}"] = point
    return points


def _distribution(point: EntryPoint) -> str:
    return (point.dist.name if point.dist else None) or "unknown"


def _origin(point: EntryPoint) -> str:
    return f"{_distribution(point)} {point.dist.version if point.dist else ''}".strip() + f", {point.value}"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _checked(loaded: Any, what: str) -> type[Method]:
    if not _is_method(loaded):
        raise MethodError(f"{what} is not a subclass of harness.Method")
    missing = [attribute for attribute in ("name", "family") if not hasattr(loaded, attribute)]
    if missing:
        raise MethodError(f"{what} does not declare the class attribute(s) {', '.join(missing)}")
    if inspect.isabstract(loaded):
        raise MethodError(f"{what} does not define {', '.join(sorted(loaded.__abstractmethods__))}")
    if "__dataclass_fields__" not in vars(loaded):
        raise MethodError(f"{what} lacks the decorator @dataclass(frozen=True, kw_only=True)")
    method: type[Method] = loaded
    if method.family is Family.BASELINE and not method.__module__.startswith("harness."):
        raise MethodError(f"{what} claims to be the baseline, which is dense; choose another family")
    return method


def _describe(point: EntryPoint) -> Listing:
    facts: dict[str, Any] = {}
    try:
        if not EntryPoint.pattern.match(point.value):
            raise ImportError(f"{point.value!r} is not of the form module:Class")
        facts = _class_facts(point.module, point.attr)
    except (OSError, SyntaxError, ValueError, ImportError, RecursionError) as error:
        facts["error"] = _reason(error)
    version = point.dist.version if point.dist else "?"
    return Listing(point.name, point.value, _distribution(point), version, **facts)


def _class_facts(module: str, class_name: str) -> dict[str, Any]:
    """Family, savings and summary as the source states them for the class, and for the classes that it extends.

    Raises:
        ImportError: no such module, one that it imports is not installed, or it has no such class.
        SyntaxError: the source is not Python.
    """
    tree = _tree(module)
    for missing in _missing_imports(tree):
        raise ModuleNotFoundError(f"No module named {missing!r}")
    found = _definition(tree, class_name)
    if isinstance(found, ast.ImportFrom):  # the class is another module's
        original = next(alias.name for alias in found.names if (alias.asname or alias.name) == class_name)
        return _class_facts(_imported_module(module, found), original)
    if found is None:
        if _is_dynamic(tree, class_name):
            return {}
        raise ImportError(f"module {module!r} defines no class {class_name!r}")
    facts: dict[str, Any] = {}
    for base in (base.id for base in reversed(found.bases) if isinstance(base, ast.Name)):
        with suppress(OSError, SyntaxError, ValueError, ImportError):  # a base such as ABC, or one unreadable
            inherited = _class_facts(module, base)
            facts |= {key: inherited[key] for key in ("family", "savings") if inherited.get(key)}
    facts |= {key: value for key, value in _assignments(found) if key in ("family", "savings")}
    facts["summary"] = (ast.get_docstring(found) or "").partition("\n\n")[0].replace("\n", " ")
    return facts


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source_file(module).read_bytes())


def _definition(tree: ast.Module, name: str) -> ast.ClassDef | ast.ImportFrom | None:
    """Where a module's class comes from: its own definition, or an import from elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return node
    return None


def _is_dynamic(tree: ast.Module, name: str) -> bool:
    """Whether the module may have the name in a way that its source does not show: assigned, or made on demand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            return True
    return False


def _imported_module(module: str, node: ast.ImportFrom) -> str:
    """The module that an import names, seen from ``module``."""
    if not node.level:
        return node.module or ""
    is_package = _source_file(module).name == "__init__.py"
    parents = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _source_file(module: str) -> Path:
    """Where a module's source lies, without importing its parents as importlib.util.find_spec would."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    for depth in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:depth])
        found = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        try:
            spec = next((spec for spec in found if spec is not None), None)
        except KeyError:  # a namespace package inside a package that is not imported: its spec cannot be made
            spec = ModuleSpec(name, None, is_package=True)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}")
        path = _folders(spec, path)
    if spec is None or not spec.has_location:
        raise ImportError(f"{module!r} has no source file")
    return Path(str(spec.origin))


def _folders(package: ModuleSpec, around: list[str] | None) -> list[str]:
    """The folders of a package; a namespace package is every folder of its name."""
    if package.has_location:
        return list(package.submodule_search_locations or ())
    folders = (Path(folder) / package.name.rpartition(".")[2] for folder in around or sys.path)
    return [str(folder) for folder in folders if folder.is_dir()]


def _missing_imports(tree: ast.Module) -> Iterator[str]:
    """Top-level packages that the module imports unconditionally and that are not installed."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for package in {name.partition(".")[0] for name in names}:
            if package not in sys.modules and importlib.util.find_spec(package) is None:
                yield package


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Class attributes set to a string or to an enum member such as ``Family.PRUNING``."""
    for statement in node.body:
        value: ast.expr | None
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            target, value = statement.targets[0].id, statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            target, value = statement.target.id, statement.value
        else:
            continue
        if isinstance(value, ast.Constant):
            yield target, str(value.value)
        elif isinstance(value, ast.Attribute):
            yield target, value.attr.lower().replace("_", "-")
