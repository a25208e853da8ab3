"""Written answers: merged arguments, broken logits, and an audit that serves what the run served."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from harness.contract.decoder import ForwardContext
from harness.core.errors import HarnessError, ModelError
from harness.evaluate.generation import BrokenLogits, arguments, require_traceable
from harness.measure.audit import Audit
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from harness.testing.tiny import tiny_model, tiny_tokenizer
from tests.silent import Silent


@pytest.fixture
def evaluated(tiny_tasks: Path, tmp_path: Path, device: str):
    """The dense record of a model on a task."""

    def run(module: Any, task: str = "tiny_answer", **settings: Any) -> RunRecord:
        folder = tmp_path / "model"
        module.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        fixed = {"pretrained": str(folder), "include_path": str(tiny_tasks), "device": device, "limit": 3}
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
        ({"num_beams": 3}, {"num_beams": None}, "num_beams=None: only one"),
        ({}, {"return_dict_in_generate": True}, "--gen_kwargs return_dict_in_generate=false"),
        ({"return_dict_in_generate": True}, {}, "return_dict_in_generate=True .from the checkpoint's"),
        ({"return_dict_in_generate": True}, {"return_dict_in_generate": False}, None),
        ({}, {"assistant_early_exit": 2}, "assistant_early_exit=2 cannot be traced"),
        ({"num_beams": 1}, {"num_return_sequences": 4}, "num_return_sequences=4: only one"),
        ({"num_return_sequences": 2}, {"num_beams": 1}, "num_return_sequences=2.*generation_config"),
    ],
)
def test_generation_is_refused_by_the_arguments_that_generate_would_take(own, given, refused):
    config = GenerationConfig()
    for name, value in own.items():  # transformers would refuse some of these together
        setattr(config, name, value)
    if refused is None:
        require_traceable(config, given)
    else:
        with pytest.raises(HarnessError, match=refused):
            require_traceable(config, given)


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remove_invalid_values": True},  # mends scores before a processor of ours would see them
        {"forced_eos_token_id": 2, "max_gen_toks": 1},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5},
    ],
    ids=str,
)
def test_broken_logits_are_seen_as_they_leave_the_model(evaluated, options):
    module = tiny_model("llama")
    with torch.no_grad():
        module.lm_head.weight[7] = torch.nan
    (warning,) = (each for each in evaluated(module, gen_kwargs=options).warnings if "not a number" in each)
    assert warning.startswith("3 of 3 answers were written")


def test_a_row_is_broken_from_the_token_on_that_broken_logits_choose():
    """What fills up a row that has ended counts for nothing."""
    context = ForwardContext((), "generate", 4)
    watch = BrokenLogits(context)
    fine, broken = torch.tensor([0.5, -torch.inf, 1.0]), torch.tensor([0.5, torch.nan, 1.0])
    for written, rows in enumerate(([fine, fine], [fine, broken], [torch.full((3,), torch.inf), fine])):
        ids = torch.zeros(2, 1 if written else 4, dtype=torch.long)
        context.advance(ids.shape[1])
        logits = torch.stack(rows)[:, None]  # [rows, positions, vocabulary]
        watch.look(None, (ids,), {}, SimpleNamespace(logits=logits))
        assert watch(torch.zeros(2, 4 + written), logits[:, -1]) is not None
    assert watch.rows([3, 3]) == [True, True]
    assert watch.rows([2, 2]) == [False, True]
    assert watch.rows([1, 1]) == [False, False]


def test_nothing_can_be_drawn_from_broken_logits(evaluated):
    module = tiny_model("llama")
    with torch.no_grad():
        module.lm_head.weight[7] = torch.nan
    with pytest.raises(ModelError, match=r"document 0: the model's logits are not a number.*dtype=float32"):
        evaluated(module, gen_kwargs={"do_sample": True, "temperature": 0.7})


def test_tokens_are_used_up_to_the_end_that_was_asked_for_whatever_the_batch(evaluated):
    """Rows that end early are not charged for what fills them up."""
    ends = {"eos_token_id": list(range(3, 130))}
    alone, together = (evaluated(tiny_model("llama"), batch_size=size, gen_kwargs=ends) for size in (1, 3))
    assert 3 <= alone.trace.output_tokens == together.trace.output_tokens < 3 * 12


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 2}, {"guidance_scale": 1.5}], ids=str)
def test_forwards_of_padding_alone_and_of_no_padding(evaluated, options):
    """A prompt read in parts has parts that are padding for shorter rows; guidance reads a last token without any."""
    record = evaluated(tiny_model("llama"), batch_size=3, gen_kwargs=options)
    assert record.flops.audit_ratio == 1
    assert record.flops.total >= record.flops.useful > 0
    assert record.trace.pad_tokens == evaluated(tiny_model("llama"), batch_size=3).trace.pad_tokens
