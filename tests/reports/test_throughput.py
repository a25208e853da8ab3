"""Throughput in reports: a table of its own, and rates that a published record may state."""

import copy
from typing import Any

import pytest

from harness.leaderboard.physics import throughput as rule
from harness.reports.columns import columns
from harness.reports.rows import Row, rows
from harness.reports.throughput import frame, printed
from harness.results.rates import rated
from harness.results.record import RunRecord
from harness.results.throughput import BATCHES, BatchSize, BatchTimes, Throughput
from tests.leaderboard.generated import groups, runs


def times(seconds: float) -> BatchTimes:
    noise = [[seconds * (1 + 0.01 * ((batch + turn) % 3)) for turn in range(3)] for batch in range(BATCHES)]
    return BatchTimes(reading_s=noise, writing_s=noise, written=[16] * BATCHES)


def unsteady() -> dict[str, Any]:
    """Rounds of which each took longer than the last, with the rates that they give."""
    wild = [[0.4 * (1 + turn) for turn in range(3)]] * BATCHES
    run = BatchTimes(reading_s=wild, writing_s=wild, written=[16] * BATCHES)
    return rated(SIZE.model_copy(update={"run": run})).model_dump(mode="json")


SIZE = rated(
    BatchSize(
        batch_size=8,
        texts=48,
        prompt_tokens=[160 + index for index in range(BATCHES)],
        pad_tokens=3,
        run=times(0.4),
        dense=times(0.8),
        reading=0,
        layers_run=0.5,
    )
)


@pytest.fixture
def measured() -> list[Row]:
    """Dense, and a method that is twice as fast in batches of eight."""
    made = [copy.deepcopy(each.record) for each in runs(groups(1, 1, 1)[0])][:2]
    section = Throughput(clock="wall clock", rounds=3, new_tokens=3, seed=0, sizes=[SIZE])
    made[1]["time"]["throughput"] = section.model_dump(mode="json")
    return rows(RunRecord.model_validate(each).model_dump(mode="json") for each in made)


def test_rates_are_those_of_the_batches() -> None:
    assert SIZE.reading_ratio.value == pytest.approx(2, rel=0.05)
    assert SIZE.writing == pytest.approx(16 / 0.4, rel=0.05)
    assert SIZE.writing_ratio.value == SIZE.reading_ratio.value


def test_they_are_a_table_of_their_own(measured: list[Row]) -> None:
    assert not any("throughput" in column.key for column in columns(row.record for row in measured))
    assert frame(measured[:1]).empty
    (line,) = frame(measured).to_dict("records")
    assert (line["regime"], line["batch_size"], line["layers_run"]) == ("batched", 8, 0.5)
    assert line["reading_tokens_per_s"] == pytest.approx(SIZE.reading)
    assert line["writing_ratio_low"] == pytest.approx(SIZE.writing_ratio.low)
    (line,) = printed(measured)
    assert line["batch size"] == "8"
    assert line["writing over dense's"].startswith("2.00x") or line["writing over dense's"].startswith("2.00")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"reading": 1e5}, "reading at 100000.0 tokens a second is stated"),
        ({"writing": None}, "writing at None tokens a second is stated"),
        ({"reading_ratio": {"value": 3.0, "low": 2.9, "high": 3.1}}, "reading at"),
        ({"run": times(1e-9).model_dump()}, "batches in no time"),
        ({"prompt_tokens": [0] * BATCHES}, "batches in no time, or of no tokens"),
        ({"layers_run": 0.1}, "0.10 of the layers are said to have run"),
        ({"texts": 5}, "a doubt is left out: 5 different texts fill 48 rows"),
        (unsteady(), "a doubt is left out: unsteady"),
    ],
)
def test_a_rate_that_its_batches_do_not_give_is_not_published(
    measured: list[Row], change: dict[str, Any], said: str
) -> None:
    record = copy.deepcopy(dict(measured[1].record))
    record["time"]["throughput"]["sizes"][0] |= change
    sentences = list(rule(type("Case", (), {"record": record})()))
    assert [said in sentence for sentence in sentences] == ([True] if said else [])


def test_no_machine_writes_faster_than_it_reads_the_weights(measured: list[Row]) -> None:
    record = copy.deepcopy(dict(measured[1].record))
    record["memory"]["weights"], record["trace"]["mean_depth_decode"] = 10**14, 0.9
    (sentence,) = rule(type("Case", (), {"record": record})())
    assert "for a token of every row: reading 100,000,000,000,000 bytes takes longer" in sentence


def test_no_machine_reads_faster_than_its_arithmetic(measured: list[Row]) -> None:
    record = copy.deepcopy(dict(measured[1].record))
    fast = times(2e-5).model_copy(update={"written": [10**13] * BATCHES})
    size = rated(SIZE.model_copy(update={"run": fast, "prompt_tokens": [10**13] * BATCHES}))
    record["time"]["throughput"]["sizes"] = [size.model_dump(mode="json")]
    (sentence,) = rule(type("Case", (), {"record": record})())
    assert "more tokens a second than any such machine" in sentence
