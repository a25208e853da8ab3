"""Templates, and the rule that submitted text stays text: every value is escaped, every script is known by its hash.

The policy that each page carries lets the browser run the project's own scripts, by their digests, and nothing else; it
may load nothing from elsewhere. A page that is opened from disk cannot import modules, so the files of a script are
joined into one that stands in the page.
"""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.contract.families import LOOKS, OTHER
from harness.reports.numbers import PAGE

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
BOARD: Final = (
    "data.js",
    "view.js",
    "numbers.js",
    "front.js",
    "budget.js",
    "table.js",
    "labels.js",
    "chart.js",
    "compare.js",
    "suites.js",
    "controls.js",
    "export.js",
    "board.js",
)
"""The board's script, in the order in which its files are joined: what runs at once needs what stands before it."""


def page(template: str, *, depth: int, **values: Any) -> str:
    """A page as HTML; ``depth`` is the number of folders that it lies below the site's root."""
    scripts = [theme(), *([values["script"]] if "script" in values else [])]
    shared = {"root": "../" * depth, "theme": theme(), "policy": _policy(scripts), "section": None}
    return _environment().get_template(template).render(**(shared | values))


def script(*names: str) -> Markup:
    """The files of one script, to be part of a page."""
    text = "\n".join((HERE / "scripts" / name).read_text(encoding="utf-8") for name in names)
    assert "</" not in text, f"{names} would end their own element"
    return Markup(f"\n{text}")  # noqa: S704 - the project's own files


@cache
def theme() -> Markup:
    """The script of every page."""
    return script("theme.js")


def inline_json(value: Any) -> Markup:
    """JSON that can stand in a script element: no character in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - nothing left that is markup


def slug(name: str) -> str:
    """A file name for any text: readable, and different for different texts."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48]
    if readable == name and readable != "index":
        return readable
    return f"{readable or 'x'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def family_class(family: str) -> str:
    """The style of a family; all unknown families share one."""
    return f"f-{family if family in LOOKS else 'other'}"


def families_css() -> str:
    """The sheet that gives every family its colours."""
    return "".join(
        f".{family_class(family)} {{ --family: light-dark({shown.light}, {shown.dark}); }}\n"
        for family, shown in ({"other": OTHER} | LOOKS).items()
    )


def families_json() -> dict[str, Any]:
    """The outline of every family, in the families' order, for the board's script."""
    return {"known": {family.value: shown.outline for family, shown in LOOKS.items()}, "other": OTHER.outline}


def _policy(scripts: list[Markup]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    # style-src and img-src name file: for pages opened from disk, where 'self' matches nothing
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'self' file:; img-src 'self' file: data:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "quantity": PAGE.quantity,
        "score": PAGE.score,
        "difference": PAGE.difference,
        "ratio": PAGE.ratio,
        "slug": slug,
        "family_class": family_class,
    }
    environment.globals["interval"] = PAGE.interval
    return environment
