"""Which source can change an answer: a module, what it imports of its own project, and the files that it names.

The text of the modules is read, nothing is imported. Two copies of one source, in a wheel and in a checkout, have one
digest: a file counts by its module's name and its bytes.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

ROOMS: Final = frozenset({"contract", "evaluate", "measure", "methods", "model", "tasks"})
"""Rooms of the harness whose code can change an answer or a count; the others show, store and compare."""
DESCRIBES: Final = frozenset({"harness.contract.describe", "harness.contract.facts", "harness.contract.families"})
"""Modules of these rooms that only describe methods, in sentences and colours."""
STATED: Final = frozenset({"datasets", "lm_eval", "numpy", "tokenizers", "torch", "transformers"})
"""Libraries whose versions every run's environment states already."""
_OTHERS: Final = {"site-packages", "dist-packages"}
_DOCUMENTED: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


_KEPT: ContextVar[dict[tuple[str, ...], "Source"] | None] = ContextVar("kept", default=None)


@dataclass(frozen=True)
class Source:
    """A closure of imports.

    Attributes:
        files: contents by name: a module's name, or "module/file" for a file that a module names.
        libraries: other projects' packages that an outside method or task imports, by top-level name; their versions
            stand for their source.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    libraries: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the files' names and contents and of the libraries' versions."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        for library in sorted(self.libraries):
            digest.update(f"{library}=={_version(library)}\0".encode())
        return digest.hexdigest()

    @property
    def compiled(self) -> bool:
        """Whether C files are part of it."""
        return any(name.endswith(".c") for name in self.files)


def of_modules(*modules: str) -> Source:
    """The closure of modules, by their names; one that has no source file has no part in it."""
    kept = _KEPT.get()
    if kept is not None and modules in kept:
        return kept[modules]
    source = _closure((name, path) for name in modules if (path := _locate(name, None)) is not None)
    if kept is not None:
        kept[modules] = source
    return source


@contextmanager
def read_once() -> Iterator[None]:
    """Read the sources of modules once for the length of a ``with`` block, for many methods of few classes."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def of_file(path: Path, name: str) -> Source:
    """The closure of a file that is no module of a package, such as a loose method or a task's own code.

    Args:
        name: what the file counts as, in the place of a module's name.
    """
    return _closure([(name, path.resolve())])


def closure_digest(module: str) -> str:
    """Digest of a module of the harness and of what it imports from whichever room."""
    path = _locate(module, None)
    return _closure([] if path is None else [(module, path)], rooms=None).digest


def _closure(start: Iterable[tuple[str, Path]], rooms: frozenset[str] | None = ROOMS) -> Source:
    pending = list(start)
    own = {name.partition(".")[0] for name, _ in pending} | {"harness"}
    homes = {path.parent for _, path in pending}
    files: dict[str, bytes] = {}
    libraries: set[str] = set()
    while pending:
        module, path = pending.pop()
        if module in files:
            continue
        files[module] = path.read_bytes()
        imported, strings = _read(files[module], module, is_package=path.name == "__init__.py")
        files |= {f"{module}/{file.name}": file.read_bytes() for file in _beside(path.parent, strings)}
        for name in imported:
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or (top == "harness" and not _in_rooms(name, rooms)):
                continue
            file = _locate(name, path.parent)
            if file is None:
                continue
            if top in own or not _OTHERS & set(file.parts) or any(home in file.parents for home in homes):
                pending.append((name, file))
            else:
                libraries.add(top)
    outside = any(name.partition(".")[0] != "harness" for name in files)
    return Source(files, frozenset(libraries - STATED) if outside else frozenset())


def _in_rooms(module: str, rooms: frozenset[str] | None) -> bool:
    """Whether a module of the harness belongs to these rooms; the outermost package holds names alone."""
    room = module.split(".")[1] if "." in module else ""
    return bool(room) if rooms is None else room in rooms and module not in DESCRIBES


@cache
def _read(content: bytes, module: str, *, is_package: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a module's text imports, and its strings; nothing where it is no Python."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return (), ()
    imports: dict[str, None] = {}
    strings: dict[str, None] = {}
    nodes = list(_running(tree))
    packages = _packages(nodes)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings[node.value] = None
        for name in [*_imported(node, module, is_package=is_package), *_taken(node, packages)]:
            parts = name.split(".")  # importing a.b.c runs a and a.b too
            imports |= dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return tuple(imports), tuple(strings)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one but docstrings and the blocks that only a type checker reads."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        children.remove(node.body[0])
    for child in children:
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for part in child.orelse:
                yield part
                yield from _running(part)
        else:
            yield child
            yield from _running(child)


def _imported(node: ast.AST, module: str, *, is_package: bool) -> list[str]:
    """Modules that one statement may import: a name after ``from a import`` may be a module of ``a``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = node.module or ""
    if node.level:
        parents = module.split(".")
        package = ".".join([*parents[: len(parents) - node.level + is_package], *filter(None, [node.module])])
    names = [alias.name for alias in node.names]
    return [*filter(None, [package]), *(f"{package}.{name}" for name in names), *_homes(package, names)]


def _homes(package: str, names: Iterable[str]) -> list[str]:
    """Modules behind names that a package of the harness hands on; behind all of them for ``*``."""
    handed_on = getattr(sys.modules.get(package), "_HOMES", {}) if package.partition(".")[0] == "harness" else {}
    return [home for name in names for home in (handed_on.values() if name == "*" else [handed_on.get(name)]) if home]


def _packages(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Packages that hand names on, by what a file calls them: ``import harness as h``."""
    called: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            names |= {name.partition(".")[0]: name.partition(".")[0] for name in names.values()}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        called |= {name: package for name, package in names.items() if _homes(package, "*")}
    return called


def _taken(node: ast.AST, packages: dict[str, str]) -> list[str]:
    """Modules behind a public name that a package is asked for, as in ``harness.without_blocks``."""
    if not packages or not isinstance(node, ast.Attribute):
        return []
    package = packages.get(ast.unparse(node.value))
    return _homes(package, [node.attr]) if package else []


def _beside(folder: Path, strings: Iterable[str]) -> Iterator[Path]:
    """Files beside a module that its strings name: data, or the C files of a folder."""
    for name in strings:
        if not 0 < len(name) <= 100 or not name[0].isalnum() or "\0" in name:
            continue
        named = folder / name
        if named.is_dir():
            yield from (file for pattern in ("*.c", "*.h") for file in named.glob(pattern))
        elif named.suffix not in ("", ".py") and named.is_file():
            yield named


def _locate(module: str, folder: Path | None) -> Path | None:
    """A module's source file: of the module in memory, else beside the importing file, else on the search path."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return _resolved(loaded) if str(loaded).endswith(".py") and Path(loaded).is_file() else None
    parent, _, leaf = module.rpartition(".")
    search: list[str] | None = None
    if parent:
        package = _locate(parent, folder)
        if package is None or package.name != "__init__.py":
            return None
        search = list(getattr(sys.modules.get(parent), "__path__", [str(package.parent)]))
    elif folder is not None:
        for candidate in (folder / f"{leaf}.py", folder / leaf / "__init__.py"):
            if candidate.is_file():
                return candidate.resolve()
    spec = _spec_of(module, search)
    origin = spec.origin if spec else None
    return Path(origin).resolve() if origin and origin.endswith(".py") and Path(origin).is_file() else None


@cache
def _resolved(file: str) -> Path:
    """Where a loaded module's file lies; asked for thousands of times."""
    return Path(file).resolve()


def _spec_of(module: str, search: list[str] | None) -> ModuleSpec | None:
    """Where the import system would find a module, by every finder: an editable installation has one of its own."""
    finders: list[Any] = [PathFinder, *(finder for finder in sys.meta_path if hasattr(finder, "find_spec"))]
    return next((spec for finder in finders if (spec := finder.find_spec(module, search)) is not None), None)


@cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"
