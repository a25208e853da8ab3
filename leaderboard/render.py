"""Templates, and the rule that keeps strangers' bytes text: every value is escaped, every script is known by its hash.

The policy that each page carries lets the browser run our two scripts, by their digests, and nothing else; it may
load nothing from elsewhere.
"""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.reports import numbers

HERE = Path(__file__).parent
ASSETS = HERE / "assets"


def page(template: str, *, depth: int, **values: Any) -> str:
    """A page as HTML; ``depth`` is the number of folders that it lies below the site's root."""
    scripts = [theme(), *([values["script"]] if "script" in values else [])]
    shared = {"root": "../" * depth, "theme": theme(), "policy": _policy(scripts), "section": None}
    return _environment().get_template(template).render(**(shared | values))


def script(name: str) -> Markup:
    """One of our scripts, to stand inside a page."""
    text = (ASSETS / name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would end its own element"
    return Markup(f"\n{text}")  # noqa: S704 - our own file


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
    """A file name for any text: readable, and another one for every text."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48]
    if readable == name and readable != "index":
        return readable
    return f"{readable or 'x'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def family_class(family: str) -> str:
    """The style of a family; a stranger's family has that of the others."""
    known = ("baseline", "routing", "early-exit", "pruning", "quantization", "sparse")
    return f"f-{family if family in known else 'other'}"


def _policy(scripts: list[Markup]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    # style-src and img-src name file: for pages opened from disk, where 'self' is nothing
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
        "quantity": numbers.quantity,
        "score": numbers.score,
        "signed": numbers.signed,
        "times": numbers.times,
        "slug": slug,
        "family_class": family_class,
    }
    environment.globals["interval"] = numbers.interval
    return environment
