"""Whole jobs on the card: scores are lm-eval's and the CPU's, FLOPs are the formulas', costs are the card's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.errors import HarnessError
from harness.measure.energy import Windows
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.conftest import Harness
from tests.evaluate.test_equality import harness_results, lm_eval_results
from tests.silent import Silent

TASKS = ("tiny_choice", "tiny_letters", "tiny_last", "tiny_answer", "tiny_text")
METHODS = ("layer-drop:count=2", "calm:confidence=saturation,threshold=0.8,every=1", "mue:quantile=0.5,start=0.2")


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.usefixtures("no_survey")
def test_dense_equals_lm_eval(
    task: str, batch_size: int, device: str, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    job = {"tasks": (task,), "pretrained": str(tiny_folder), "include_path": str(tiny_tasks)}
    job |= {"batch_size": batch_size, "device": device, "model_args": {"dtype": "float32"}}
    scores, lines = harness_results(job, tmp_path)
    expected, samples = lm_eval_results(job)
    assert scores == expected
    for sample in samples:
        assert lines[sample["doc_id"]]["responses"] == json.loads(json.dumps(sample["resps"]))


@pytest.fixture
def run(tiny_tasks: Path, tmp_path: Path) -> Any:
    """The records of a job, of dense and the methods that are named."""

    def run(model: Path, device: str, task: str = "tiny_choice", *methods: str, **job: Any) -> list[RunRecord]:
        settings = {"pretrained": str(model), "include_path": str(tiny_tasks), "limit": 8, **job}
        session = Session(
            Job(methods=methods, tasks=(task,), device=device, **settings), Store(tmp_path / device[:4]), Silent()
        )
        return session.execute()

    return run


def test_the_card_scores_and_counts_what_the_cpu_does(run: Any, card: str, tiny_folder: Path) -> None:
    for task in ("tiny_choice", "tiny_answer"):
        pairs = zip(*(run(tiny_folder, where, task, "layer-drop:count=2") for where in (card, "cpu")), strict=True)
        for on_card, on_cpu in pairs:
            assert [score.value for score in on_card.scores] == pytest.approx([score.value for score in on_cpu.scores])
            assert on_card.flops.total == on_cpu.flops.total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["tiny_choice", "tiny_answer"])
def test_the_audit_agrees(run: Any, task: str, dtype: str, device: str, tiny_folder: Path) -> None:
    for record in run(tiny_folder, device, task, *METHODS, batch_size=4, model_args={"dtype": dtype}):
        assert record.flops.audit_ratio == pytest.approx(1.0, abs=2e-4), record.method.label


def test_energy_is_read_from_the_cards_counter(run: Any, card: str, middle_folder: Path) -> None:
    windows = Windows(window_s=1.5, idle_s=1, cooldown_s=0.2, rounds=1)
    costs = CostPlan(measure={"flops", "energy"}, prompts=2, rounds=2, warmup=1, windows=windows)
    for record in run(middle_folder, card, "tiny_choice", "layer-drop:layers=0/1/2/3", costs=costs, limit=4):
        assert record.energy is not None, record.missing
        gpu = record.energy.parts["gpu"]
        assert (gpu.source, gpu.provenance) == ("nvml_counter", "measured_counter")
        assert gpu.joules


def test_memory_falls_with_the_layers_that_are_dropped(run: Any, card: str, middle_folder: Path) -> None:
    costs = CostPlan(measure={"flops", "memory"}, prompts=2)
    dense, dropped = run(middle_folder, card, "tiny_choice", "layer-drop:layers=0/1/2/3", costs=costs, limit=4)
    gone = dense.memory.weights - dropped.memory.weights
    assert gone > 0.4 * dense.memory.weights
    assert dense.memory.cuda_allocated - dropped.memory.cuda_allocated > 0.9 * gone


@pytest.fixture
def crowded(card: str) -> Iterator[Any]:
    """Leave the process so little of the card's memory beyond what it has."""

    place = torch.device(card).index or 0
    total = torch.cuda.get_device_properties(place).total_memory

    def leave(megabytes: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved(place) + megabytes * 2**20) / total, place
        )

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0, place)
    torch.cuda.empty_cache()


def test_out_of_memory_is_a_sentence(
    crowded: Any, card: str, middle_folder: Path, tiny_tasks: Path, tmp_path: Path
) -> None:
    job = Job(
        methods=("dense",),
        tasks=("tiny_choice",),
        pretrained=str(middle_folder),
        include_path=str(tiny_tasks),
        device=card,
        batch_size=64,
    )
    session = Session(job, Store(tmp_path), Silent())
    assert session.lm.decoder.device.type == "cuda"
    crowded(8)
    with pytest.raises(HarnessError, match="out of memory at batch size 64"):
        session.execute()


def test_steps_without_launches(run: Any, card: str, tiny_folder: Path) -> None:
    """They write what the model writes without them, in a regime of their own."""
    costs = CostPlan(measure={"flops", "latency", "graph"}, prompts=2, rounds=2, warmup=1, new_tokens=6)
    for record in run(tiny_folder, card, "tiny_answer", "layer-drop:layers=1", "int8-dynamic", costs=costs):
        assert record.time.graph is not None, record.missing
        assert record.time.graph.differences == 0 < record.time.graph.tokens, record.method.label
        assert record.time.graph.run.latency != record.time.latency.raw


def test_throughput_at_batch_sizes(run: Any, device: str, tiny_folder: Path) -> None:
    costs = CostPlan(measure={"flops", "throughput"}, batch_sizes=(1, 4), rounds=2, new_tokens=4)
    for record in run(tiny_folder, device, "tiny_answer", "layer-drop:layers=1", costs=costs):
        assert [size.batch_size for size in record.time.throughput.sizes] == [1, 4], record.time.throughput.missing
        assert all(size.reading > 0 and size.writing > 0 for size in record.time.throughput.sizes)


def test_the_doctor_knows_the_card(harness: Harness, card: str) -> None:
    done = harness("doctor")
    assert done.code == 0, done.err
    assert torch.cuda.get_device_name(card) in " ".join(done.out.split())


def test_costs_on_a_second_card(run: Any, card: str, middle_folder: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("it takes two GPUs")
    costs = CostPlan(measure={"flops", "latency", "memory"}, prompts=2, rounds=2, warmup=1)
    (record,) = run(middle_folder, "cuda:1", "tiny_choice", costs=costs, limit=4)
    assert record.memory.cuda_allocated > record.memory.weights
