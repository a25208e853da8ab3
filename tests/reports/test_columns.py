"""What the columns say of how a number came about."""

import copy

import pytest

from harness.leaderboard.pages import cost_line
from harness.reports.columns import BY_KEY, beside, columns, ratio, trust, value, why_no_ratio
from harness.reports.rows import rows
from tests.leaderboard.generated import groups, runs


def record(**time):
    return {"time": time, "scores": []}


@pytest.mark.parametrize(("machine", "words"), [("this-host", "measured"), ("h100-sxm", "data sheet")])
def test_a_roofline_says_where_its_peaks_are_from(machine, words):
    run = record(roofline={machine: {"seconds": 1.0, "doubts": []}})
    column = columns([run])[-1]
    assert words in column.help
    assert ("data sheet" in column.help) == (machine != "this-host")
    assert trust(run, column) == ("", True)


def test_a_bound_that_was_beaten_is_not_ranked_by():
    run = record(roofline={"this-host": {"seconds": 1.0, "doubts": ["no bound: 1 of 2"]}})
    assert trust(run, columns([run])[-1]) == ("no bound: 1 of 2", False)


@pytest.mark.parametrize("doubts", [[], ["unsteady"]])
def test_latency_names_its_clock(doubts):
    run = record(latency={"typical_s": 0.5, "clock": "wall clock", "doubts": doubts})
    assert trust(run, BY_KEY["latency"]) == ("; ".join(["wall clock", *doubts]), not doubts)
    assert trust(record(latency={"typical_s": 0.5, "clock": None, "doubts": []}), BY_KEY["latency"]) == ("", True)


def test_idealized_time_stands_beside_latency_for_the_same_requests():
    run = record(latency={"typical_s": 0.5}, ideal={"ref_s": 9.0, "requests_s": 0.4, "label": "good"})
    same, latency = BY_KEY["ideal_requests"], BY_KEY["latency"]
    assert (value(run, same), value(run, latency)) == (0.4, 0.5)
    assert same.per == latency.per == "request"
    assert BY_KEY["ideal_ref"].per == "document"
    assert "same requests" in same.title


def test_dense_beside_a_measured_cost_was_measured_in_the_same_turns():
    dense, method = (copy.deepcopy(made.record) for made in runs(groups(1, 1, 1)[0], settings=1))
    latency = method["time"]["latency"]
    latency |= {"ttft": latency["end_to_end"], "tpot": latency["end_to_end"]}
    method["memory"]["peak"] = dense["memory"]["peak"] = 7
    times = {"latency": [0.3, 0.5, 0.4], "ttft": [0.1, 0.2, 0.2], "tpot": [0.01, 0.03, 0.02]}
    request = {"prompt_tokens": 3, "new_tokens": 4, "run": times}
    line = {"task": "t", "doc_id": 0, "doc_hash": "a", "requests": [request | {"dense": times}]}
    row = rows([dense, method])[1]
    shown = {key: cost_line(row, BY_KEY[key], [line]) for key in ("latency", "ttft", "tpot", "peak_memory", "flops")}
    assert [shown[key].dense for key in ("latency", "ttft", "tpot")] == [0.4, 0.2, 0.02]
    assert {key for key, each in shown.items() if each.of_another_run} == {"peak_memory"}
    method["baseline"]["beside"] = {"peak_memory": 9, "energy_j": [2.0, 4.0], "energy_is_measured": True}
    assert cost_line(row, BY_KEY["peak_memory"], [line]).dense == 9
    assert beside(method, BY_KEY["energy"], []) == 3
    assert beside(method, BY_KEY["energy_estimated"], []) is None
    alone = cost_line(row, BY_KEY["latency"], [line | {"requests": [request]}])
    assert (alone.dense, alone.of_another_run) == (dense["time"]["latency"]["typical_s"], True)


def test_a_ratio_that_the_record_refuses_is_not_made_of_two_values():
    """Dense's own run read these texts in other forwards: what grows with them is over dense in the run's own."""
    dense, method = (copy.deepcopy(made.record) for made in runs(groups(1, 1, 1)[0], settings=1))
    machine = next(iter(dense["time"]["roofline"]))
    keys = ("ideal_requests", f"roofline:{machine}")
    all_columns = {column.key: column for column in columns([dense, method])}
    for run in (dense, method):
        run["evaluation"]["score_mode"] = "context-first"
        run["time"]["ideal"]["requests_s"] = 0.5
    for key in keys:
        method["baseline"]["ratios"].pop(key, None)
    assert all(ratio(method, dense, all_columns[key]) for key in keys)
    method["missing"] |= {f"baseline.ratios.{key}": "other forwards" for key in keys}
    assert not any(ratio(method, dense, all_columns[key]) for key in keys)
    assert {why_no_ratio(method, all_columns[key]) for key in keys} == {"other forwards"}
    method["flops"]["dense_equivalent"] = 2 * method["flops"]["total"]
    del method["baseline"]["ratios"]["flops"]
    assert ratio(method, dense, BY_KEY["flops"]).value == 0.5
    assert cost_line(rows([dense, method])[1], BY_KEY["flops"]).of_same_tokens
    # answers of another length beside them, as in a group that also generates, give no totals
    method["baseline"]["output_tokens"] = 0.5
    shares = {key: ratio(method, dense, BY_KEY[key]) for key in ("flops", "flops_total")}
    assert shares["flops"].value == 0.5
    assert shares["flops_total"] is None
