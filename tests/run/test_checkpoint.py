"""Another checkpoint is a row beside its dense: loaded for itself, counted by its own shape, ranked with the base."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.contract.facts import Savings
from harness.contract.method import Method
from harness.contract.stack import Stack, parse
from harness.core.errors import HarnessError, MethodError
from harness.methods.checkpoint import Checkpoint
from harness.model.source import locate
from harness.reports.rows import rows
from harness.results.store import Store
from harness.run.plan import Plan
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.silent import Silent

COSTS = CostPlan(
    prompts=2, rounds=2, warmup=0, measure=frozenset({"flops", "latency", "ideal", "memory"}), accelerators=("l4",)
).model_copy(update={"budget_s": 1e-6})


@pytest.fixture(scope="module")
def pruned(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model without its layers 0 and 2, as another tool would save it."""
    folder = tmp_path_factory.mktemp("pruned") / "smaller"
    shutil.copytree(tiny_folder, folder)
    module = AutoModelForCausalLM.from_pretrained(tiny_folder)
    stack = module.model
    kept = [index for index in range(len(stack.layers)) if index not in (0, 2)]
    stack.layers = torch.nn.ModuleList(stack.layers[index] for index in kept)
    module.config.num_hidden_layers = len(kept)
    if getattr(module.config, "layer_types", None):
        module.config.layer_types = [module.config.layer_types[index] for index in kept]
    module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def job(pruned: Path, tiny_job: Callable[..., Job]) -> Job:
    return tiny_job(
        methods=("layer-drop:layers=0/2", f"checkpoint:path={pruned}", f"checkpoint:path={pruned}+ffn-prune:ratio=0.5"),
        tasks=("tiny_choice",),
        limit=4,
        costs=COSTS,
    )


@pytest.fixture(scope="module")
def records(job: Job, tmp_path_factory: pytest.TempPathFactory) -> list:
    return Session(job, Store(tmp_path_factory.mktemp("runs")), Silent()).execute()


def test_it_answers_and_costs_what_the_same_surgery_does(records):
    dense, dropped, checkpoint, narrower = records
    assert [score.value for score in checkpoint.scores] == [score.value for score in dropped.scores]
    assert checkpoint.flops.total == dropped.flops.total < checkpoint.flops.dense_equivalent == dense.flops.total
    assert checkpoint.memory.kv_peak == dropped.memory.kv_peak < checkpoint.memory.dense_kv_peak == dense.memory.kv_peak
    assert checkpoint.memory.dense_weights == dense.memory.weights > checkpoint.memory.weights
    assert checkpoint.flops.dense_kv_bytes == dense.flops.kv_bytes
    assert checkpoint.flops.audit_ratio == pytest.approx(1)
    assert checkpoint.method.savings == narrower.method.savings == "real"
    assert narrower.flops.total < checkpoint.flops.total
    assert checkpoint.trace.executed


def test_the_record_names_both_models(records, pruned):
    dense, _, checkpoint, _ = records
    assert dense.model.base is None
    assert checkpoint.model.layers == dense.model.layers - 2
    assert (checkpoint.model.name, checkpoint.model.pretrained) == ("smaller", str(pruned))
    assert checkpoint.model.base.fingerprint == dense.model.fingerprint != checkpoint.model.fingerprint
    assert checkpoint.model.base.name == dense.model.name
    assert checkpoint.model.dtype == dense.model.dtype


def test_it_is_ranked_beside_its_dense(records):
    table = rows([record.model_dump(mode="json") for record in records])
    assert len({row.group for row in table}) == 1
    assert len({row.record["model"]["name"] for row in table}) == 1
    assert [row.dense["id"] for row in table[1:]] == [records[0].id] * 3


def test_costs_are_measured_in_turns_and_what_cannot_be_is_said(records):
    for record in records[1:]:
        assert record.baseline.ratios["latency"].value > 0
    for record in records[2:]:
        assert record.time.ideal is None
        assert "dense model's layers" in record.missing["time.ideal"]
    assert records[1].time.ideal is not None
    for record in records:
        assert record.memory.peak is None
        assert "another checkpoint were in memory together" in record.missing["memory.peak"]


def test_nothing_is_computed_again(job, records):
    ids = [spec.id for spec in Plan(job).specs]
    assert ids == [record.id for record in records]


def test_the_contents_are_in_the_identity(job, pruned, tmp_path):
    other = Path(shutil.copytree(pruned, tmp_path / "smaller"))
    moved = Plan(job.model_copy(update={"methods": (f"checkpoint:path={other}",)})).specs[1]
    assert moved.id == Plan(job).specs[2].id
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    assert Plan(job.model_copy(update={"methods": (f"checkpoint:path={other}",)})).specs[1].id != moved.id


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, "^checkpoint: path=.* is no folder with a model"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "^checkpoint: .* has no safetensors files",
        ),
        (lambda folder: (folder / "config.json").unlink(), "without a config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer of .* is missing or cannot be loaded"),
        (
            lambda folder: _edit(folder / "tokenizer.json", normalizer={"type": "Lowercase"}),
            "has another tokenizer",
        ),
        (lambda folder: _edit(folder / "config.json", quantization_config={"bits": 4}), "smaller' is quantized"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(job, pruned, tmp_path, spoil, says):
    folder = Path(shutil.copytree(pruned, tmp_path / "smaller"))
    spoil(folder)
    plan = Plan(job.model_copy(update={"methods": (f"checkpoint:path={folder}",)}))
    with pytest.raises(HarnessError, match=says):
        _ = plan.specs


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_model_comes_first(pruned):
    with pytest.raises(MethodError, match=r"checkpoint is another model, which comes first: write checkpoint\+"):
        parse(f"ffn-prune+checkpoint:path={pruned}").check_order()


class Wrong(Method):
    name = "wrong"
    family = "pruning"
    savings = Savings.REAL

    def checkpoint(self, source):
        return "a folder"

    def attach(self, model, prepared):
        return nullcontext()


def test_a_method_that_gives_no_model_is_refused(tiny_folder):
    with pytest.raises(MethodError, match=r"Wrong\.checkpoint must return a ModelSource, and returned a str"):
        Stack((Wrong(),)).checkpoint(locate(str(tiny_folder)))


def test_its_own_model_is_the_dense_one(tiny_folder, job):
    """The same files elsewhere are the same model, and no row of another."""
    spec = Plan(job.model_copy(update={"methods": (f"checkpoint:path={tiny_folder}",)})).specs[1]
    assert spec.checkpoint is None
    assert Checkpoint(path=tiny_folder).label == f"checkpoint:path={tiny_folder}"
