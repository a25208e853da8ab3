"""A job with its costs measured: what the records say, and what comparing them says."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.core.errors import HarnessError, UnlikeRunsError
from harness.measure.energy import Windows
from harness.results import ratios
from harness.results.baseline import COSTS
from harness.results.compare import compare
from harness.results.cost_lines import ROLES, requests_of
from harness.results.costs import Latency
from harness.results.documents import answer, statistic_of, values_of
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.measured import spread_sample
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.conftest import Harness
from tests.silent import Silent

if TYPE_CHECKING:
    from harness.results.scores import PairedScore

TASKS = ("tiny_choice", "tiny_answer", "tiny_text", "tiny_last")
HALF = "layer-drop:layers=0/2"
PLAN = CostPlan(
    measure={"flops", "ideal", "latency", "memory"},
    prompts=3,
    rounds=3,
    warmup=1,
    new_tokens=4,
    accelerators=("l4",),
    budget_s=2,
)


class Measured:
    def __init__(self, folder: Path, model: Path, tasks: Path, device: str) -> None:
        self.store = Store(folder)
        self.job = Job(
            methods=(HALF,), tasks=TASKS, pretrained=str(model), include_path=str(tasks), device=device, costs=PLAN
        )
        self.reporter = Silent()
        self.session = Session(self.job, self.store, self.reporter)
        self.records = {(r.method.name, r.evaluation.task): r for r in self.session.execute()}

    def lines(self, record: RunRecord) -> list[dict]:
        return list(self.store.find(record.id).samples())


@pytest.fixture(scope="module")
def measured(tiny_folder: Path, tiny_tasks: Path, tmp_path_factory: pytest.TempPathFactory, device: str) -> Measured:
    return Measured(tmp_path_factory.mktemp("measured"), tiny_folder, tiny_tasks, device)


@pytest.mark.parametrize("task", TASKS)
def test_every_cost_is_there_or_its_reason(measured: Measured, task: str) -> None:
    for method in ("dense", "layer-drop"):
        record = measured.records[method, task]
        assert record.time.latency.raw
        assert len(record.time.latency.raw) == record.time.settings.prompts == 3
        assert record.time.latency.end_to_end.n == 9
        assert "few samples" in " ".join(record.time.latency.doubts)
        assert record.time.ideal.ref_s == pytest.approx(record.time.ideal.own_s)
        assert sum(record.time.ideal.parts.values()) == pytest.approx(record.time.ideal.ref_s)
        assert record.time.ideal.overhead_ratio > 0
        assert record.time.roofline["l4"].seconds > 0
        assert record.energy is None
        assert record.missing["energy"]
        assert "time" not in record.missing
        assert record.memory.peak > record.memory.weights
        assert record.memory.disk > 0
        generates = task == "tiny_answer"
        assert (record.time.latency.tpot is not None) == generates
        assert record.time.latency.kind == ("generate" if generates else "score")


@pytest.mark.parametrize("task", TASKS)
def test_half_of_the_layers_takes_less(measured: Measured, task: str) -> None:
    record = measured.records["layer-drop", task]
    ratios = record.baseline.ratios
    assert ratios["flops"].value < 0.75
    # the costs were fitted on a busy machine and tiny layers, so the ratio alone is meaningful here
    assert ratios["ideal_ref"].value < 1
    assert ratios["roofline:l4"].value < 0.9
    assert ratios["latency"].value > 0
    assert (ratios["latency"].low, ratios["latency"].reason) == (None, "3 prompts: an interval needs at least 6")
    assert set(record.baseline.noise) >= {"latency"}
    dense, half = (measured.records[name, task] for name in ("dense", "layer-drop"))
    assert half.time.ideal.ref_s / dense.time.ideal.ref_s == pytest.approx(ratios["ideal_ref"].value)


def test_idealized_seconds_of_every_document_stand_in_a_file_of_their_own(measured: Measured) -> None:
    record = measured.records["layer-drop", "tiny_choice"]
    seconds = [line["ideal_s"] for line in measured.store.find(record.id).costs().values()]
    assert len(seconds) == 24
    dense = [line["dense_ideal_s"] for line in measured.store.find(record.id).costs().values()]
    assert sum(dense) / 24 == pytest.approx(record.time.ideal.dense_s)
    assert record.time.ideal.dense_s == pytest.approx(measured.records["dense", "tiny_choice"].time.ideal.ref_s)
    assert sum(seconds) / 24 == pytest.approx(record.time.ideal.ref_s)
    assert not any("ideal_s" in line for line in measured.lines(record))


@pytest.mark.parametrize("task", TASKS)
def test_the_measured_requests_stand_beside_dense_s(measured: Measured, task: str) -> None:
    dense, half = (measured.records[name, task] for name in ("dense", "layer-drop"))
    requests = requests_of(measured.store.find(half.id).costs().values())
    assert len(requests) == 3
    assert [request["run"]["latency"] for request in requests] == half.time.latency.raw
    for request in requests:
        assert request["ideal_s"] > 0
        assert request["segments"]
        kinds = {"latency", "ttft", "tpot"} if task == "tiny_answer" else {"latency"}
        for role in ROLES:
            assert request[role].keys() == kinds
    assert all("dense" not in line for line in requests_of(measured.store.find(dense.id).costs().values()))
    # the ratios are those of the stored times
    assert ratios.measured(requests)["latency"] == half.baseline.ratios["latency"]
    assert ratios.measured(requests, "dense_repeat") == half.baseline.noise


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["dense", "layer-drop"])
def test_idealized_and_measured_times_are_of_the_same_requests(measured: Measured, task: str, method: str) -> None:
    """By the same statistic: the median over requests, of each one's median over rounds."""
    record = measured.records[method, task]
    requests = requests_of(measured.store.find(record.id).costs().values())
    assert record.time.ideal.requests_s == pytest.approx(np.median([request["ideal_s"] for request in requests]))
    typical = np.median([np.median(request["run"]["latency"]) for request in requests])
    assert record.time.latency.typical_s == pytest.approx(typical)
    assert record.time.latency.clock == "wall clock"
    observed = [np.median(request["run"]["latency"]) / request["ideal_s"] for request in requests]
    assert record.time.ideal.overhead_ratio == pytest.approx(np.median(observed))


@pytest.mark.parametrize("task", TASKS)
def test_the_ratios_of_both_are_of_the_same_requests(measured: Measured, task: str) -> None:
    dense, half = (measured.records[name, task] for name in ("dense", "layer-drop"))
    seconds = [
        np.array([request["ideal_s"] for request in requests_of(measured.store.find(record.id).costs().values())])
        for record in (dense, half)
    ]
    ratio = half.baseline.ratios["ideal_requests"]
    assert ratio.value == pytest.approx(np.exp(np.log(seconds[1] / seconds[0]).mean()))


def test_a_run_without_the_number_has_it_from_its_measurements(measured: Measured) -> None:
    plain = measured.records["dense", "tiny_choice"].time.latency.model_dump()
    older = {name: value for name, value in plain.items() if name not in ("typical_s", "clock")}
    latency = Latency.model_validate(older | {"raw": [[3.0, 1.0, 2.0], [9.0, 8.0, 7.0], [5.0, 5.0, 50.0]]})
    assert latency.typical_s == 5.0
    assert latency.clock is None


def test_documents_are_written_once(measured: Measured) -> None:
    """By the quality pass; the cost pass has files of its own."""
    for record in measured.records.values():
        folder = measured.store.find(record.id).path
        times = [(folder / name).stat().st_mtime_ns for name in ("samples.jsonl", "manifest.json", "costs.jsonl")]
        assert times == sorted(times)


def test_one_profile_for_all_whose_modules_are_alike(measured: Measured) -> None:
    """Four tasks, dense and a method that takes layers out: nothing is measured twice."""
    assert len([title for title in measured.reporter.titles if title.startswith("cost profile")]) == 1
    ideals = [record.time.ideal for record in measured.records.values()]
    assert len({ideal.profile for ideal in ideals}) == 1
    assert all(ideal.own_profile == ideal.profile for ideal in ideals)
    (said,) = [text for text in measured.reporter.said if text.startswith("cost profile")]
    assert re.search(r"(good|fair|poor), off by \d+% fitted and \d+% held out; \d+ s, ", said)


def test_time_left_is_said_before_it_is_spent(measured: Measured) -> None:
    announced = [text for text in measured.reporter.said if text.startswith("costs: about")]
    assert len(announced) == len(TASKS)
    assert re.fullmatch(r"costs: about \d+ s for 2 runs, 2 s of it for cost profiles", announced[0])
    assert re.fullmatch(r"costs: about \d+ s for 2 runs", announced[1])
    assert measured.reporter.expected == measured.reporter.advanced


def test_measuring_again_is_not_needed(measured: Measured) -> None:
    said = Silent()
    again = Session(measured.job, measured.store, said).execute()
    assert {record.id: record for record in again} == {record.id: record for record in measured.records.values()}


def test_the_costs_are_all_where_the_list_says(measured: Measured) -> None:
    record = measured.records["layer-drop", "tiny_answer"].model_dump()
    for cost in COSTS:
        for path in filter(None, (cost.path, cost.same_tokens)):
            value = record
            for name in path.split("."):
                value = value[name] if value is not None else None
            assert value is not None or cost.name.startswith("energy"), cost


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_compared_document_by_document(measured: Measured, task: str) -> None:
    dense, half = (measured.records[name, task] for name in ("dense", "layer-drop"))
    found = compare(measured.store.find(dense.id), measured.store.find(half.id))
    assert found.scores == half.scores
    assert found.unlike == []
    base = {(score.metric, score.filter): score.value for score in dense.scores}
    for score in half.scores:
        change: PairedScore = score.vs_baseline
        assert change.difference == pytest.approx(score.value - base[score.metric, score.filter])
        assert change.low <= change.difference <= change.high
        assert change.p_adjusted == change.p
        assert change.n == 24
    same = compare(measured.store.find(dense.id), measured.store.find(dense.id))
    assert all(score.vs_baseline.difference == 0 for score in same.scores)
    assert same.baseline.answers_changed in (0.0, None)
    assert same.baseline.ratios["flops"].value == pytest.approx(1)


def test_a_score_of_some_documents_is_remade_from_those(measured: Measured) -> None:
    record = measured.records["dense", "tiny_choice"]
    lines = measured.lines(record)
    level = [line | {"scores": {"acc_level_1,none": line["scores"]["acc,none"]}} for line in lines[:9]]
    score = record.scores[0].model_copy(update={"metric": "acc_level_1", "value": None})
    found = values_of(score, [*level, *lines[9:]])
    assert found.shape == (9, 1)
    assert statistic_of(score.model_copy(update={"value": found.mean()}), found) is not None


def test_a_score_is_remade_from_its_documents(measured: Measured) -> None:
    kinds = {("tiny_choice", "acc"): "mean", ("tiny_text", "bits_per_byte"): "bits_per_unit"}
    kinds |= {("tiny_text", "word_perplexity"): "weighted_perplexity", ("tiny_last", "perplexity"): "perplexity"}
    for (task, metric), statistic in kinds.items():
        record = measured.records["dense", task]
        score = next(one for one in record.scores if one.metric == metric)
        values = values_of(score, measured.lines(record))
        assert statistic_of(score, values).__name__ == statistic
        # a score that its documents do not make has no interval
        assert statistic_of(score.model_copy(update={"value": 1.01 * score.value}), values) is None


def test_runs_that_answer_other_questions_are_refused(measured: Measured, tmp_path: Path) -> None:
    runs = [measured.store.find(measured.records["dense", task].id) for task in ("tiny_choice", "tiny_text")]
    with pytest.raises(UnlikeRunsError, match=r"task: 'tiny_choice' and 'tiny_text'"):
        compare(*runs)


def test_answers() -> None:
    assert answer({"filtered": {"none": [[-3.0, False], [-1.0, False]]}}) == 1
    assert answer({"filtered": {"none": [-1.0, True]}}) is True
    assert answer({"filtered": {"none": [[-1.0, True]]}}) is True
    assert answer({"filtered": {"none": "text"}}) == "text"
    assert answer({"filtered": {"none": ["text"]}}) == ["text"]
    assert answer({"filtered": {"none": -12.0}}) is None
    assert answer({}) is None


def test_a_sample_is_spread_over_the_lengths() -> None:
    lines = [{"prompt_tokens": (7 * index) % 100, "task": "t", "doc_id": index} for index in range(100)]
    chosen = [line["prompt_tokens"] for line in spread_sample(lines, 10, seed=0)]
    assert [length // 10 for length in chosen] == list(range(10))
    assert chosen == [line["prompt_tokens"] for line in spread_sample(lines[::-1], 10, seed=0)]
    assert len(spread_sample(lines[:3], 10, seed=0)) == 3


def test_energy_is_estimated_and_says_so(measured: Measured) -> None:
    windows = Windows(window_s=0.3, idle_s=0.1, cooldown_s=0)
    plan = PLAN.model_copy(update={"measure": frozenset({"energy"}), "windows": windows})
    job = measured.job.model_copy(update={"tasks": measured.job.tasks[:1], "costs": plan})
    dense, half = Session(job, measured.store, Silent()).execute()
    for record in (dense, half):
        assert record.energy.parts["ram"].provenance == "estimated_constant"
        assert record.time is not None  # what was measured before stays
        if record.energy.label.startswith("estimated"):
            assert record.energy.measured_j is None
            assert "not a measurement" in record.missing["energy.measured_j"]
            assert record.energy.estimated_j > 0
            assert "shorter than 10 s" in " ".join(record.energy.doubts)
    assert bool({"energy", "energy_estimated"} & set(half.baseline.ratios)) != half.energy.is_clock
    assert "latency" in half.baseline.ratios


def test_processes_of_a_launch_leave_the_costs_to_one(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("harness.run.costs.measure_costs", lambda *_: pytest.fail("others would be waited for"))
    said = Silent()
    assert len(Session(measured.job, measured.store, said).execute()) == 2 * len(TASKS)
    assert "without accelerate launch" in said.said[-1]


def test_out_of_memory_keeps_the_scores(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("harness.run.costs.measure_costs", full)
    with pytest.raises(HarnessError, match=r"out of memory\. The scores are kept"):
        Session(measured.job, measured.store, Silent()).execute()


@pytest.mark.slow
def test_measured_in_a_process_of_its_own(harness: Harness, tiny_folder: Path, tiny_tasks: Path, device: str) -> None:
    arguments = ["--pretrained", tiny_folder, "--include_path", tiny_tasks, "--device", device, "-t", "tiny_choice"]
    plan = ["--measure", "latency", "--cost_samples", 2, "--repeats", 2, "--warmup", 1, "--isolate", "-L", 4]
    (record,) = harness("run", *arguments, *plan, "--json").json()
    assert record["time"]["settings"]["isolated"] is True
    assert math.isfinite(record["time"]["latency"]["end_to_end"]["median"])
