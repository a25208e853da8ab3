"""A recommendation from published runs, and what it refuses to name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.sweep import local
from tests.conftest import ROOT, Harness
from tests.sweep.conftest import Threads

DATA = ROOT / "leaderboard" / "data"
DENSE, DROP, CALM = "fc51a6c09726", "6ea2a97e4823", "d051c650d30c"
"""Published runs of the bundled model on pocket_math, on one machine."""
ASKED = ("recommend", "--pretrained", "pocket", "--task", "pocket_math")
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A folder of three published runs, of which records are changed."""

    def copy(**changes: Change) -> Path:
        folder = tmp_path / "published"
        shutil.rmtree(folder, ignore_errors=True)
        for name, run in {"dense": DENSE, "drop": DROP, "calm": CALM}.items():
            shutil.copytree(DATA / run, folder / run)
            path = folder / run / "record.json"
            record = json.loads(path.read_text())
            changes.get(name, lambda _: None)(record)
            path.write_text(json.dumps(record))
        return folder

    return copy


def advice(harness: Harness, results: Path, *words: object, code: int = 0) -> dict[str, Any]:
    done = harness(*ASKED, "--results", results, *words, "--json")
    assert done.code == code, done.err
    (group,) = json.loads(done.out)
    return group  # type: ignore[no-any-return]


def methods(runs: list[dict[str, Any]]) -> list[str]:
    return [run["method"] for run in runs]


def published(harness: Harness, budget: str) -> list[dict[str, Any]]:
    """The answer of each machine on the board."""
    groups: list[dict[str, Any]] = json.loads(harness(*ASKED, "--results", DATA, "--budget", budget, "--json").out)
    assert len(groups) == 2
    return groups


def test_published_runs_are_named_within_the_budget_and_told_apart(harness: Harness) -> None:
    shown = harness(*ASKED, "--results", DATA, "--budget", "latency=0.8")
    assert shown.code == 0
    groups = published(harness, "latency=0.8")
    assert any(group["named"] for group in groups)
    for group in groups:
        assert "int8-dynamic" in methods(group["not_named"])
        names = set(methods(group["named"]))
        assert all(set(tie["methods"]) <= names for tie in group["ties"])
        assert all(tie["difference"]["low"] <= 0 <= tie["difference"]["high"] for tie in group["ties"])
        for run in group["named"]:
            cost = run["costs"]["latency"]
            assert cost["value"] <= 0.8
            assert cost["high"] < 1
            assert run["saving"] in ("real", "bytes alone")
            assert run["command"].startswith("harness run --method ")
            assert run["run"] in shown.out
            assert run["command"] in shown.out


@pytest.mark.parametrize("name", ["flops", "latency", "tpot", "bytes", "weights"])
def test_every_budget_is_kept_by_what_it_names(harness: Harness, name: str) -> None:
    named = [run for group in published(harness, f"{name}=0.9") for run in group["named"]]
    assert named
    assert all(run["costs"][name]["value"] <= 0.9 for run in named)


def test_several_budgets_are_all_kept(harness: Harness, changed: Callable[..., Path]) -> None:
    group = advice(harness, changed(), "--budget", "latency=0.85,bytes=0.8")
    assert methods(group["named"]) == ["layer-drop"]
    assert [run["state"] for run in group["not_named"]] == ["none"]  # calm keeps all weights


def ratio(record: dict[str, Any], name: str = "latency") -> dict[str, Any]:
    return record["baseline"]["ratios"][name]  # type: ignore[no-any-return]


def unmeasured(record: dict[str, Any]) -> None:
    del record["baseline"]["ratios"]["latency"]
    record["time"]["latency"] = None
    record["missing"]["time.latency"] = "not measured: --measure did not ask for latency"


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        (lambda record: record["method"].update(savings="simulated", declared_real=False), "not_named", "simulated"),
        (lambda record: ratio(record).update(high=1.01), "not_named", "no saving can be excluded"),
        (lambda record: ratio(record).update(value=1.2, low=1.1, high=1.3), "not_named", "no saving"),
        (lambda record: ratio(record).update(low=None, high=None, reason="5 prompts"), "unknown", "5 prompts"),
        (lambda record: record["time"]["latency"].update(doubts=["shared machine"]), "unknown", "shared machine"),
        (lambda record: record["flops"].update(audit_ratio=1.5), "not_named", "saved nothing"),
        (unmeasured, "unknown", "did not ask for latency"),
    ],
)
def test_what_is_not_surely_a_saving_is_not_named(
    harness: Harness, changed: Callable[..., Path], change: Change, where: str, reason: str
) -> None:
    results = changed(drop=change)
    group = advice(harness, results, "--budget", "latency=0.8")
    assert methods(group["named"]) == ["calm"]
    (run,) = [run for run in group[where] if run["method"] == "layer-drop"]
    assert reason in run["reason"]
    if where == "unknown":
        assert "--measure" in run["command"]
        assert "latency" in run["command"].partition("--measure ")[2].split()[0]
        assert ("--no_resume" in run["command"]) == (run["costs"]["latency"] is not None)


def test_where_nothing_keeps_the_budget_the_nearest_is_said(harness: Harness, changed: Callable[..., Path]) -> None:
    done = harness(*ASKED, "--results", changed(), "--budget", "latency=0.2")
    assert done.code == 1
    assert "no method is known to keep within it" in done.out
    assert "the nearest is layer-drop, latency 0.71" in done.out
    assert "never run here: awq" in done.out


def test_other_machines_are_other_groups(harness: Harness, changed: Callable[..., Path]) -> None:
    def elsewhere(record: dict[str, Any]) -> None:
        record["environment"]["device_name"] = "another processor"

    group = advice(harness, changed(calm=elsewhere), "--budget", "latency=0.8")
    assert methods(group["named"]) == ["layer-drop"]
    assert "calm" not in methods([*group["not_named"], *group["unknown"], *group["behind"]])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--budget", "latncy=0.8"], "Did you mean 'latency'"),
        (["--budget", "latency=0"], "above 0 and at most 1"),
        (["--budget", "latency=1.5"], "above 0 and at most 1"),
        (["--budget", "latency=fast"], "above 0 and at most 1"),
        (["--budget", "latency"], "expected a cost and its share"),
        ([], "within what?"),
        (["--budget", "flops=0.9", "--task", "pocket_maths"], "Did you mean 'pocket_math'"),
        (["--budget", "flops=0.9", "--pretrained", "pockets"], "Did you mean 'pocket'"),
        (["--budget", "flops=0.9", "--results", "none"], "Make runs: harness run --method layer-drop"),
        (["--budget", "flops=0.9", "--method", "layer-drop"], "give --run too"),
        (["--budget", "latency=0.9", "--results", "none", "--run"], "name methods"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_sentence(harness: Harness, words: list[str], sentence: str) -> None:
    done = harness(*ASKED, "--results", DATA, *words)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err


def test_what_is_missing_is_run_when_asked(
    harness: Harness, tiny: list[object], tiny_tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local.Local, "here", lambda results, *_: Threads(results))
    assert harness("run", *tiny, "--task", "tiny_letters", "--limit", "6", "--measure", "flops").code == 0
    asked = ["recommend", "--pretrained", "tiny-llama", "--task", "tiny_letters", "--budget", "flops=0.97"]
    assert harness(*asked).code == 1
    done = harness(*asked, "--run", "--method", "layer-drop:layers=1|2", "--include_path", tiny_tasks, "--json")
    assert done.code == 0, done.err
    (group,) = json.loads(done.out)
    assert group["limited"]
    assert all(run["costs"]["flops"]["value"] < 0.97 for run in group["named"])
    assert len([*group["named"], *group["behind"]]) == 2
