"""A method that writes another length than dense is compared on the tokens that it wrote, and totals say so."""

from typing import Any

import pytest

from harness.results.baseline import same_length
from harness.results.compare import StoredRun, paired
from harness.results.equal_tokens import stated
from harness.results.record import RunRecord
from tests.toys import record_json, sample_json


def run(length: int, share: float, *, old: bool = False) -> StoredRun:
    """A run that wrote ``length`` tokens for each of three prompts, each at ``share`` of dense's cost."""
    lines, dense_flops = [], [100 * (3 + number) + 10 * length for number in range(3)]
    for number, flops in enumerate(dense_flops):
        line = sample_json(doc_id=number, flops=round(flops * share), output_tokens=length)
        lines.append(line if old else line | {"dense_flops": flops})
    total = sum(line["flops"] for line in lines)
    plain = record_json()
    plain["trace"] |= {"output_tokens": 3 * length}
    moved = {"weight_bytes": round(1000 * length * share), "kv_bytes": round(500 * length * share)}
    dense = {"dense_weight_bytes": 1000 * length, "dense_kv_bytes": 500 * length}
    plain["flops"] |= {"total": total, "parts": {"mlp": total}, "dense_equivalent": sum(dense_flops)} | moved
    plain["memory"] |= {"kv_peak": round(200 * length * share)}
    seconds = {"ref_s": length * share, "own_s": length * share * 0.5}
    ideal = {"profile": "p", "label": "good", "clock": "wall", "fit_error": 0, "held_out_error": 0, "parts": {}}
    if not old:
        plain["flops"] |= dense
        plain["memory"] |= {"dense_kv_peak": 200 * length, "dense_weights": 1}
        seconds |= {"dense_s": length}
    bound = {"l4": {"seconds": length * share, "dtype": "float32", "parts": {}, "peaks_source": ""}}
    plain["time"] = {"ideal": ideal | seconds, "roofline": bound}
    costs: dict[Any, Any] = {}
    for line in lines:
        each = {name: line[name] for name in ("task", "doc_id", "doc_hash")} | {"ideal_s": length * share}
        costs[tuple(each[name] for name in ("task", "doc_id", "doc_hash"))] = (
            each if old else each | {"dense_ideal_s": length}
        )
    return StoredRun.of(RunRecord.model_validate(plain), lines, costs)


GROWING = ("flops", "weight_bytes", "kv_bytes", "kv_peak", "ideal_ref", "ideal_own")


@pytest.mark.parametrize("length", [3, 50])
@pytest.mark.parametrize("share", [1.0, 0.5, 1.4])
def test_ratios_are_of_the_same_tokens_and_totals_have_other_names(length: int, share: float) -> None:
    dense, method = run(10, 1.0), run(length, share)
    _, beside = paired(dense, method)
    for name in GROWING:
        expected = share * (0.5 if name == "ideal_own" else 1)
        assert beside.ratios[name].value == pytest.approx(expected, rel=1e-3), name
    assert beside.ratios["flops"].reason  # three documents give no interval, and say so
    total = method.record.flops.total / dense.record.flops.total
    assert beside.ratios["flops_total"].value == pytest.approx(total)
    assert beside.ratios["weight_bytes_total"].value == pytest.approx(share * length / 10)
    assert beside.ratios["ideal_ref_total"].value == pytest.approx(share * length / 10)
    assert beside.ratios["weights"].value == 1  # does not grow with the text
    assert not any(name.startswith("roofline") for name in beside.ratios)


def test_at_one_length_ratios_are_of_totals_and_nothing_stands_beside() -> None:
    _, beside = paired(run(10, 1.0), run(10, 0.5))
    assert not any(name.endswith("_total") for name in beside.ratios)
    assert beside.ratios["flops"].value == pytest.approx(0.5, rel=1e-2)


def test_two_methods_are_compared_by_what_each_saves() -> None:
    _, beside = paired(run(10, 0.8), run(4, 0.4))
    assert beside.ratios["weight_bytes"].value == pytest.approx(0.5)
    assert beside.ratios["flops"].value == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize(("ratio", "alike"), [(None, True), (0.99, True), (1.01, True), (0.98, False), (3.0, False)])
def test_lengths_agree_within_one_percent(ratio: float | None, alike: bool) -> None:
    assert same_length(ratio) is alike


def test_totals_of_older_records_get_their_own_name() -> None:
    record = run(3, 1.0, old=True).record.model_dump(mode="json")
    ratio = {"value": 0.4, "low": 0.3, "high": 0.5}
    names = ("flops", "ideal_ref", "latency", "weights", "roofline:l4")
    record["baseline"] = {"run_id": "0" * 12, "documents": 3, "ratios": dict.fromkeys(names, ratio)}
    record["baseline"] |= {"noise": {}, "answers_changed": 0.9, "output_tokens": 0.3}
    known = stated(record)
    assert known["flops"] == {"value": 1.0, "low": None, "high": None}
    assert known["flops_total"] == known["ideal_ref_total"] == known["latency"] == known["weights"] == ratio
    assert known.keys() == {"flops", "flops_total", "ideal_ref_total", "latency", "weights"}
    record["baseline"]["output_tokens"] = 1.004
    assert stated(record) == record["baseline"]["ratios"]
