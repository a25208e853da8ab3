"""MkDocs hooks: one page for each built-in method, written from its class while the site is built."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.contract import registry
from harness.contract.describe import Description, Parameter, describe, paper_url

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

INDEX = "methods/index.md"


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Put the methods' pages into the navigation."""
    pages = [{name: f"methods/{name}.md"} for name in descriptions()]
    for entry in config.nav or []:
        if INDEX in entry.get("Methods", ()):
            entry["Methods"] = [INDEX, *pages]
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the methods' pages to what is built."""
    from mkdocs.structure.files import File

    described = descriptions()
    pages = {INDEX: index(described), **{f"methods/{name}.md": page(each) for name, each in described.items()}}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def descriptions() -> dict[str, Description]:
    """The built-in methods by name."""
    names = [item.name for item in registry.listings() if item.built_in]
    return {name: describe(registry.get(name)) for name in names}


def index(described: dict[str, Description]) -> str:
    """The table of all methods."""
    rows = [
        f"| [{name}]({name}.md) | {each.family} | {text(each.summary)} | {each.facts['saving'].partition(':')[0]} |"
        for name, each in described.items()
    ]
    return "\n".join(
        [
            "# Methods",
            "",
            "What `harness ls methods` lists. These pages are written from the classes, as `harness show METHOD` is.",
            "",
            "| method | family | what | saving |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def page(each: Description) -> str:
    """One method."""
    return "\n".join([f"# {each.name}", "", text(each.summary), "", *_facts(each), *_rest(each)])


def _facts(each: Description) -> Iterator[str]:
    yield from ("| property | value |", "|---|---|", f"| family | {each.family} |")
    if each.paper:
        url = paper_url(each.paper)
        yield f"| paper | {f'[{each.paper}]({url})' if url else text(each.paper)} |"
    yield from (f"| {question} | {text(answer)} |" for question, answer in each.facts.items())
    yield f"| class | `{each.source}` |"
    yield ""


def _rest(each: Description) -> Iterator[str]:
    if each.parameters:
        yield from ("## Parameters", "", "| name | value | default | meaning |", "|---|---|---|---|")
        yield from map(_row, each.parameters)
        yield ""
    for heading, body in each.sections.items():
        yield from (f"## {heading or 'Details'}", "", text(body), "")
    yield from ("## Checked at", "", f"`harness check {each.name}` tries these settings on small models:", "")
    yield from (f"- `{example}`" for example in each.examples)
    if each.neutral:
        yield f"- `{each.neutral}`, which is the dense model bit for bit"
    yield ""


def _row(parameter: Parameter) -> str:
    value = "; ".join(filter(None, (parameter.type, parameter.range)))
    default = "must be given" if parameter.default is None else f"`{parameter.default}`" if parameter.default else ""
    return f"| `{parameter.name}` | {text(value)} | {default} | {text(parameter.text)} |"


def text(plain: str) -> str:
    """A docstring's text as Markdown: its code stays code, nothing else is markup."""
    parts = re.split(r"(``.+?``)", plain)
    return "".join(part[1:-1] if part.startswith("``") else _escaped(part) for part in parts)


def _escaped(part: str) -> str:
    return re.sub(r"([\\*_<>|\[\]`#])", r"\\\1", part)
