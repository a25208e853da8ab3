"""What is said beside a row's numbers, wherever the row is shown."""

import copy
from typing import Any

import pytest

from harness.reports.columns import BY_KEY, Ratio, columns, costs_more, ratio, reference, why_missing, why_no_ratio
from harness.reports.notes import notes
from harness.reports.numbers import PAGE, TERMINAL
from harness.reports.rows import rows
from harness.results.record import MISSING, RunRecord
from tests.leaderboard.generated import groups, runs

ENERGY: dict[str, Any] = {
    "measured_j": None,
    "estimated_j": 1.58,
    "active_j": None,
    "idle_w": None,
    "parts": {
        "ram": {"joules": 1.5, "source": "constant", "provenance": "estimated_constant", "scope": "process"},
        "cpu": {"joules": 0.08, "source": "psutil_load_tdp", "provenance": "estimated_load_tdp", "scope": "process"},
    },
    "label": "estimated_constant",
    "note": "estimated",
    "windows": 3,
    "window_s": 10.0,
}


def pair(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dense run and a method's, of which sections are changed."""
    dense, method = (copy.deepcopy(made.record) for made in runs(groups(1, 1, 1)[0], settings=1))
    for name, change in changes.items():
        method[name] = method[name] | change if isinstance(method[name], dict) and change is not None else change
    return dense, RunRecord.model_validate(method).model_dump(mode="json")


def said(**changes: Any) -> list[str]:
    dense, method = pair(**changes)
    return notes(rows([dense, method])[1], TERMINAL)


def with_ratios(**ratios: dict[str, float]) -> dict[str, Any]:
    _, method = pair()
    return method["baseline"] | {"ratios": method["baseline"]["ratios"] | ratios}


def test_nothing_is_said_of_a_row_that_says_it_all() -> None:
    dense, method = pair()
    method["baseline"]["ratios"]["latency"] = {"value": 0.8, "low": 0.7, "high": 0.9}
    assert [notes(row, TERMINAL) for row in rows([dense, method])] == [[], []]


@pytest.mark.parametrize(
    ("flops", "saving"), [(1.4, "bytes alone"), (1.006, "bytes alone"), (1.004, "real"), (0.9, "real")]
)
@pytest.mark.parametrize("method", ["real", "simulated"])
def test_no_saving_is_real_where_flops_are_above_dense_s(flops: float, saving: str, method: str) -> None:
    dearer = with_ratios(flops={"value": flops, "low": 0.8, "high": 2.0}, weight_bytes={"value": 0.5})
    row = rows(pair(method={"savings": method}, baseline=dearer))[1]
    assert row.saving == (saving if method == "real" else method)


@pytest.mark.parametrize(
    ("info", "dearer"),
    [
        ({"value": 1.4}, "counted"),  # what was measured once may be chance
        ({"value": 1.4, "reason": "3 documents"}, "counted"),
        ({"value": 1.4, "low": 1.2, "high": 1.6}, True),
        ({"value": 1.4, "low": 0.9, "high": 1.9}, False),
        ({"value": 1.001, "low": 1.0005, "high": 1.002}, False),  # 1.00x
        ({"value": 1.0}, False),
        ({"value": 0.7, "low": 0.6, "high": 0.8}, False),
    ],
)
@pytest.mark.parametrize(
    ("name", "title"), [("flops", "FLOPs"), ("latency", "Latency"), ("peak_memory", "Peak memory")]
)
def test_a_ratio_surely_above_one_costs_more(name: str, title: str, info: dict[str, Any], dearer: bool | str) -> None:
    quiet = with_ratios(latency={"value": 1.0, "low": 0.9, "high": 1.1})
    quiet["ratios"][name] = info
    expected = BY_KEY[name].kind == dearer if isinstance(dearer, str) else dearer
    assert said(baseline=quiet) == ([f"costs more than dense: {title} 1.40x"] if expected else [])
    assert costs_more(Ratio(**info), BY_KEY[name]) == expected


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        ({"onednn int8": 8}, ""),
        ({"dense product over int8 values": 8}, "no faster kernel on this machine: dense products"),
        (
            {"dense, as nothing is faster": 3, "onednn int8": 5},
            "no faster kernel on this machine for 3 of 8 linear layers: dense products",
        ),
        (
            {"exact; dense product over int8 values from 16 tokens": 5, "exact": 3},
            "by the number of tokens for 5 of 8 linear layers: exact; dense product over int8 values from 16 tokens",
        ),
        ({"dense product over 2:4 zeros": 8}, ""),  # masks: such a method has no kernel
        ({"dense product over unstructured zeros": 8}, ""),
    ],
)
@pytest.mark.parametrize("savings", ["real", "none", "simulated"])
def test_dense_products_in_a_kernel_s_place_are_named(kernels: dict[str, int], words: str, savings: str) -> None:
    lines = " | ".join(said(method={"kernels": kernels, "savings": savings}))
    assert (words in lines) if words else ("faster kernel" not in lines)
    if savings == "none" and words:
        assert f"none here: {words}" in lines


def test_what_weights_would_take_is_no_measurement() -> None:
    _, method = pair()
    (line,) = said(memory={"weights": 4_000_000, "packed_weights": 600_000})
    assert line == (
        "packed size, not measured: its weights would take 600 kB, and the floats that were multiplied took 4 MB"
    )
    column = BY_KEY["packed_weights"]
    assert (column.title, column.path) == ("Packed size, not measured", "memory/packed_weights")
    assert method["memory"]["packed_weights"] is None


@pytest.mark.parametrize(
    ("kernels", "asked", "words"),
    [
        ({"dense product over int8 values": 8}, "dense", "dense products, asked for by --kernel dense"),
        (
            {"dense product over int8 values": 3, "block-sparse int8": 5},
            "dense product over int8 values",
            "dense products for 3 of 8 linear layers, asked for by --kernel dense product over int8 values",
        ),
        (
            {"dense product over int8 values": 3, "onednn int8": 5},
            "onednn int8",
            (
                "no faster kernel on this machine for 3 of 8 linear layers: dense products"
                " | ran on onednn int8, asked for by --kernel"
            ),
        ),
        ({"onednn int8": 8}, "onednn int8", "ran on onednn int8, asked for by --kernel"),
    ],
)
def test_what_was_asked_for_is_not_the_machine_s_choice(kernels: dict[str, int], asked: str, words: str) -> None:
    lines = said(method={"kernels": kernels, "kernel_asked": asked, "savings": "real"})
    assert " | ".join(lines).startswith(words)


@pytest.mark.parametrize("declared", ["real", "simulated"])
def test_a_slower_kernel_that_was_asked_for_saves_nothing_here(declared: str) -> None:
    method = {"kernels": {"onednn int8": 8}, "kernel_asked": "onednn int8", "kernel_slower": True}
    lines = said(method=method | {"savings": declared, "declared_real": declared == "real"})
    slower = "none here: the kernel that was asked for is slower than dense on this machine"
    assert (slower in lines) == (declared == "real")
    assert any("simulated" in line for line in lines) == (declared == "simulated")


def test_energy_that_follows_the_clock_is_no_ratio_and_its_joules_are_said() -> None:
    estimated = {"energy_estimated": {"value": 0.87, "low": 0.8, "high": 0.9}}  # of an older record
    dense, method = pair(energy=ENERGY, baseline=with_ratios(**estimated))
    column = BY_KEY["energy_estimated"]
    assert ratio(method, dense, column) is None
    assert why_no_ratio(method, column) == "estimated: constant power x time, no ratio"
    assert any(
        line.startswith("energy 1.58 J a request, estimated: constant power x time") for line in said(energy=ENERGY)
    )
    loaded = copy.deepcopy(ENERGY)
    loaded["parts"]["cpu"]["joules"] = 1.0
    _, method = pair(energy=loaded, baseline=with_ratios(**estimated))
    assert ratio(method, dense, column) == Ratio(0.87, 0.8, 0.9)
    vague = with_ratios(energy_estimated={"value": 0.87, "low": None, "high": None, "reason": "windows"})
    dense, method = pair(energy=loaded, baseline=vague)
    assert ratio(method, dense, column) is None
    assert why_no_ratio(method, column) == "estimated: 60% of it constant power x time, without an interval: no ratio"
    assert any(
        line.startswith("energy 1.58 J a request, estimated: 60% of it") for line in said(energy=loaded, baseline=vague)
    )


def test_columns_of_totals_stand_where_a_run_wrote_another_length() -> None:
    dense, method = pair()
    assert not [column for column in columns([dense, method]) if column.of_totals]
    shorter = with_ratios(flops={"value": 0.9}, flops_total={"value": 0.3}) | {"output_tokens": 0.3}
    dense, method = pair(baseline=shorter)
    keys = [column.key for column in columns([dense, method])]
    assert keys[keys.index("flops") + 1] == "flops_total"
    assert ratio(method, dense, BY_KEY["flops"]) == Ratio(0.9)
    assert ratio(method, dense, BY_KEY["flops_total"]) == Ratio(0.3)
    # a run of dense's length in the same table: its totals are its ratios
    dense, other = pair()
    assert ratio(other, dense, BY_KEY["flops_total"]) == ratio(other, dense, BY_KEY["flops"])
    (line,) = [line for line in said(baseline=shorter) if line.startswith("wrote")]
    assert line.startswith("wrote 0.30x the tokens that dense wrote")
    assert "totals: FLOPs 0.30x" in line
    assert "its latency of texts of one length" in line
    (untimed,) = [line for line in said(baseline=shorter, time=None) if line.startswith("wrote")]
    assert "latency" not in untimed


def test_dense_beside_a_run_of_another_length_is_dense_on_the_same_tokens() -> None:
    dense, method = pair(baseline=with_ratios(flops_total={"value": 0.3}) | {"output_tokens": 0.3})
    documents = method["scores"][0]["n"]
    assert reference(method, dense, BY_KEY["flops"]) == method["flops"]["dense_equivalent"] / documents
    assert reference(method, dense, BY_KEY["flops_total"]) == dense["flops"]["total"] / documents


def test_what_is_missing_is_said_once() -> None:
    _, method = pair(missing=MISSING)
    for column in columns([method]):
        assert not why_missing(method, column).startswith("not measured")
    assert why_missing(method, BY_KEY["energy"]) == "--measure did not ask for energy"
    assert why_missing(method, BY_KEY["ttft"]) == "no tokens are written one by one in this task"


def test_numbers_are_written_as_the_place_writes_them() -> None:
    dense, method = pair(baseline=with_ratios(latency={"value": 1.4, "low": 1.2, "high": 1.6}))
    row = rows([dense, method])[1]
    assert notes(row, PAGE) == ["costs more than dense: Latency 1.40×"]
    assert notes(row, PAGE, in_cells=True) == []


ROUNDING = {"format": "Q4_1", "formats": {"Q4_1": {"share": 0.999, "group": 32}, "F32": {"share": 0.001, "group": 1}}}


@pytest.mark.parametrize(
    ("family", "is_said"), [("quantization", True), ("pruning+quantization", True), ("pruning", False)]
)
def test_a_quantizers_row_says_that_its_weights_were_rounded_before(family: str, *, is_said: bool) -> None:
    dense, method = pair(model={"rounding": ROUNDING}, method={"family": family})
    words = "its weights were rounded once (Q4_1, groups of 32)"
    assert any(words in note for note in notes(rows([dense, method])[1], PAGE)) == is_said


@pytest.mark.parametrize(
    ("name", "params", "is_said"),
    [
        ("int4-weight-only", [{"group": 32}], True),
        ("mx", [{"block": 32}], True),
        ("layer-drop+int4-weight-only", [{"count": 4}, {"group": 32}], True),
        ("shuffle+int4-weight-only", [{"seed": 0}, {"group": 32}], False),
        ("int4-weight-only", [{"group": 64}], False),
        ("int8-dynamic", [{}], False),
    ],
)
def test_a_quantizer_in_the_groups_of_the_file_is_no_comparison(name: str, params: list[Any], *, is_said: bool) -> None:
    told = {"family": "quantization", "name": name, "label": name, "params": params}
    dense, method = pair(model={"rounding": ROUNDING}, method=told)
    (note,) = (note for note in notes(rows([dense, method])[1], PAGE) if "rounded once" in note)
    assert (f"shuffle+{name} has other groups" in note) == is_said


def test_a_models_name_says_what_it_was_dequantized_from() -> None:
    dense, method = pair(model={"rounding": ROUNDING})
    assert [row.model.partition(" ")[2] for row in rows([dense, method])] == ["", "(dequantized from Q4_1)"]
