"""Throughput at batch sizes: a regime of its own, measured size by size, that changes no run."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.measure import batched
from harness.measure.batched import Batch, is_full
from harness.results.rates import rate
from harness.results.record import RunRecord
from harness.results.stats.ratio import paired_ratio
from harness.results.store import Store
from harness.results.throughput import BATCHES
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.conftest import Harness
from tests.silent import Silent

HALF = "random-skip:executed=0.5,first=1,last=0"
PLAN = CostPlan(measure={"flops", "throughput"}, prompts=2, rounds=2, new_tokens=3, batch_sizes=(1, 3))
TASKS = ("tiny_answer", "tiny_choice")


@pytest.fixture(scope="module")
def job(tiny_job: Callable[..., Job]) -> Job:
    return tiny_job(methods=(HALF,), tasks=TASKS, limit=8, costs=CostPlan(measure={"flops"}))


@pytest.fixture(scope="module")
def one(job: Job) -> Job:
    return job.model_copy(update={"tasks": job.tasks[:1]})


@pytest.fixture(scope="module")
def scored(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    Session(job, Store(folder), Silent()).execute()
    return folder


@pytest.fixture
def store(scored: Path, tmp_path: Path) -> Store:
    return Store(Path(shutil.copytree(scored, tmp_path / "runs")))


def measured(job: Job, store: Store, plan: CostPlan = PLAN) -> tuple[dict[tuple[str, str], RunRecord], Silent]:
    progress = Silent()
    records = Session(job.model_copy(update={"costs": plan}), store, progress).execute()
    return {(record.method.name, record.evaluation.task): record for record in records}, progress


def test_batches_are_measured_in_turn_and_beside_nothing_else(job: Job, store: Store) -> None:
    before = {record.id: record for record in Session(job, store, Silent()).execute()}
    records, progress = measured(job, store)
    assert {record.id for record in records.values()} == before.keys()
    assert [title for title in progress.titles if "throughput" in title] == [
        f"throughput, batch size {size} · {task}" for task in TASKS for size in (1, 3)
    ]
    assert progress.expected == progress.advanced
    for (method, task), record in records.items():
        section = record.time.throughput
        assert section.regime == "batched"
        assert [each.batch_size for each in section.sizes] == [1, 3]
        assert section.missing == {}
        assert record.measured == ["throughput"]
        assert record.time.latency is None
        assert "--measure flops,throughput" in record.command
        assert "--throughput 1,3" in record.command
        shared = (
            f"{section.sizes[1].texts} different texts fill 18 rows of 6 batches: the interval is of these texts alone"
        )
        assert (shared in section.sizes[1].doubts) == (section.sizes[1].texts < 18)
        assert not any("different texts" in doubt for doubt in section.sizes[0].doubts)
        for each in section.sizes:
            assert len(each.prompt_tokens) == len(each.run.reading_s) == BATCHES
            assert each.reading == pytest.approx(rate(each.prompt_tokens, each.run.reading_s))
            assert (each.writing is None) == (task == "tiny_choice")
            assert (each.dense is None) == (method == "dense")
            if each.writing:
                assert each.run.written == [each.batch_size * 2] * BATCHES  # of 3 tokens, the first ends the reading
                assert each.writing == pytest.approx(rate(each.run.written, each.run.writing_s))
            if each.dense:
                # tokens a second over dense's: dense's time over the run's
                expected = paired_ratio(*(np.array(times.reading_s) for times in (each.run, each.dense)))
                assert each.reading_ratio.value == pytest.approx(expected.value)
                assert each.reading_ratio.low == pytest.approx(expected.low)
        if method != "dense":
            kept = before[record.id]
            assert record.baseline == kept.baseline
            assert record.scores == kept.scores


def test_rows_that_skip_a_layer_are_not_run_in_a_batch(job: Job, store: Store) -> None:
    """Gathered: of a batch whose rows take paths of their own, each layer runs the rows that chose it."""
    records, _ = measured(job, store, PLAN.model_copy(update={"batch_sizes": (8,)}))
    for task in TASKS:
        dense, half = (records[name, task] for name in ("dense", "random-skip"))
        assert dense.time.throughput.sizes[0].layers_run == 1
        assert half.time.throughput.sizes[0].layers_run == pytest.approx(0.5)
        assert half.method.savings == "real"


def test_the_same_command_again_does_nothing_and_another_size_is_measured_alone(one: Job, store: Store) -> None:
    first, _ = measured(one, store)
    again, progress = measured(one, store)
    assert again == first
    assert progress.titles == []
    more, progress = measured(one, store, PLAN.model_copy(update={"batch_sizes": (2, 3)}))
    titles = [title for title in progress.titles if "throughput" in title]
    assert titles == [f"throughput, batch size 2 · {TASKS[0]}"]
    for key, record in more.items():
        first_size, two, three = record.time.throughput.sizes
        assert [first_size, three] == first[key].time.throughput.sizes
        assert two.batch_size == 2
        assert "--throughput 1,2,3" in record.command
    other, _ = measured(one, store, PLAN.model_copy(update={"rounds": 3}))
    assert len(other["dense", TASKS[0]].time.throughput.sizes[0].run.reading_s[0]) == 3


def test_other_costs_keep_it_and_it_keeps_them(one: Job, store: Store) -> None:
    rated, _ = measured(one, store)
    latency = CostPlan(measure={"flops", "latency"}, prompts=2, rounds=2, warmup=0, new_tokens=3)
    both, _ = measured(one, store, latency)
    for key, record in both.items():
        assert record.time.latency.regime == "one request"
        assert record.time.throughput == rated[key].time.throughput
        assert record.measured == ["latency", "throughput"]
        assert "--throughput 1,3" in record.command


@contextmanager
def spied(monkeypatch: pytest.MonkeyPatch, what: Callable[[Any, Batch], None]) -> Iterator[None]:
    serve = batched._serve

    def spy(model: Any, batch: Batch) -> Any:
        what(model, batch)
        return serve(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(batched, "_serve", spy)
        yield


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("no room"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("boom"), False),
    ],
)
def test_memory_that_is_full_is_known(error: Exception, full: bool) -> None:
    assert is_full(error) is full


def test_a_batch_that_does_not_fit_is_a_sentence(one: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any, batch: Batch) -> None:
        if len(batch.requests) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with spied(monkeypatch, full):
        records, progress = measured(one, store)
    for (method, _), record in records.items():
        section = record.time.throughput
        assert [each.batch_size for each in section.sizes] == [1]
        assert list(section.missing) == ["3"]
        assert section.missing["3"].startswith(f"{record.method.label}: a batch of 3 rows of ")
        assert section.missing["3"].endswith(": out of memory")
        assert method in ("dense", "random-skip")
    assert any("a batch of 3 rows" in text for text in progress.said)
    again, progress = measured(one, store)
    assert again == records


def test_where_dense_alone_does_not_fit_the_method_has_its_rate(
    one: Job, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Any, batch: Batch) -> None:
        if len(batch.requests) > 2 and _is_dense(model):
            raise MemoryError

    with spied(monkeypatch, full):
        records, _ = measured(one, store)
    dense, half = (records[name, TASKS[0]].time.throughput for name in ("dense", "random-skip"))
    assert "3" in dense.missing
    last = half.sizes[-1]
    assert last.batch_size == 3
    assert last.dense is None
    assert last.reading_ratio is None
    assert last.reading > 0
    assert last.no_dense == dense.missing["3"]


def _is_dense(model: Any) -> bool:
    """Whether no engine put another forward in the layers' place."""
    return "forward" not in vars(model.anatomy.blocks[0].module)


def test_logits_that_no_memory_holds_are_not_tried(one: Job, store: Store) -> None:
    records, _ = measured(one, store, PLAN.model_copy(update={"batch_sizes": (10**12, 2)}))
    for record in records.values():
        assert [each.batch_size for each in record.time.throughput.sizes] == [2]
        assert "GB are free" in record.time.throughput.missing[str(10**12)]


def test_whatever_ends_it_ends_one_size(one: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: Any, batch: Batch) -> None:
        if len(batch.requests) > 2:
            raise KeyboardInterrupt

    with spied(monkeypatch, killed), pytest.raises(KeyboardInterrupt):
        measured(one, store)
    kept = {
        record.method.name: record.time.throughput.sizes
        for record in (store.find(path.name).record() for path in store.root.iterdir() if "answer" in path.name)
    }
    records, progress = measured(one, store)
    for name, sizes in kept.items():
        assert [each.batch_size for each in sizes] == [1]
        assert records[name, "tiny_answer"].time.throughput.sizes[:1] == sizes
    assert f"throughput, batch size 1 · {TASKS[0]}" not in progress.titles
    assert f"throughput, batch size 3 · {TASKS[0]}" in progress.titles


def test_a_method_that_raises_has_a_reason_and_the_others_their_rates(
    one: Job, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any, batch: Batch) -> None:
        if not _is_dense(model) and len(batch.requests) > 2:
            raise ValueError("boom")

    with spied(monkeypatch, broken):
        records, _ = measured(one, store)
    dense, half = (records[name, TASKS[0]].time.throughput for name in ("dense", "random-skip"))
    assert [each.batch_size for each in dense.sizes] == [1, 3]
    assert [each.batch_size for each in half.sizes] == [1]
    reason = records["random-skip", TASKS[0]].missing["time.throughput.sizes"]
    assert reason.startswith("could not be measured: throughput, batch size 3 · tiny_answer of random-skip")
    assert reason.endswith("boom")
    again, _ = measured(one, store)
    assert [each.batch_size for each in again["random-skip", TASKS[0]].time.throughput.sizes] == [1, 3]
    assert "time.throughput.sizes" not in again["random-skip", TASKS[0]].missing


def test_one_row_at_a_time_for_a_method_that_cannot_do_more(
    one: Job, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.methods.routing.random_skip import RandomSkip

    monkeypatch.setattr(RandomSkip, "batchable", False)
    section = measured(one, store)[0]["random-skip", "tiny_answer"].time.throughput
    assert [each.batch_size for each in section.sizes] == [1]
    assert section.missing == {"3": f"{HALF}: rows of a batch influence each other, so it is served one row at a time"}


def test_texts_whose_context_is_read_first_have_no_batches(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    job = tiny_job(methods=("dense",), tasks=("tiny_choice",), limit=4, score_mode="context-first", costs=PLAN)
    (record,) = Session(job, Store(tmp_path), Silent()).execute()
    assert "context first" in record.missing["time.throughput"]
    assert record.measured == ["throughput"]
    progress = Silent()
    assert Session(job, Store(tmp_path), progress).execute() == [record]
    assert progress.titles == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("0", "--throughput 0: expected batch sizes, whole numbers from 1 such as 1,8,64"),
        ("1,x", "--throughput x: expected batch sizes, whole numbers from 1 such as 1,8,64"),
        ("1.5", "--throughput 1.5: expected batch sizes, whole numbers from 1 such as 1,8,64"),
        ("9" * 5000, f"--throughput {'9' * 30}: expected batch sizes, whole numbers from 1 such as 1,8,64"),
        ("-8", "--throughput -8: expected batch sizes, whole numbers from 1 such as 1,8,64"),
        ("", "--throughput: expected batch sizes, whole numbers from 1 such as 1,8,64, got none"),
        ("8,1,08", "--throughput: batch size 8 is given more than once: give each once"),
    ],
)
def test_batch_sizes_are_whole_numbers_each_given_once(
    harness: Harness, tiny: list[object], given: str, sentence: str
) -> None:
    assert harness("run", *tiny, "-t", "tiny_choice", f"--throughput={given}", "--dry_run").sentence == sentence


def test_a_program_gives_each_size_once_too() -> None:
    with pytest.raises(ValueError, match="batch size 2 is given 2 times"):
        CostPlan(batch_sizes=(2, 1, 2))


def test_the_summary_shows_it_apart(harness: Harness, tiny: list[object]) -> None:
    arguments = ["-t", "tiny_answer", "-L", "4", "-m", HALF, "--throughput", "2,1", "--repeats", "2"]
    done = harness("run", *tiny, *arguments, "--cost_tokens", "2")
    assert done.code == 0, done.err
    table = done.out[done.out.index("tokens a second") :]
    assert "layers run" in done.out
    assert "measured" in table or "measured" in done.out
    assert done.out.index("cost, dense = 1.00x") < done.out.index("tokens a second")
    record = harness("run", *tiny, *arguments, "--cost_tokens", "2", "--json").json()[1]
    assert [each["batch_size"] for each in record["time"]["throughput"]["sizes"]] == [1, 2]
    assert not any("throughput" in name for name in record["baseline"]["ratios"])
