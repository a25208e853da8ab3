"""Submissions that mean harm: each is refused with a sentence, or shown as the text that it is."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.leaderboard.site import build
from harness.leaderboard.validate import validate
from tests.leaderboard.tampered import Submission

MARKUP = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>\'"&{{7*7}}'
Json = dict[str, Any]


def score(record: Json) -> Json:
    return record["scores"][0]


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


ENERGY: Json = {
    "measured_j": 3.0,
    "estimated_j": None,
    "active_j": 2.0,
    "idle_w": 40.0,
    "busy_w": 300.0,
    "parts": {
        "gpu": {"joules": 3.0, "source": "nvml_counter", "provenance": "measured_counter", "scope": "device"},
    },
    "label": "measured_counter",
    "note": "read from a counter",
    "windows": 3,
    "window_s": 12.0,
    "raw": [3.0] * 3,
}
TAMPERINGS: dict[str, Callable[[Submission], object]] = {
    "better score": lambda s: s.edit(lambda r: score(r).update(value=0.99)),
    "smaller error": lambda s: s.edit(lambda r: score(r).update(stderr=0.0001)),
    "more documents": lambda s: s.edit(lambda r: score(r).update(n=10_000)),
    "fewer FLOPs": lambda s: s.edit(lambda r: r["flops"].update(total=1)),
    "FLOPs that PyTorch's counter did not see": lambda s: s.edit(lambda r: r["flops"].update(audit_ratio=3.088)),
    "FLOPs that it hardly saw": lambda s: s.edit(lambda r: r["flops"].update(audit_ratio=1.002)),
    "more work for dense": lambda s: s.edit(lambda r: r["flops"].update(dense_equivalent=10**12)),
    "FLOPs without parts": lambda s: s.edit(lambda r: r["flops"]["parts"].update(mlp=0)),
    "FLOPs beyond the model": lambda s: s.edit(lambda r: r["model"].update(parameters=10)),
    "tokens that were not read": lambda s: s.edit(lambda r: r["trace"].update(prompt_tokens=5)),
    "negative work": lambda s: s.edit(lambda r: r["flops"].update(kv_bytes=-1)),
    "weights of no model": lambda s: s.edit(lambda r: r["memory"].update(weights=10**15)),
    "faster than any machine": lambda s: s.edit(
        lambda r: r.update(duration_s=1e-12, flops={**r["flops"], "total": 10**24})
    ),
    "a latency that was not measured": lambda s: s.edit(
        lambda r: r["time"]["latency"]["end_to_end"].update(median=1e-6)
    ),
    "latencies that are not there": lambda s: s.edit(lambda r: r["time"]["latency"].update(raw=[[0.1]])),
    "energy of a moment": lambda s: s.edit(lambda r: r.update(energy={**ENERGY, "window_s": 0.2})),
    "power of no such device": lambda s: s.edit(
        lambda r: r.update(energy={**ENERGY, "busy_w": 900.0}, environment={**r["environment"], "device_name": "H100"})
    ),
    "from the future": lambda s: s.edit(lambda r: r.update(started="2999-01-01T00:00:00Z")),
    "a part of the documents": lambda s: s.edit_consistently(lambda r: r["evaluation"].update(limited=True, limit=3.0)),
    "another id": lambda s: s.edit(lambda r: r.update(id="0" * 12)),
    "an id that is a path": lambda s: s.edit(lambda r: r.update(id="../../../etc")),
    "another method's digest": lambda s: s.edit(lambda r: r["method"].update(fingerprint="0")),
    "other settings than asked": lambda s: s.edit(lambda r: r["evaluation"].update(batch_size=64)),
    "a folder of another name": lambda s: s.folder.rename(s.folder.with_name("0" * 12)),
    "a duplicate": lambda s: shutil.copytree(s.folder, s.folder.with_name("copy")),
    "no dense run": lambda s: s.edit(lambda r: r["baseline"].update(run_id="f" * 12)),
    "a future schema": lambda s: s.edit(lambda r: r.update(schema_version=99)),
    "an unknown field": lambda s: s.edit(lambda r: r.update(html=MARKUP)),
    "a missing section": lambda s: s.edit(lambda r: r.pop("flops")),
    "a score that is text": lambda s: s.edit(lambda r: score(r).update(value="0.9")),
    "NaN": lambda s: s.replace(
        (s.folder / "record.json").read_text().replace('"duration_s": 12.5', '"duration_s": NaN')
    ),
    "infinity": lambda s: s.replace((s.folder / "record.json").read_text().replace("12.5", "1e999")),
    "a huge number": lambda s: s.edit(lambda r: r["flops"].update(total=10**40)),
    "a number of a million digits": lambda s: s.replace('{"id": ' + "9" * 1_000_000 + "}"),
    "deep nesting": lambda s: s.replace('{"id": ' + deep(100_000) + "}"),
    "deep nesting in a free field": lambda s: s.edit(
        lambda r: r["method"].update(state=[{"a": json.loads(deep(400))}])
    ),
    "a record that is a list": lambda s: s.replace("[]"),
    "a record of two megabytes": lambda s: s.edit(lambda r: r.update(warnings=["x" * (2 << 20)])),
    "a name of 10,000 characters": lambda s: s.edit(lambda r: r["method"].update(label="x" * 10_000)),
    "markup for a name": lambda s: s.edit(lambda r: r["method"].update(label=MARKUP)),
    "control characters": lambda s: s.edit(lambda r: r["model"].update(name="\x1b[31mred\x1b[0m")),
    "text that runs backwards": lambda s: s.edit(lambda r: r["model"].update(name="a\u202eb")),
    "no samples": lambda s: (s.folder / "samples.jsonl.gz").unlink(),
    "samples that are no gzip": lambda s: (s.folder / "samples.jsonl.gz").write_bytes(b"PK\x03\x04" * 100),
    "a gzip that explodes": lambda s: (s.folder / "samples.jsonl.gz").write_bytes(gzip.compress(b" " * (300 << 20), 1)),
    "a million documents": lambda s: (s.folder / "samples.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1_000_000, 1)),
    "documents twice": lambda s: s.samples(lambda lines: lines.append(lines[0])),
    "documents left out": lambda s: s.samples(lambda lines: lines.pop()),
    "documents of another form": lambda s: s.samples(lambda lines: lines.__setitem__(0, {"task": ["x"], "scores": 3})),
    "a document that is a number": lambda s: s.samples(lambda lines: lines.__setitem__(0, 3)),
    "scores that are objects": lambda s: s.samples(
        lambda lines: lines[0].update(scores={"acc,none": {"__proto__": 1}})
    ),
    "documents that are slower than their mean": lambda s: s.samples(
        lambda lines: lines[0].update(ideal_s=9.0), "costs"
    ),
    "costs of another form": lambda s: s.samples(lambda lines: lines[0].update(ideal_s="fast"), "costs"),
    "costs that are not those that were packed": lambda s: (s.folder / "costs.jsonl.gz").write_bytes(
        gzip.compress(b"")
    ),
    "a manifest of lists": lambda s: s.replace('{"id": [], "identity": [], "git": []}', "manifest.json"),
    "a wrong digest": lambda s: (s.folder / "manifest.json").write_text('{"id": "x"}'),
    "a script beside it": lambda s: (s.folder / "install.py").write_text("import os"),
    "a link out of the folder": lambda s: (s.folder / "more").symlink_to("/etc"),
    "a link for the record": lambda s: _linked(s.folder / "record.json"),
    "a difference that the scores do not have": lambda s: s.edit(lambda r: _claim(r, 0.5)),
}


def _linked(path: Path) -> None:
    elsewhere = path.parent.parent.parent / "record-elsewhere.json"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _claim(record: Json, claimed: float) -> None:
    score(record)["vs_baseline"]["difference"] = claimed


def test_an_honest_submission_passes(board: Path) -> None:
    verdict = validate(board)
    assert verdict.findings == []
    assert verdict.runs == 3
    assert verdict.table.count("**new**") == 3


def test_a_packed_run_says_what_its_documents_cost(victim: Submission) -> None:
    lines = [json.loads(line) for line in gzip.decompress((victim.folder / "costs.jsonl.gz").read_bytes()).splitlines()]
    documents = gzip.decompress((victim.folder / "samples.jsonl.gz").read_bytes()).splitlines()
    assert [line["doc_hash"] for line in lines] == [json.loads(line)["doc_hash"] for line in documents]
    assert {len(line["doc_hash"]) for line in lines} == {16}
    assert lines[0]["requests"][0].keys() == {"prompt_tokens", "new_tokens", "run"}  # no traces


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_refused_in_words_and_the_site_survives(
    name: str, board: Path, victim: Submission, tmp_path: Path
) -> None:
    TAMPERINGS[name](victim)
    verdict = validate(board)
    errors = [finding for finding in verdict.findings if finding.severity == "error"]
    assert errors
    assert all(0 < len(finding.text) < 1000 for finding in errors)
    built = build(board, tmp_path / "site")
    assert built.runs + len(built.refused) >= 3
    assert not any(path.is_symlink() for path in (tmp_path / "site").rglob("*"))


def test_what_was_published_may_neither_change_nor_go(board: Path, packed: Path, victim: Submission) -> None:
    assert validate(board, packed).passed
    victim.edit(lambda record: record.update(duration_s=13.0))
    (changed,) = [finding for finding in validate(board, packed).findings if finding.severity == "error"]
    assert "duration_s was 12.5 and is 13.0" in changed.text
    shutil.rmtree(victim.folder)
    assert any("was published and is gone" in finding.text for finding in validate(board, packed).findings)


def test_the_reviewers_table_has_no_markup(board: Path, victim: Submission) -> None:
    victim.edit(lambda record: record["method"].update(label="[x](https://evil.test) `@team` | <b>"))
    line = next(line for line in validate(board).table.splitlines() if "evil" in line)
    assert line.count("|") == 7
    assert "`[x](https://evil.test) '@team' ¦ <b>`" in line


# ---- what is shown, is shown as text -----------------------------------------------------------------------------


def everywhere(value: Any, text: str, keep: tuple[str, ...]) -> Any:
    """The text in the place of every text, also of keys that are free."""
    if isinstance(value, dict):
        return {key: part if key in keep else everywhere(part, text, keep) for key, part in value.items()}
    if isinstance(value, list):
        return [everywhere(part, text, keep) for part in value]
    return text if isinstance(value, str) else value


KEPT = (
    "id",
    "run_id",
    "savings",
    "started",
    "kind",
    "provenance",
    "scope",
    "score_mode",
    "regime",
    "label",
    "own_label",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [MARKUP, "javascript:alert(1)", "</title></style><svg onload=window.hacked=1>", "\ud800"]
)
def test_markup_in_every_text_is_text_in_the_browser(text: str, board: Path, tmp_path: Path, opened: Any) -> None:
    for path in board.rglob("record.json"):
        record = everywhere(json.loads(path.read_text()), text, KEPT)
        record["scores"][0]["task"] = record["evaluation"]["task"] = text
        record["method"]["label"] = text
        record["method"] |= {"params": [{text: text}], "state": [{text: text}], "name": text}
        record |= {"missing": {text: text}, "warnings": [text]}
        path.write_text(json.dumps(record))
    for path in board.rglob("samples.jsonl.gz"):
        lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        hostile = [
            everywhere(line, text, ()) | {"scores": {f"{text},{text}": i % 2, "acc,none": 1}}
            for i, line in enumerate(lines)
        ]
        path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in hostile).encode()))
    for path in board.rglob("manifest.json"):
        path.write_text(json.dumps({"command": text, "git": {"commit": text}}))
    site = tmp_path / "site"
    built = build(board, site)
    if text == "\ud800":  # half a character: JSON may carry it, a record may not
        assert built.runs == 0
        return
    assert built.runs == 3, built.refused
    pages = [path.relative_to(site).as_posix() for path in site.rglob("*.html")]
    for name in pages[:12]:
        page = opened(name, folder=site)
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.querySelectorAll('img, iframe, object, main svg[onload]').length") == 0
        assert page.evaluate(
            "[...document.links].every((a) => a.href.startsWith('file:') || a.href.startsWith('https:'))"
        )
    shown = opened("index.html", folder=site)
    assert shown.locator("#board tbody th a").first.inner_text().startswith(text[:20])


@pytest.mark.slow
def test_a_formula_in_a_name_is_none_in_the_spreadsheet(
    board: Path, victim: Submission, tmp_path: Path, opened: Any
) -> None:
    victim.edit(lambda record: record["method"].update(label='=HYPERLINK("https://evil.test")'))
    build(board, tmp_path / "site")
    page = opened("index.html", folder=tmp_path / "site")
    with page.expect_download() as asked:
        page.locator("#csv").click()
    text = Path(asked.value.path()).read_text()
    assert "\"'=HYPERLINK(" in text
