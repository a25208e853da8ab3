"""Written answers: merged arguments, broken logits, and an audit that serves what the run served."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from harness.core.errors import HarnessError
from harness.evaluate.generation import NotANumber, arguments, require_one_continuation
from harness.measure.audit import Audit
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from harness.testing.tiny import tiny_model, tiny_tokenizer
from tests.silent import Silent


@pytest.fixture
def evaluated(tiny_tasks: Path, tmp_path: Path):
    """The dense record of a model on a task."""

    def run(module: Any, task: str = "tiny_answer", **settings: Any) -> RunRecord:
        folder = tmp_path / "model"
        module.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        fixed = {"pretrained": str(folder), "include_path": str(tiny_tasks), "device": "cpu", "limit": 3}
        job = Job(methods=("dense",), tasks=(task,), **fixed, **settings)
        (record,) = Session(job, Store(tmp_path / "runs"), Silent()).execute()
        return record

    return run


@pytest.mark.parametrize(
    ("own", "given", "refused"),
    [
        ({}, {}, None),
        (
            {"num_beams": 3},
            {},
            "num_beams=3 .from the checkpoint's.*--gen_kwargs num_beams=1",
        ),
        ({"num_beams": 3}, {"num_beams": 1}, None),
        ({}, {"num_beams": 2}, "num_beams=2: only one continuation"),
        ({"num_beams": 1}, {"num_return_sequences": 4}, "num_return_sequences=4: only one"),
        ({"num_return_sequences": 2}, {"num_beams": 1}, "num_return_sequences=2.*generation_config"),
    ],
)
def test_generation_is_refused_by_the_arguments_that_generate_would_take(own, given, refused):
    config = GenerationConfig()
    for name, value in own.items():  # transformers would refuse some of these together
        setattr(config, name, value)
    if refused is None:
        require_one_continuation(config, given)
    else:
        with pytest.raises(HarnessError, match=refused):
            require_one_continuation(config, given)


def test_greedy_arguments_have_no_temperature():
    options = {"attention_mask": torch.ones(1, 2), "temperature": 0.0, "prompt_lookup_num_tokens": 5}
    assert arguments(options) == {"do_sample": False, "prompt_lookup_num_tokens": 5}
    sampled = {"do_sample": True, "temperature": 0.7}
    assert arguments(sampled) == sampled


def test_beams_of_the_checkpoint_are_refused_or_given_up(evaluated):
    module = tiny_model("llama")
    module.generation_config.num_beams = 3
    with pytest.raises(HarnessError, match="--gen_kwargs num_beams=1"):
        evaluated(module)
    record = evaluated(module, gen_kwargs={"num_beams": 1})
    assert record.flops.audit_ratio == 1
    assert not any("PyTorch" in warning for warning in record.warnings)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 4}, {"cache_implementation": "static"}], ids=str)
def test_the_audit_serves_what_the_run_served(evaluated, options):
    record = evaluated(tiny_model("llama"), gen_kwargs=options, batch_size=1)
    assert record.flops.audit_ratio == 1
    assert record.flops.audit_stated == record.flops.audit_counted > 0


def test_an_audit_that_fails_ends_no_run(evaluated, monkeypatch):
    def broken(*_: Any) -> None:
        raise AssertionError("query/key/value shapes are incompatible")

    monkeypatch.setattr("harness.evaluate.replay.serve", broken)
    record = evaluated(tiny_model("llama"))
    assert record.scores
    assert record.flops.audit_ratio is None
    assert record.missing["flops.audit_ratio"] == (
        "the audit failed: AssertionError: query/key/value shapes are incompatible"
    )


def test_an_audit_that_is_off_is_a_warning(evaluated, monkeypatch):
    monkeypatch.setattr("harness.evaluate.replay.audit", lambda *_: Audit(1000, 1002))
    assert evaluated(tiny_model("llama")).warnings == ["PyTorch's counter saw 1.002 times the FLOPs stated here"]


@pytest.mark.parametrize(("task", "what"), [("tiny_answer", "written"), ("tiny_last", "log-likelihoods")])
def test_logits_that_are_no_numbers_are_a_warning(evaluated, task, what):
    module = tiny_model("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[:] = float("inf")
    record = evaluated(module, task)
    assert any(what in warning and "not a number: the scores mean nothing" in warning for warning in record.warnings)
    assert any(warning.startswith("3 of 3 ") for warning in record.warnings)


def test_rows_are_told_apart_and_forbidden_tokens_are_no_fault():
    watch = NotANumber()
    fine, broken = torch.tensor([0.5, -torch.inf, 1.0]), torch.tensor([0.5, torch.nan, 1.0])
    for scores in ([fine, fine, fine], [fine, broken, fine], [fine, fine, torch.full((3,), torch.inf)]):
        batch = torch.stack(scores)
        assert watch(torch.zeros(3, 1), batch) is batch
    assert watch.rows(3) == [False, True, True]
    assert NotANumber().rows(2) == [False, False]
