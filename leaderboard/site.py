"""The site: plain files, written beside the old site, which they replace when all of them are complete."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contract.describe import Description, describe, paper_url
from harness.core.errors import MethodError, ResultError, SiteError
from harness.core.files import parse_json, staged_folder
from harness.core.rounding import Rounding
from harness.leaderboard import board, exports, pages
from harness.leaderboard.groups import parameters
from harness.leaderboard.history import histories
from harness.leaderboard.render import ASSETS, BOARD, families_css, inline_json, page, script, slug
from harness.leaderboard.results import PACKED_COSTS, PACKED_SAMPLES, Result, load_all
from harness.reports.columns import COLUMNS
from harness.reports.rows import Row, difference, rows
from harness.results.samples import SampleLine
from harness.results.schemas import schemas
from harness.results.store import COSTS, MANIFEST, RECORD, SAMPLES

_LARGEST_COPY = 2 << 20  # bytes of a samples file that the site carries along


@dataclass(frozen=True)
class Built:
    """What a build made, and what it could not show."""

    runs: int
    refused: Mapping[Path, str]


def build(results: Path, site: Path, url: str | None = None) -> Built:
    """Build the site of all results under a folder, in place of an older one.

    Raises:
        ResultError: no such folder of results.
        SiteError: the folder exists and is not a site.
        DiskError: the place cannot be written.
    """
    loaded, refused = load_all(results)
    _check_place(site)
    by_id = {result.record["id"]: result for result in loaded}
    table = rows(result.record for result in loaded)
    with staged_folder(site.with_name(f"{site.name}.new")) as folder:
        _write_shared(folder, table, url, {str(path.relative_to(results)): why for path, why in refused.items()})
        _write_runs(folder, table, by_id)
        _write_methods(folder, table)
        _write_models(folder, table)
    shutil.rmtree(site, ignore_errors=True)
    site.with_name(f"{site.name}.new").replace(site)
    return Built(len(table), refused)


def _check_place(site: Path) -> None:
    """Refuse to put a site in the place of anything but a site."""
    shutil.rmtree(site.with_name(f"{site.name}.new"), ignore_errors=True)
    if not site.exists() or (site.is_dir() and not any(site.iterdir())):
        return
    try:
        is_site = parse_json((site / "index.json").read_bytes())["generator"] == "harness"
    except (OSError, ValueError, KeyError, TypeError):
        is_site = False
    if not is_site:
        raise SiteError(f"{site} exists and is not a leaderboard: give -o a folder that is empty or does not exist")


def _write_shared(folder: Path, table: Sequence[Row], url: str | None, refused: Mapping[str, str]) -> None:
    shutil.copytree(ASSETS, folder / "assets")
    _write(folder / "assets" / "families.css", families_css())
    data = board.data(table)
    _write(
        folder / "index.html",
        page(
            "index.html",
            depth=0,
            section="Board",
            script=script(*BOARD),
            data=inline_json(data),
            board=data,
            facts=_facts(table),
        ),
    )
    about = page(
        "about.html", depth=0, section="How numbers are made", costs=COLUMNS, refused=list(refused.items())[:200]
    )
    _write(folder / "about.html", about)
    _write(folder / "index.json", exports.index(table).model_dump_json())
    _write(folder / "index.schema.json", json.dumps(exports.Index.model_json_schema(), indent=1))
    for name, schema in schemas().items():
        _write(folder / name, json.dumps(schema, indent=1))
    _write(folder / "feed.xml", exports.feed(table, url))
    shared = (json.dumps(exports.every_eval_ever(row.record), ensure_ascii=False) + "\n" for row in table)
    _write(folder / "every_eval_ever.jsonl", "".join(shared))
    (folder / ".nojekyll").touch()


def _facts(table: Sequence[Row]) -> list[tuple[str, str]]:
    """What the board holds, counted."""
    counted = {
        "run": len(table),
        "method": len({row.record["method"]["name"] for row in table}),
        "model": len({row.record["model"]["name"] for row in table}),
        "task": len({row.record["evaluation"]["task"] for row in table}),
        "machine": len({row.hardware for row in table}),
    }
    facts = [(f"{count:,}", f"{word}{'' if count == 1 else 's'}") for word, count in counted.items()]
    newest = max((row.record["started"][:10] for row in table), default=None)
    return [*facts, *([(newest, "newest run")] if newest else [])]


def _write_runs(folder: Path, table: Sequence[Row], results: Mapping[str, Result]) -> None:
    (folder / "runs").mkdir()
    (folder / "data").mkdir()
    last, dense = "", list[SampleLine]()
    for row in sorted(table, key=lambda row: row.dense["id"] if row.dense else ""):  # one dense run after the other
        if row.dense and row.dense["id"] != last:
            last, dense = row.dense["id"], _documents(results[row.dense["id"]])
        files = _carry(results[row.id], folder / "data" / row.id)
        content = pages.run_page(row, results[row.id], dense if row.dense else [])
        for name, text in content["methods"].items():
            _write(folder / "data" / row.id / name, text)
            files.append(name)
        _write(folder / "runs" / f"{row.id}.html", page("run.html", depth=1, files=files, paired=difference, **content))


def _documents(result: Result) -> list[SampleLine]:
    """A run's documents; none if they cannot be read, which its own page says."""
    try:
        return list(result.samples())
    except ResultError:
        return []


def _carry(result: Result, folder: Path) -> list[str]:
    """Copy a run's files, which readers may check; samples only where they are small."""
    folder.mkdir()
    carried = []
    for name in (RECORD, MANIFEST, PACKED_SAMPLES, SAMPLES, PACKED_COSTS, COSTS):
        source = result.folder / name
        if source.is_file() and not source.is_symlink() and source.stat().st_size <= _LARGEST_COPY:
            shutil.copyfile(source, folder / name)
            carried.append(name)
    return carried


def _write_methods(folder: Path, table: Sequence[Row]) -> None:
    by_name: dict[str, list[Row]] = {}
    for row in table:
        by_name.setdefault(row.record["method"]["name"], []).append(row)
    entries = []
    for name, members in sorted(by_name.items()):
        description, family = _description(name), members[0].record["method"]["family"]
        content = {
            "name": name,
            "family": family,
            "description": description,
            "paper": paper_url(description.paper) if description and description.paper else None,
            "curves": pages.curves(members),
            "histories": histories(members),
            "lines": pages.list_lines(members),
            "paired": difference,
        }
        _write(folder / "methods" / f"{slug(name)}.html", page("method.html", depth=1, section="Methods", **content))
        about = description.summary if description else "not installed where the site was built"
        entries.append({"name": name, "kind": family, "target": f"{slug(name)}.html", "about": about})
    _write_list(
        folder / "methods", "Methods", "What has been run, each with its documentation and all its rows.", entries
    )


def _description(name: str) -> Description | None:
    """A method's documentation, if it is installed. The registry alone finds code, a record never does."""
    from harness.contract import registry

    if "/" in name or name not in registry.names():
        return None
    try:
        return describe(registry.get(name))
    except MethodError:  # it is installed and broken
        return None


def _write_models(folder: Path, table: Sequence[Row]) -> None:
    by_name: dict[str, list[Row]] = {}
    for row in table:
        by_name.setdefault(row.record["model"]["name"], []).append(row)
    entries = []
    for name, members in sorted(by_name.items()):
        records = [row.record for row in members]
        own = next((each for each in records if each["model"].get("base") is None), records[0])
        model, rounding = own["model"], Rounding.of(own["model"])
        content = {"name": name, "model": model, "rounding": rounding, "lines": pages.list_lines(members)}
        _write(folder / "models" / f"{slug(name)}.html", page("model.html", depth=1, section="Models", **content))
        groups = len({row.group for row in members})
        counts = f"{len(members)} run{'s' if len(members) > 1 else ''}, {groups} group{'s' if groups > 1 else ''}"
        about = " · ".join(
            [*([model["pretrained"]] if model["pretrained"] != name else []), model["fingerprint"], counts]
        )
        rounded = rounding.label if rounding else None
        kind = ", ".join(filter(None, [f"{parameters(model['parameters'])} parameters", model.get("license"), rounded]))
        entries.append({"name": name, "kind": kind, "target": f"{slug(name)}.html", "about": about})
    _write_list(folder / "models", "Models", "What methods have been run on.", entries)


def _write_list(folder: Path, title: str, lede: str, entries: list[dict[str, Any]]) -> None:
    _write(folder / "index.html", page("list.html", depth=1, section=title, title=title, lede=lede, entries=entries))


def _write(path: Path, text: str) -> None:
    """Write a file; half a surrogate pair, which no encoding has, becomes a question mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="replace")
