"""Figures of an analysis, each from its table, and quality against kept share from records."""

from typing import Any

import pytest

from harness.reports.attention import kept_lines, plots
from harness.reports.rows import Row

LINES: dict[str, list[dict[str, Any]]] = {
    "layers": [
        {"layer": layer, "head": head, "entropy": 2.0 + head, "uniform": 6.0, "sinks": 0.4, "recent": 0.3}
        for layer in range(3)
        for head in range(2)
    ],
    "split": [{"keys": keys, "sdpa": 0.1, "whole": 0.2, "split": 0.15} for keys in (256, 512)],
    "length": [
        {"method": "m", "cost": "first token", "length": length, "value": 1.1, "low": 1.0, "high": 1.2}
        for length in (256, 512)
    ],
    "kept": [{"task": "t", "name": "m", "kept": kept, "difference": -0.1} for kept in (0.5, 0.25)],
}


def test_every_part_has_its_figure_and_the_same_bytes_again() -> None:
    drawn = {plot.name: plot for plot in plots(LINES)}
    assert set(drawn) == {f"attention_{part}" for part in LINES}
    assert b"entropy, of uniform" in drawn["attention_layers"].svg
    assert b"whole heads" in drawn["attention_split"].svg
    assert drawn["attention_kept"].png.startswith(b"\x89PNG")
    assert next(plots({"kept": LINES["kept"]})).svg == drawn["attention_kept"].svg
    assert not list(plots({"layers": []}))


def record(**given: Any) -> dict[str, Any]:
    score = {
        "task": "t",
        "metric": "acc",
        "n": 20,
        "value": 0.8,
        "vs_baseline": {"difference": -0.1, "low": -0.2, "high": 0},
    }
    return {
        "id": "1" * 12,
        "method": {"label": "knorm:keep=0.5", "name": "knorm", "family": "cache"},
        "model": {"name": "pocket", "dtype": "float32"},
        "evaluation": {"task": "t", "batch_size": 1, "num_fewshot": None, "apply_chat_template": False},
        "scores": [score],
        "memory": {"kv_peak": 50, "dense_kv_peak": 100},
        "flops": {"parts": {"attention_scores": 30}},
        "trace": {"forwards": 4},
        **given,
    }


def test_kept_share_is_over_dense_on_the_same_tokens() -> None:
    dense = record(flops={"parts": {"attention_scores": 120}})
    (line,) = kept_lines([Row(record(), dense)])
    assert (line["kept"], line["pairs"], line["difference"]) == (0.5, 0.25, -0.1)
    (apart,) = kept_lines([Row(record(), {**dense, "trace": {"forwards": 5}})])
    assert apart["pairs"] is None
    (alone,) = kept_lines([Row(record(), None)])
    assert alone["pairs"] is None


@pytest.mark.parametrize(
    "given",
    [
        {"memory": {"kv_peak": None, "dense_kv_peak": 100}},
        {"memory": {"kv_peak": 50}},
        {"method": {"label": "dense", "name": "dense", "family": "baseline"}},
        {"scores": [{"task": "t", "metric": "acc", "n": 20, "value": 0.8, "vs_baseline": None}]},
        {"scores": []},
    ],
)
def test_runs_without_a_kept_share_or_a_comparison_are_left_out(given: dict[str, Any]) -> None:
    assert not kept_lines([Row(record(**given), None)])
