"""Times by captured steps in reports: a table of their own, and what a published record may state of them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.leaderboard import captured, quantities
from harness.leaderboard.results import load
from harness.leaderboard.rules import judge
from harness.leaderboard.site import build
from harness.reports.columns import columns
from harness.reports.graph import frame, printed
from harness.reports.report import write
from harness.reports.rows import Row, rows
from harness.results.graph import Graph, GraphTimes
from harness.results.graph_ratios import compared
from harness.results.record import RunRecord
from harness.results.store import RunFolder
from tests.leaderboard.generated import Made, groups, runs

PROMPTS, ROUNDS, AFTER = 8, 3, 4
Json = dict[str, Any]


def times(seconds: float) -> GraphTimes:
    """Of requests that take a fifth of their time to the first of five tokens."""
    noise = [[1 + 0.01 * ((request + turn) % 3) for turn in range(ROUNDS)] for request in range(PROMPTS)]
    first, each = ([[part * seconds * factor for factor in rounds] for rounds in noise] for part in (0.2, 0.2))
    latency = [[a + AFTER * b for a, b in zip(*pair, strict=True)] for pair in zip(first, each, strict=True)]
    return GraphTimes(latency=latency, ttft=first, tpot=each)


def section(run: float, dense: float | None = None) -> Graph:
    return compared(
        Graph(
            captured_by="cuda graph",
            dense_by=None if dense is None else "cuda graph",
            reads=True,
            clock="wall clock",
            prompts=PROMPTS,
            rounds=ROUNDS,
            new_tokens=8,
            seed=0,
            prompt_tokens=[20 + request for request in range(PROMPTS)],
            run=times(run),
            dense=None if dense is None else times(dense),
            dense_repeat=None if dense is None else times(1.01 * dense),
            tokens=PROMPTS * (AFTER + 1),
            differences=0,
        )
    )


@pytest.fixture
def made() -> list[Made]:
    """Dense, a method that is twice as fast by captured steps, and one whose steps cannot be captured, on a card."""
    made = [copy.deepcopy(each) for each in list(runs(groups(1, 1, 2)[1]))[:3]]
    for run, graph in zip(made, (section(0.8), section(0.4, 0.8)), strict=False):
        run.record["time"]["graph"] = graph.model_dump(mode="json")
    made[2].record["missing"]["time.graph"] = "what runs is decided anew for every token"
    return made


@pytest.fixture
def measured(made: list[Made]) -> list[Row]:
    return rows(RunRecord.model_validate(each.record).model_dump(mode="json") for each in made)


def test_they_are_a_table_of_their_own(measured: list[Row]) -> None:
    assert not any("graph" in column.key for column in columns(row.record for row in measured))
    assert frame(measured[2:]).empty
    assert printed(measured[2:]) == []
    dense, method = frame(measured).to_dict("records")
    assert (method["regime"], method["captured_by"], method["tokens"]) == ("graph", "cuda graph", 40)
    assert method["latency_s"] == pytest.approx(0.4, rel=0.05)
    assert method["tpot_ratio"] == pytest.approx(0.5)
    assert method["latency_dense_over_dense"] == pytest.approx(1.01)
    assert dense["latency_ratio"] != dense["latency_ratio"]  # none
    _, method, refused = printed(measured)
    assert method["each token over dense's"].startswith("0.50×")
    assert method["tokens that differ"] == "0 of 40"
    assert (refused["captured by"], refused["doubts"]) == ("–", "no times: what runs is decided anew for every token")


def test_a_report_has_them_apart(made: list[Made], tmp_path: Path) -> None:
    written = write([RunFolder(run.write(tmp_path / "runs")) for run in made], tmp_path / "report")
    assert "graph.csv" in [path.name for path in written]
    for name in ("comparison.md", "report.html"):
        assert "Without launch overhead, by captured steps" in (tmp_path / "report" / name).read_text()


def test_an_honest_section_passes(made: list[Made], tmp_path: Path) -> None:
    before = [copy.deepcopy(run) for run in made]
    for run in before:
        run.record["time"].pop("graph", None)
    found = [
        {finding.text for run in of_runs for finding in judge(load(run.write(tmp_path / name)))}
        for name, of_runs in (("before", before), ("after", made))
    ]
    assert found[1] - found[0] == set()


class Case:
    """A record before the rules."""

    def __init__(self, record: Json) -> None:
        self.record = record


def said(record: Json) -> str:
    return "; ".join([*captured.graph(Case(record)), *quantities.problems(record)])  # type: ignore[arg-type]


def of_section(**values: Any) -> Callable[[Json], None]:
    return lambda record: record["time"]["graph"].update(values)


def of_times(change: Callable[[GraphTimes], GraphTimes], *names: str) -> Callable[[Json], None]:
    """Other times, with all that follows from them."""

    def forge(record: Json) -> None:
        graph = Graph.model_validate(record["time"]["graph"])
        changed = {name: change(getattr(graph, name)) for name in names}
        record["time"]["graph"] = compared(graph.model_copy(update=changed)).model_dump(mode="json")

    return forge


def of_requests(times: GraphTimes, count: int) -> GraphTimes:
    return GraphTimes(latency=times.latency[:count], ttft=times.ttft[:count], tpot=times.tpot[:count])


def scored(times: GraphTimes) -> GraphTimes:
    return GraphTimes(latency=times.latency)


def unsteady(times: GraphTimes) -> GraphTimes:
    wild = [
        [[second * (1 + turn) for turn, second in enumerate(rounds)] for rounds in getattr(times, name)]
        for name in ("latency", "ttft", "tpot")
    ]
    return GraphTimes(latency=wild[0], ttft=wild[1], tpot=wild[2])


EVERYBODY = ("run", "dense", "dense_repeat")
FORGED: dict[str, tuple[Callable[[Json], object], str]] = {
    "nothing": (lambda record: None, ""),
    "a typical time": (
        of_section(typical={"latency": 0.1, "ttft": 0.08, "tpot": 0.08}),
        "a typical 'latency' of 0.1 s",
    ),
    "no typical time": (of_section(typical={}), "a typical 'latency' of None s"),
    "a ratio": (
        lambda record: record["time"]["graph"]["ratios"]["tpot"].update(value=0.1, low=0.09, high=0.11),
        "ratios: 0.1 of dense is stated of 'tpot'",
    ),
    "a narrow interval": (
        lambda record: record["time"]["graph"]["ratios"]["latency"].update(low=0.4999999, high=0.5000001),
        "of dense is stated of 'latency'",
    ),
    "a ratio of something else": (
        lambda record: record["time"]["graph"]["ratios"].update(energy={"value": 0.1}),
        "ratios: 0.1 of dense is stated of 'energy', the times give nothing",
    ),
    "quiet noise": (
        lambda record: record["time"]["graph"]["noise"]["latency"].update(value=1.0),
        "noise: 1 of dense is stated of 'latency'",
    ),
    "no noise": (of_section(noise={}), "noise: nothing of dense is stated"),
    "dense once": (of_section(dense_repeat=None, noise={}), "dense's times are there in part"),
    "dense by nothing": (of_section(dense_by=None), "dense's times are there in part"),
    "more requests": (of_section(prompts=80), "80 requests are stated"),
    "more rounds": (of_section(rounds=30), "8 requests and 30 rounds are stated"),
    "fewer requests of dense": (
        of_times(lambda times: of_requests(times, 6), "dense", "dense_repeat"),
        "8 requests and 3 rounds are stated",
    ),
    "times of dense of another kind": (of_times(scored, "dense"), "times of some kinds are there"),
    "no time": (of_times(lambda _: times(1e-6), "run"), "launching one takes longer"),
    "no tokens read": (of_section(prompt_tokens=[0] * PROMPTS), "8 requests are stated"),
    "tokens that did not come": (of_section(new_tokens=4), "latency is not the time of the first token"),
    "a first token of another time": (
        of_times(lambda each: each.model_copy(update={"ttft": times(0.1).ttft}), "run"),
        "latency is not the time of the first token",
    ),
    "more tokens of dense": (
        of_times(
            lambda each: each.model_copy(
                update={"tpot": [[second * AFTER / 7 for second in rounds] for rounds in each.tpot]}
            ),
            "dense",
            "dense_repeat",
        ),
        "latency is not the time of the first token",
    ),
    "more tokens compared": (of_section(tokens=4000), "4000 tokens are said to be compared, and there are 40"),
    "more differences than tokens": (
        of_section(differences=41, doubts=["41 of 40 tokens differ from those that the model writes"]),
        "41 of 40 tokens are said to differ",
    ),
    "silent differences": (of_section(differences=3), "a doubt is left out: 3 of 40 tokens differ"),
    "silent unsteadiness": (of_times(unsteady, "run"), "a doubt is left out: unsteady"),
    "another kind of device": (
        lambda record: record["environment"].update(device="mps"),
        "they need CUDA, and this ran on 'mps'",
    ),
    "guessed tokens": (
        lambda record: record.update(drafts={"passes_per_token": 0.5}),
        "a method that writes guessed tokens has no steps that are alike",
    ),
    "dense beside itself": (lambda record: record["method"].update(family="baseline"), "dense is compared with itself"),
    "dense's times": (of_times(lambda _: times(0.8), "run"), "the times are dense's to the last digit"),
    "times of another regime": (
        lambda record: record["time"]["latency"].update(raw=record["time"]["graph"]["run"]["latency"]),
        "those of single requests to the last digit",
    ),
    "more arithmetic than a card has": (
        lambda record: record["flops"].update(total=10**25),
        "FLOPs take longer on any machine",
    ),
    "weights that cannot be read so fast": (
        lambda record: (record["memory"].update(weights=10**14), record["trace"].update(mean_depth_decode=0.9)),
        "reading 100,000,000,000,000 bytes of weights takes longer",
    ),
    "texts that are read faster than the weights": (
        lambda record: (of_times(scored, *EVERYBODY)(record), record["memory"].update(weights=10**14)),
        "reading 100,000,000,000,000 bytes of weights takes longer",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_the_times_do_not_give_is_not_published(name: str, measured: list[Row]) -> None:
    forge, sentence = FORGED[name]
    record = copy.deepcopy(dict(measured[1].record))
    forge(record)
    assert sentence in said(record)
    assert bool(sentence) == bool(said(record))


@pytest.mark.parametrize(
    ("seconds", "seed", "sentence"),
    [
        (0.8, 0, ""),
        (2.0, 0, ""),
        (80.0, 0, "dense's latency is 80.8 s beside it, 0.808 s in its own run"),
        (80.0, 1, ""),
    ],
)
def test_dense_beside_a_run_is_dense(measured: list[Row], seconds: float, seed: int, sentence: str) -> None:
    """But for other requests."""
    records = [copy.deepcopy(dict(row.record)) for row in measured[:2]]
    forged = section(0.4, seconds).model_copy(update={"seed": seed})
    records[1]["time"]["graph"] = forged.model_dump(mode="json")
    found = list(captured.graph_beside_dense(Case(records[1]), Case(records[0])))  # type: ignore[arg-type]
    assert bool(found) == bool(sentence)
    assert all(sentence.partition("'s ")[0] in text for text in found)


def test_a_page_of_the_board_shows_them_apart(made: list[Made], tmp_path: Path) -> None:
    for run in made:
        run.write(tmp_path / "runs")
    assert build(tmp_path / "runs", tmp_path / "site").runs == len(made)
    pages = [(tmp_path / "site" / "runs" / f"{run.record['id']}.html").read_text() for run in made]
    assert ["Without launch overhead, by captured steps" in page for page in pages] == [True, True, False]
    assert "what runs is decided anew for every token" in pages[2]
