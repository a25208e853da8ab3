"""The documentation's site: built from the classes, every link in it leads somewhere, every command in it exists."""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer

import harness
from harness.cli import app
from harness.contract import registry
from tests.conftest import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [
    *PAGES,
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tasks" / "README.md",
    *(ROOT / "examples").rglob("*.md"),
    *(ROOT / "harness" / "cli" / "templates").glob("*.md.txt"),
]
BUILT_IN = [item.name for item in registry.listings() if item.built_in]


def hooks(name: str = "hooks") -> Any:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(text: str) -> list[list[str]]:
    """Every command line of the harness in a document's code: blocks, indented lines, and quoted words."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^\s*(harness .+)$", joined, re.MULTILINE) + re.findall(r"`(harness [a-z][^`]*)`", joined)
    found = []
    for line in lines:
        parts = re.split(r"\s#\s|#$", line)[0].split(";")
        found += [shlex.split(part)[1:] for part in parts if re.match(r"\s*harness [a-z-]+( |$)", part)]
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists(path: Path) -> None:
    for words in commands(path.read_text()):
        command: Any = typer.main.get_command(app)
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands") or not words or "|" in words[0], f"harness ... {' '.join(words)}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            if word.startswith("-"):
                option = word.partition("=")[0]
                spelled = f"--{option[2:].replace('-', '_')}" if option.startswith("--") else option
                assert spelled in known | {"--help"}, option


def test_the_commands_are_found() -> None:
    assert ["ls", "methods"] in commands((ROOT / "docs" / "index.md").read_text())
    assert sum(len(commands(path.read_text())) for path in DOCUMENTS) > 30


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_methods_page_is_its_class(name: str) -> None:
    module = hooks()
    described = module.descriptions()[name]
    page = module.page(described)
    assert page.startswith(f"# {name}\n")
    for parameter in described.parameters:
        assert f"| `{parameter.name}` |" in page
        assert module.text(parameter.text) in page
        assert parameter.range in page
    for heading in described.sections:
        assert f"## {heading or 'Details'}" in page
    assert f"[{name}]({name}.md)" in module.index(module.descriptions())


def test_a_docstring_cannot_become_markup() -> None:
    assert hooks().text("a|b <b> [c](d) `` `` ``x|y`` *z*") == "a\\|b \\<b\\> \\[c\\](d) ` ` `x|y` \\*z\\*"


def test_the_signatures_are_those_of_the_source() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert page == hooks("signatures").written(page), "python docs/signatures.py writes them again"
    for name in hooks("signatures").names(page):
        assert f"### {name}\n\n```python\n" in page


def test_the_public_names_are_documented_and_resolve() -> None:
    names = hooks("signatures").names((ROOT / "docs" / "api.md").read_text())
    assert len(set(names)) == len(names)
    assert {f"harness.{name}" for name in harness.__all__ if name != "__version__"} <= set(names)
    for name in names:
        module, _, leaf = name.rpartition(".")
        assert getattr(importlib.import_module(module), leaf) is not None


def test_the_site_shows_what_mkdocstrings_makes_of_a_name() -> None:
    text = "before\n<!-- api: harness.Method -->\n### harness.Method\n<!-- /api -->\nafter"
    assert hooks("signatures").on_page_markdown(text, page=None) == "before\n::: harness.Method\nafter"


class Links(HTMLParser):
    """Where a page points to, what it can be pointed at by, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(filter(None, (given.get("id"), given.get("name"))))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "link") and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads += filter(None, (given.get("src"), given.get("href")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    pytest.importorskip("mkdocs", reason='the site is built where pip install -e ".[docs]" has been')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    return {path: Links(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"}


@pytest.mark.slow
def test_every_internal_link_leads_somewhere(site: dict[Path, Links]) -> None:
    assert len(site) >= len(BUILT_IN) + 7
    for path, page in site.items():
        for link in page.links:
            if re.match(r"https?:|mailto:|javascript:", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            other = (path.parent / target).resolve() if target else path
            other = other / "index.html" if other.is_dir() else other
            assert other.is_file(), f"{path.name}: {link}"
            assert not anchor or anchor in site[other].anchors | {"__top"}, f"{path.name}: {link}"


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Links]) -> None:
    for path, page in site.items():
        for source in page.loads:
            assert not re.match(r"(https?:)?//", source), f"{path.name} loads {source}"
            assert (path.parent / source.partition("?")[0]).exists(), f"{path.name} loads {source}"


@pytest.mark.slow
def test_the_public_names_are_in_the_site(site: dict[Path, Links]) -> None:
    (api,) = [page for path, page in site.items() if path.name == "api.html"]
    assert {f"harness.{name}" for name in harness.__all__ if name != "__version__"} <= api.anchors


@pytest.mark.slow
def test_every_include_is_filled_in(site: dict[Path, Links]) -> None:
    pages = {path.name: path.read_text() for path in site}
    assert not [name for name, text in pages.items() if "--8" in text]
    assert "EveryOther" in pages["add-a-method.html"]


def test_lines_of_a_file_in_a_document_are_whole_functions() -> None:
    for page in DOCUMENTS:
        for name, first, last in re.findall(r'--8<-- "(\S+\.py\S*):(\d+):(\d+)"', page.read_text()):
            lines = ["", *(ROOT / name).read_text().splitlines(), ""]
            where = f"{page.name}: {name}:{first}:{last}"
            assert not lines[int(first) - 1].strip(), f"{where} begins within something"
            assert lines[int(last)].strip(), f"{where} ends in an empty line"
            assert not lines[int(last) + 1].strip(), f"{where} ends within something"
