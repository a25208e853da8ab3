"""The summary fits a terminal of 100 columns, whatever the labels, and cuts no number off."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from harness.cli import summary
from harness.results.baseline import Baseline, RatioInfo
from harness.results.costs import Ideal, Time
from harness.results.drafts import Drafts
from harness.results.record import RunRecord
from harness.results.scores import PairedScore
from harness.results.store import Store
from tests.conftest import Harness


@pytest.fixture
def records(harness: Harness, tiny: list[object], tmp_path: Path) -> list[RunRecord]:
    """Two runs, with long labels and every cost filled in."""
    made = harness("run", *tiny, "-t", "tiny_answer", "-m", "layer-drop:layers=1", "-L", 4, "--json").json()
    dense, method = (Store(Path("runs")).find(run["id"]).record() for run in made)
    change = PairedScore(difference=-0.035, low=-0.061, high=-0.009, n=200, detectable=0.04)
    scores = [
        dense.scores[0].model_copy(
            update={"filter": name, "value": 0.81, "low": 0.75, "high": 0.858, "n": 200, "vs_baseline": change}
        )
        for name in ("strict-match", "flexible-extract")
    ]
    wide = RatioInfo(value=1.02, low=0.91, high=1.13)
    ratios = dict.fromkeys(
        ("flops", "ideal_ref", "ideal_own", "latency", "tpot", "peak_memory", "energy_estimated"), wide
    )
    ratios["ideal_own"] = RatioInfo(value=0.5)
    ideal = Ideal(
        profile="k",
        label="poor",
        clock="wall",
        fit_error=0.12,
        held_out_error=0.2,
        ref_s=1,
        own_s=1,
        own_label="poor",
        parts={},
    )
    filled = method.model_copy(
        update={
            "scores": scores,
            "method": method.method.model_copy(update={"label": "wanda:pattern=16x1,sparsity=0.8+block-sparse"}),
            "flops": method.flops.model_copy(update={"audit_ratio": 0.5}),
            "trace": method.trace.model_copy(update={"mean_depth_prefill": 1.0, "mean_depth_decode": 0.643}),
            "baseline": Baseline(run_id=dense.id, documents=200, ratios=ratios, noise=ratios, answers_changed=0.051),
            "time": Time(ideal=ideal),
        }
    )
    return [dense, filled]


def printed(records: list[RunRecord], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The summary on a terminal of that width, which it may not exceed."""
    written = io.StringIO()
    monkeypatch.setattr(summary, "stdout", lambda: Console(file=written, width=width, highlight=False))
    summary.results(records, Path("runs"), as_json=False)
    assert max(map(len, written.getvalue().splitlines())) <= width
    return written.getvalue()


@pytest.mark.parametrize("width", [100, 80])
def test_nothing_is_cut_off(width: int, records: list[RunRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    out = printed(records, width, monkeypatch)
    for whole in (
        "0.810 [0.750, 0.858]",
        "-0.035 [-0.061, -0.009]",
        "100%/64%",
        "5.1%",
        "0.50x",
        "poor",
        "1.02x [0.91, 1.13]",
        "flexible-extract",
        "noise: dense again",
    ):
        assert whole in out, out
    words = " ".join(out.split())
    assert "own kernels is poor" in words
    assert "block-sparse: PyTorch's counter saw 0.5 times the FLOPs stated" in words  # as on the board
    assert words.count("a part of the task's documents: for trying out") == 1  # of both rows
    assert "…" not in out


def test_what_has_no_interval_says_why(records: list[RunRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    dense, method = records
    alone = RatioInfo(value=0.5, reason="3 prompts: an interval needs at least 6")
    ratios = dict.fromkeys(("latency", "tpot"), alone) | {"flops": RatioInfo(value=0.9, low=0.8, high=0.95)}
    open_change = PairedScore(
        difference=0.0, low=-0.02, high=0.02, n=200, detectable=0.04, p=1.0, test="mcnemar-exact", gained=0, lost=0
    )
    none = PairedScore(difference=0.0, n=8, test="t", reason="8 documents: an interval needs at least 10")
    scores = [
        score.model_copy(update={"vs_baseline": change})
        for score, change in zip(method.scores, (open_change, none), strict=True)
    ]
    baseline = method.baseline.model_copy(update={"ratios": ratios, "noise": {}})
    written = io.StringIO()
    monkeypatch.setattr(summary, "stdout", lambda: Console(file=written, width=100, highlight=False))
    records = [dense, method.model_copy(update={"scores": scores, "baseline": baseline})]
    summary.results(records, Path("runs"), as_json=False)
    words = " ".join(written.getvalue().split())
    metric = scores[0].metric
    assert "no interval of latency, time per token: 3 prompts: an interval needs at least 6" in words
    assert f"no interval of {metric}: 8 documents: an interval needs at least 10" in words
    exact = baseline.model_copy(update={"ratios": {"flops": RatioInfo(value=0.9)}})
    other = method.model_copy(update={"baseline": exact, "scores": []})
    written = io.StringIO()
    monkeypatch.setattr(summary, "stdout", lambda: Console(file=written, width=100, highlight=False))
    summary.results([*records, other], Path("runs"), as_json=False)
    words = " ".join(written.getvalue().split())
    label = method.method.label
    assert f"no interval of latency of {label}, time per token of {label}: 3 prompts" in words
    test = "of 200 documents the test (mcnemar-exact) finds 0.040 in four of five tries"
    assert f"its {metric} is not shown to differ from dense; {test}" in words


def changed(record: RunRecord, **baseline: object) -> RunRecord:
    assert record.baseline is not None
    return record.model_copy(update={"baseline": record.baseline.model_copy(update=baseline)})


def test_totals_stand_beside_ratios_of_the_same_tokens(
    records: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, method = records
    ratios = {
        name: RatioInfo(value=value)
        for name, value in (("flops", 0.99), ("flops_total", 0.33), ("ideal_ref", 0.98), ("ideal_ref_total", 0.22))
    }
    out = printed([dense, changed(method, ratios=ratios, noise={}, output_tokens=0.32)], 100, monkeypatch)
    for number in ("0.99x", "0.33x", "0.98x", "0.22x"):
        assert number in out
    assert out.count("totals") >= 3
    assert "wrote 0.32x the tokens that dense wrote" in " ".join(out.split())


def test_what_costs_more_is_said(records: list[RunRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    dense, method = records
    dearer = {"latency": RatioInfo(value=4.2, low=3.9, high=4.4), "flops": RatioInfo(value=1.4, low=1.3, high=1.5)}
    out = " ".join(printed([dense, changed(method, ratios=dearer)], 100, monkeypatch).split())
    assert "costs more than dense: FLOPs 1.40x; Latency 4.20x" in out


def test_what_came_of_drafts_is_said(records, monkeypatch):
    drafts = Drafts(
        verifications=4,
        drafted=12,
        accepted=6,
        tokens_per_verification=2.5,
        acceptance=[0.75, 0.5, 0.25],
        draft_flops=0,
        passes_per_token=0.4,
    )
    text = printed([records[0], records[1].model_copy(update={"drafts": drafts})], 200, monkeypatch)
    assert "2.50 tokens a verification, 0.40 passes over the weights a token; 75% of first guesses were right" in text


def test_a_close_profile_of_shorter_prompts_is_told_from_a_noisy_one(records: list[RunRecord]) -> None:
    ideal = records[-1].time.ideal
    close = {"label": "poor", "fit_error": 0.02, "held_out_error": 0.02, "speedup_error": 0.02, "speedup_worst": 0.05}
    assert "longer than those" in summary._mend(ideal.model_copy(update=close))
    assert "quiet machine" in summary._mend(ideal.model_copy(update=close | {"held_out_error": 0.5}))
    assert "quiet machine" in summary._mend(ideal.model_copy(update=close | {"label": "fair"}))
