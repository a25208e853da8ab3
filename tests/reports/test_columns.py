"""What the columns say of how a number came about."""

import pytest

from harness.reports.columns import BY_KEY, columns, trust, value


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
