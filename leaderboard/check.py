"""Checks of a built site: links and anchors lead somewhere, and no page loads anything from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from harness.core.errors import SiteError

_LOADS = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("object", "data"), ("embed", "src")}
_MOST = 100  # problems that are worth reading


class _Links(HTMLParser):
    """What a page refers to, what it loads, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.policies = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        self.policies += values.get("http-equiv", "") == "Content-Security-Policy"
        if tag == "link" and values.get("rel") != "alternate":
            self.loads.append(values.get("href", ""))
        self.loads += [values[name] for element, name in _LOADS if element == tag and name in values]
        if tag in ("a", "link"):
            self.links.append(values.get("href", ""))
        if any(name.startswith("on") for name in values):
            self.loads.append("a script in an attribute")


def check(site: Path) -> list[str]:
    """What is wrong with a site, at most the first hundred problems.

    Raises:
        SiteError: there is none.
    """
    if not (site / "index.html").is_file():
        raise SiteError(f"no site in {site}; `harness site build -o {site}` makes one")
    problems: list[str] = []
    anchors: dict[Path, set[str]] = {}
    for path in sorted(site.rglob("*.html")):
        parser = _Links()
        parser.feed(path.read_text(encoding="utf-8"))
        anchors[path.resolve()] = parser.anchors
        where = path.relative_to(site)
        if parser.policies != 1:
            problems.append(f"{where}: no content security policy")
        problems += [f"{where}: loads {load}" for load in parser.loads if _elsewhere(load)]
        problems += [f"{where}: {link} leads nowhere" for link in parser.links if _broken(link, path, site, anchors)]
        if len(problems) >= _MOST:
            break
    sheets = [sheet for sheet in site.rglob("*.css") if re.search(r"@import|url\(", sheet.read_text(encoding="utf-8"))]
    return [*problems[:_MOST], *(f"{sheet.relative_to(site)} loads something" for sheet in sheets)]


def _elsewhere(target: str) -> bool:
    parts = urlsplit(target)
    return bool(parts.scheme or parts.netloc) or target.startswith("a script")


def _broken(link: str, page: Path, site: Path, anchors: dict[Path, set[str]]) -> bool:
    """Whether a link within the site leads nowhere; of a link to the web, whether its scheme is not https."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme != "https"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
    if not target.is_relative_to(site.resolve()) or not target.is_file():
        return True
    return bool(parts.fragment) and target in anchors and parts.fragment not in anchors[target]
