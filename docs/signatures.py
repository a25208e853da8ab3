"""The signatures in docs/api.md, written from the source: ``python docs/signatures.py`` writes them again.

A public name stands in api.md as a pair of markers, between which this puts its definition and its docstring, for
whoever reads the repository; in the site mkdocstrings shows them. Nothing is imported but the packages that hand names
on: the text of the modules is read.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
MARKED = re.compile(r"<!-- api: (?P<name>[\w.]+) -->\n(?P<text>.*?)<!-- /api -->", re.DOTALL)

_BARE = ("Facts", "Family", "Phase", "Savings")
"""Classes whose members are said in what they are called, or below them, and have no docstrings."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: what mkdocstrings makes of a name in the place of the definition."""
    return MARKED.sub(lambda match: _directive(match["name"]), markdown)


def _directive(name: str) -> str:
    more = "\n    options: {show_if_no_docstring: true}" if name.rpartition(".")[2] in _BARE else ""
    return f"::: {name}{more}"


def names(page: str) -> list[str]:
    """The names that a page documents, in its order."""
    return [match["name"] for match in MARKED.finditer(page)]


def written(page: str) -> str:
    """The page with every name's definition between its markers."""
    return MARKED.sub(lambda match: _block(match["name"]), page)


def _block(name: str) -> str:
    code = "\n".join(line.partition("  # noqa")[0] for line in _definition(name))
    return f"<!-- api: {name} -->\n### {name}\n\n```python\n{code}\n```\n<!-- /api -->"


def _definition(name: str) -> Iterator[str]:
    """The lines that a user of a class, function or named type needs: its signature and what is said of it."""
    package, _, leaf = name.rpartition(".")
    module = getattr(import_module(package), "_HOMES", {}).get(leaf, package)
    lines, body = _source(module)
    for index, node in enumerate(body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == leaf:
            return _stub(node, lines)
        if leaf in _targets(node):
            said = [each for each in body[index + 1 : index + 2] if _is_text(each)]
            return iter(lines[node.lineno - 1 : (said or [node])[0].end_lineno])
    raise LookupError(f"{module} does not define {leaf}")


@cache
def _source(module: str) -> tuple[list[str], list[ast.stmt]]:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text()
    return text.splitlines(), ast.parse(text).body


def _stub(node: ast.ClassDef | ast.FunctionDef, lines: list[str]) -> Iterator[str]:
    """The head with its decorators and the docstring; of a class, the public parts too."""
    first = min(part.lineno for part in (node, *node.decorator_list))
    said = [part for part in node.body[:1] if _is_text(part)]
    yield from lines[first - 1 : said[0].end_lineno if said else node.body[0].lineno - 1]
    if not said:
        yield f"{' ' * node.body[0].col_offset}..."
    if not isinstance(node, ast.ClassDef):
        return
    for index, part in enumerate(filter(_is_public, node.body[len(said) :])):
        if index == 0 or isinstance(part, ast.FunctionDef):
            yield ""
        yield from _stub(part, lines) if isinstance(part, ast.FunctionDef) else lines[part.lineno - 1 : part.end_lineno]


def _is_public(node: ast.stmt) -> bool:
    """Whether a part of a class is for its users: text, and what has a name that does not begin with ``_``."""
    if isinstance(node, ast.FunctionDef):
        return not node.name.startswith("_") or node.name in ("__init__", "__len__")
    return _is_text(node) or any(not name.startswith("_") for name in _targets(node))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _targets(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
