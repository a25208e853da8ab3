"""Small real runs: what they saved, said of them and not of their methods."""

from collections.abc import Callable

import pytest

from harness.reports.notes import notes
from harness.reports.numbers import TERMINAL
from harness.reports.rows import Row, rows
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.silent import Silent

LOOSE = '''
"""Write less, or answer otherwise, by the head alone: no layer is left out."""
from contextlib import contextmanager
from dataclasses import dataclass
from harness import Family, Method

@dataclass(frozen=True, kw_only=True)
class Favour(Method):
    """Makes one character likelier, or none."""
    name = "favour"
    family = Family.PRUNING
    token: str = ""
    @contextmanager
    def attach(self, model, prepared):
        if not self.token:
            yield
            return
        (wanted,) = model.tokenizer(self.token, add_special_tokens=False)["input_ids"]
        def favour(module, inputs, output):
            return output.index_fill(-1, output.new_tensor([wanted]).long(), 1e4)
        handle = model.anatomy.head.register_forward_hook(favour)
        try:
            yield
        finally:
            handle.remove()
'''
DROP, EXIT = "layer-drop:count=1,layers=1", "calm:threshold=0.01,every=1,decay=0.0"
NEVER = "calm:threshold=1.0,every=1"
STACK = f"{DROP}+magnitude"
PLAN = CostPlan(measure={"ideal"}, budget_s=1)

Runs = dict[tuple[str, str], RunRecord]


@pytest.fixture(scope="module")
def runs(tiny_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("saved")
    (folder / "favour.py").write_text(LOOSE)
    loose = f"{folder}/favour.py:Favour:token="
    job = tiny_job(
        methods=(DROP, EXIT, NEVER, STACK, f"{loose}e", f"{loose}a", loose.removesuffix(":token=")),
        tasks=("tiny_choice", "tiny_answer"),
        limit=3,
        costs=PLAN,
    )
    records = Session(job, Store(folder / "runs"), Silent()).execute()
    return {(record.method.label.replace(f"{folder}/", ""), record.evaluation.task): record for record in records}


def row(runs: Runs, method: str, task: str) -> Row:
    """The run of a method on a task."""
    by_id = {each.id: each for each in rows(record.model_dump(mode="json") for record in runs.values())}
    (record,) = [each for (label, on), each in runs.items() if label == method and on == task]
    return by_id[record.id]


@pytest.mark.parametrize(
    ("method", "task", "saved"),
    [
        ("dense", "tiny_choice", "none"),
        ("dense", "tiny_answer", "none"),
        (DROP, "tiny_choice", "real"),
        (DROP, "tiny_answer", "real"),
        (EXIT, "tiny_choice", "none here"),
        (EXIT, "tiny_answer", "bytes alone"),  # the exit checks of so small a model outweigh its layers
        (NEVER, "tiny_choice", "none here"),
        (NEVER, "tiny_answer", "none here"),
        (STACK, "tiny_choice", "simulated"),
        ("favour:token=e", "tiny_choice", "none here"),
        ("favour:token=e", "tiny_answer", "none here"),
    ],
)
def test_real_is_said_of_a_saving_that_the_run_had(runs: Runs, method: str, task: str, saved: str) -> None:
    at = row(runs, method, task)
    assert at.saving == saved
    assert at.record["method"]["savings"] == saved.removesuffix(" here").replace("bytes alone", "real")
    assert at.record["method"]["declared_real"] == (saved in ("real", "none here", "bytes alone"))


def test_masked_exits_are_named(runs: Runs) -> None:
    said = notes(row(runs, EXIT, "tiny_choice"), TERMINAL)
    assert "none here: scored text: exits are masked, every layer ran" in said


def test_dense_is_dense_on_the_same_tokens(runs: Runs) -> None:
    for (label, _), record in runs.items():
        flops, memory = record.flops, record.memory
        if label == "dense":
            assert (flops.total, flops.weight_bytes, flops.kv_bytes, memory.weights, memory.kv_peak) == (
                *(flops.dense_equivalent, flops.dense_weight_bytes, flops.dense_kv_bytes),
                *(memory.dense_weights, memory.dense_kv_peak),
            )
            assert record.time.ideal.dense_s == pytest.approx(record.time.ideal.ref_s)
    for task in ("tiny_choice",):  # the same tokens are scored whatever the method
        dense = next(record for (label, on), record in runs.items() if label == "dense" and on == task)
        for record in (record for (_, on), record in runs.items() if on == task):
            assert record.flops.dense_weight_bytes == dense.flops.weight_bytes
            assert record.flops.dense_kv_bytes == dense.flops.kv_bytes
            assert record.time.ideal.dense_s == pytest.approx(dense.time.ideal.ref_s)


def test_a_method_that_writes_less_saves_no_work(runs: Runs) -> None:
    at = row(runs, "favour:token=e", "tiny_answer")
    ratios = at.record["baseline"]["ratios"]
    assert at.record["baseline"]["output_tokens"] < 0.5
    for name in ("flops", "weight_bytes", "kv_bytes", "kv_peak", "ideal_ref"):
        assert ratios[name]["value"] == pytest.approx(1, abs=1e-3), name
    assert ratios["flops_total"]["value"] < 0.9
    assert ratios["ideal_ref_total"]["value"] < 0.9
    said = " ".join(notes(at, TERMINAL))
    assert "ratios are of the same tokens" in said
    assert f"totals: FLOPs {TERMINAL.ratio(ratios['flops_total']['value'])}" in said
    assert any(reason.startswith("saved no work") for reason in at.apart)
    assert not any("never executed" in reason for reason in at.apart)


def test_a_method_that_answers_otherwise_at_dense_s_cost_saves_no_work(runs: Runs) -> None:
    at = row(runs, "favour:token=a", "tiny_answer")
    assert at.record["baseline"]["answers_changed"] > 0
    assert any(reason.startswith("saved no work") for reason in at.apart)


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_answer"])
def test_a_method_that_did_nothing_was_never_executed(runs: Runs, task: str) -> None:
    at = row(runs, "favour", task)
    assert at.saving == "none here"
    assert "never executed: every layer ran on every token, and every answer is dense's" in at.apart
    assert notes(at, TERMINAL) == []  # said once
