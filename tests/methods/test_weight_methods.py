"""Int8 and the pruning methods: what a run's record says of them, what they refuse, and that they stack in order."""

import json
from pathlib import Path

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.measure.shape import ModelShape
from harness.methods.pruning.magnitude import Magnitude
from harness.methods.pruning.wanda import Wanda
from harness.methods.quantization.int8_dynamic import Int8Dynamic
from harness.model.weights import int8
from harness.model.weights.linear import kernel_counts, sites
from harness.model.weights.savings import savings
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import TaskRequest
from harness.testing.tiny import tiny_decoder
from tests import kernels_here
from tests.silent import Silent

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL = "samples=2,length=48"


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


TASKS = (TaskRequest(task="tiny_letters"),)
METHODS = {
    "int8-dynamic": (kernels_here.SAVINGS, {kernels_here.KERNEL: 28}),
    f"wanda:{SMALL}": ("simulated", {"dense product over unstructured zeros": 28}),
    "magnitude:pattern=2:4": ("simulated", {"dense product over 2:4 zeros": 28}),
    f"wanda:sparsity=0,{SMALL}": ("none", {}),
    f"wanda:pattern=16x1,sparsity=0.75,{SMALL}+block-sparse:number=fp32": ("real", {"block-sparse fp32 16x1": 28}),
    "layer-drop:layers=1/2+int8-dynamic": (kernels_here.SAVINGS, {kernels_here.KERNEL: 14}),
    f"wanda:{SMALL}+int8-dynamic:linears=*.mlp.*": ("simulated", None),
}


@pytest.fixture(scope="module")
def records(tiny_job, tmp_path_factory) -> dict[str, RunRecord]:
    job = tiny_job(
        tasks=TASKS,
        methods=tuple(METHODS),
        limit=3,
    )
    session = Session(job, Store(tmp_path_factory.mktemp("runs")), Silent())
    with kernels_here.timed(tmp_path_factory.mktemp("times")):
        return dict(zip(["dense", *METHODS], session.execute(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_record_says_what_computed_and_what_it_saved(method, records):
    savings, expected = METHODS[method]
    info = records[method].method
    assert info.savings == savings
    if expected is not None:
        assert {name.split(", ")[0]: count for name, count in info.kernels.items()} == expected
    assert records[method].flops.audit_ratio == 1


def test_only_what_is_skipped_is_not_counted(records):
    flops = {name: record.flops.total for name, record in records.items()}
    for same in ("int8-dynamic", f"wanda:{SMALL}", "magnitude:pattern=2:4"):
        assert flops[same] == flops["dense"]
    sparse = f"wanda:pattern=16x1,sparsity=0.75,{SMALL}+block-sparse:number=fp32"
    linear = records["dense"].flops.parts["mlp"]
    assert records[sparse].flops.parts["mlp"] == linear / 4
    assert (records["int8-dynamic"].flops.weight_bytes < records["dense"].flops.weight_bytes / 2) is (
        kernels_here.SAVINGS is Savings.REAL
    )


def test_a_collapsed_layer_marks_the_run(tiny_job, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("harness.model.weights.pruning.COLLAPSED", 0.5)
    job = tiny_job(
        tasks=TASKS,
        methods=("magnitude:sparsity=0.99",),
        limit=1,
        baseline=False,
    )
    (record,) = Session(job, Store(tmp_path), Silent()).execute()
    assert any("28 of 28 pruned linear layers keep less than 50%" in warning for warning in record.warnings)


def test_int8_errs_as_stated_and_no_more(ids):
    for family in ("llama", "gpt2", "opt", "gemma2"):
        decoder = kernels_here.force(tiny_decoder(family))
        dense, shape = logits(decoder, ids), ModelShape.of(decoder)
        with Int8Dynamic().attach(decoder, None):
            error = float((logits(decoder, ids) - dense).norm() / dense.norm())
            shares = [
                layer.mlp.bytes / dense_layer.mlp.bytes
                for layer, dense_layer in zip(ModelShape.of(decoder).layers, shape.layers, strict=True)
            ]
        assert 0 < error < 0.05
        number = kernels_here.WEIGHT_BYTES / 4
        assert all(number < share < number + 0.05 for share in shares)


def test_int8_without_a_kernel_says_simulated(ids):
    decoder = kernels_here.force(tiny_decoder("llama"))
    with Int8Dynamic().attach(decoder, None):
        real = logits(decoder, ids)
    stack = parse("int8-dynamic")
    with stack.parts[0].attach(kernels_here.force(decoder, "dense"), None):
        assert savings(stack, decoder) is Savings.SIMULATED
        assert kernel_counts(decoder) == {"dense product over int8 values": 28}
        assert torch.allclose(logits(decoder, ids), real, atol=1e-4)


def test_a_simulated_part_of_a_stack_leaves_the_others_what_they_save(monkeypatch):
    from harness.testing.checks.work import saves_what_it_declares
    from harness.testing.subject import Subject

    monkeypatch.setattr(int8, "PRODUCTS", ())
    saves_what_it_declares(Subject.of("layer-drop:layers=1+int8-dynamic", ["llama"]))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1", "16x1"])
@pytest.mark.parametrize("method", [Wanda, Magnitude])
def test_no_sparsity_is_dense_bit_for_bit(method, pattern, ids):
    decoder = tiny_decoder("gpt2")
    dense = logits(decoder, ids)
    neutral = method.from_args({**method.neutral, "pattern": pattern})
    with neutral.attach(decoder, neutral.prepare(decoder, TEXT)):
        assert torch.equal(logits(decoder, ids), dense)


def test_each_layer_has_its_own_sparsity():
    decoder, method = tiny_decoder("llama"), Magnitude.from_args({"sparsity": "0/0.25/0.5/0.75"})
    with method.attach(decoder, method.prepare(decoder, TEXT)):
        shares = [float((site.weight == 0).float().mean()) for site in sites(decoder, ["*.q_proj"])]
    assert shares == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("name", ["wanda", "magnitude", "block-sparse", "int8-dynamic"])
def test_label_and_parameters_round_trip(name):
    written = {
        "int8-dynamic": "linears=*.mlp.*/*.q_proj,layers=1/3,head=True",
        "block-sparse": "sparsity=0.5/0.25,pattern=4x1,number=fp32,layers=0",
    }.get(name, "sparsity=0.5/0.25,pattern=4x1,linears=*.mlp.*,layers=0")
    (method,) = parse(f"{name}:{written}").parts
    (again,) = parse(method.label).parts
    assert again == method == type(method)(**json.loads(json.dumps(method.params())))
    assert again.fingerprint == method.fingerprint


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("wanda:pattern=2:4,sparsity=0.6", "pattern=2:4 has sparsity=0.5, not 0.6"),
        ("magnitude:pattern=2:4,sparsity=0.5/0.9", "pattern=2:4 has sparsity=0.5, not 0.5/0.9"),
        ("wanda:sparsity=1", "sparsity='1' is not valid"),
        ("wanda:sparsity=half", "sparsity='half' is not valid"),
        ("wanda:sparsity=", "sparsity='' is not valid"),
        ("wanda:pattern=8x1", "pattern='8x1' is not valid.*'16x1'"),
        ("wanda:length=1", "length='1' is not valid"),
        ("int8-dynamic:layers=-1", "layers='-1' is not valid"),
        ("int8-dynamic:linears=", "linears='' is not valid"),
        ("int8-dynamic:bits=4", "unknown argument of int8-dynamic 'bits'"),
    ],
)
def test_nonsense_is_refused(written, says):
    from harness.core.errors import HarnessError

    with pytest.raises(HarnessError, match=says):
        parse(written)


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ("int8-dynamic+block-sparse", f"is computed by {kernels_here.KERNEL} already"),
        (f"int8-dynamic+wanda:{SMALL}", "name a method that prunes before the one that computes"),
        ("wanda:samples=2,length=48,linears=*.experts.*", "no linear layer is named"),
        ("int8-dynamic:layers=9", "no layer 9; the model's layers are 0 to 3"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(stack, says, tmp_path):
    with (
        pytest.raises(MethodError, match=says),
        kernels_here.timed(tmp_path / "times"),
        parse(stack).applied(tiny_decoder("llama"), Preparation(States(tmp_path), TEXT)),
    ):
        pass


@pytest.mark.parametrize(
    "route", ["dr-llm:questions=4,simulations=6,hidden=8,epochs=2", "random-skip:executed=0.5,first=1,last=0"]
)
def test_what_routes_layers_and_what_computes_them_stack(route):
    from harness.testing.serve import TEXTS, difference, score
    from harness.testing.subject import Subject

    served = {}
    for stack in (route, f"{route}+int8-dynamic"):
        subject = Subject.of(stack, ["llama"])
        decoder = subject.decoder("llama")
        with subject.attached(decoder):
            served[stack] = score(decoder, TEXTS[:2])
            assert sum(kernel_counts(decoder).values()) == (28 if "int8" in stack else 0)
    routed, quantized = served.values()
    assert [[s.attention for s in row] for row in routed.segments] == [
        [s.attention for s in row] for row in quantized.segments
    ]
    assert 0 < difference(quantized.row(0), routed.row(0)) < 0.05
