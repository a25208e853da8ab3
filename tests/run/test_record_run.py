"""What a run's record says was done, against formulas written out by hand, and against what was done."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.results.record import RunRecord
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from tests.silent import Silent

TASKS = ("tiny_choice", "tiny_letters", "tiny_last", "tiny_answer", "tiny_text", "tiny_group")
HALF = "layer-drop:unit=attention,layers=0/2"
Lines = dict[int, dict[str, Any]]
Execute = Callable[..., tuple[RunRecord, list[dict[str, Any]]]]


class Runs:
    """Dense and half of the attentions on every task, at one batch size."""

    def __init__(self, folder: Path, batch_size: int, model: Path, tasks: Path, device: str) -> None:
        self.store = Store(folder)
        job = Job(
            methods=(HALF,),
            tasks=TASKS,
            pretrained=str(model),
            include_path=str(tasks),
            batch_size=batch_size,
            limit=8,
            device=device,
        )
        self.session = Session(job, self.store, Silent())
        module = self.session.lm.decoder.module
        tokens = torch.arange(3, 60, device=module.device)[None]
        self.before = ({name: tensor.clone() for name, tensor in module.state_dict().items()}, module(tokens).logits)
        records = self.session.execute()
        self.after = (module.state_dict(), module(tokens).logits)
        self.records = {(record.method.name, record.evaluation.task): record for record in records}

    def lines(self, record: RunRecord, task: str | None = None) -> Lines:
        found = self.store.find(record.id).samples()
        return {line["doc_id"]: line for line in found if task in (None, line["task"])}


@pytest.fixture(scope="module")
def runs(
    tiny_folder: Path, tiny_tasks: Path, tmp_path_factory: pytest.TempPathFactory, device: str
) -> Callable[[int], Runs]:
    made: dict[int, Runs] = {}

    def at(batch_size: int) -> Runs:
        if batch_size not in made:
            made[batch_size] = Runs(tmp_path_factory.mktemp("runs"), batch_size, tiny_folder, tiny_tasks, device)
        return made[batch_size]

    return at


@pytest.fixture(scope="module")
def documents(tiny_tasks: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tiny_tasks / "test.jsonl").read_text().splitlines()]


def forward(tokens: int, context: int, heads: int, attentions: int = 4) -> int:
    """FLOPs of one forward of the tiny Llama: width 32, MLP 48, 4 heads and 2 key-value heads of 8, 259 tokens."""
    attention = 2 * tokens * (32 * 32 + 2 * 32 * 16 + 32 * 32) + 4 * 32 * tokens * context
    mlp = 2 * tokens * 3 * 32 * 48
    return attentions * attention + 4 * mlp + 2 * heads * 32 * 259


def scored(tokens: int, attentions: int = 4) -> int:
    return forward(tokens, tokens, heads=tokens, attentions=attentions)


def generated(prompt: int, output: int, attentions: int = 4) -> int:
    """A prefill that ends in one token, then one forward for each further token."""
    steps = sum(forward(1, prompt + step, 1, attentions) for step in range(1, output))
    return forward(prompt, prompt, 1, attentions) + steps


@pytest.mark.parametrize(("method", "attentions"), [("dense", 4), ("layer-drop", 2)])
def test_flops_equal_the_formula(
    method: str, attentions: int, runs: Callable[[int], Runs], documents: list[dict[str, Any]]
) -> None:
    """One byte is one token, and the last token of a scored text is not read."""
    at = runs(1)
    for task in ("tiny_last", "tiny_text", "tiny_answer"):
        lines = at.lines(at.records[method, task])
        assert len(lines) == 8
        for number, line in lines.items():
            document = documents[number]
            if task == "tiny_last":
                tokens = len(document["question"] + document["choices"][0]) - 1
                assert line["flops"] == scored(tokens, attentions)
            elif task == "tiny_text" and len(document["text"]) <= 256:
                assert line["flops"] == scored(len(document["text"]), attentions)
            elif task == "tiny_answer":
                assert line["prompt_tokens"] == len(f"{document['question']} =")
                assert line["flops"] == generated(line["prompt_tokens"], line["output_tokens"], attentions)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_audit_agrees_exactly(batch_size: int, runs: Callable[[int], Runs]) -> None:
    records = runs(batch_size).records
    assert len(records) == 2 * len(TASKS)
    assert {name: record.flops.audit_ratio for name, record in records.items()} == dict.fromkeys(records, 1.0)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_lines_sum_to_totals(batch_size: int, runs: Callable[[int], Runs]) -> None:
    at = runs(batch_size)
    for record in at.records.values():
        lines = list(at.store.find(record.id).samples())
        assert sum(line["flops"] for line in lines) == record.flops.total == sum(record.flops.parts.values())
        for tokens in ("prompt_tokens", "output_tokens", "pad_tokens"):
            assert sum(line[tokens] for line in lines) == getattr(record.trace, tokens)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_dropping_attentions_saves_what_they_cost_and_restores_the_model(
    batch_size: int, runs: Callable[[int], Runs]
) -> None:
    at = runs(batch_size)
    for task in TASKS:
        dense, half = at.records["dense", task], at.records["layer-drop", task]
        assert half.baseline is not None
        assert half.trace.executed is True
        assert half.memory.kv_peak <= dense.memory.kv_peak / 2 or task == "tiny_answer"
        assert half.baseline.documents == max(score.n for score in half.scores)
        if task != "tiny_answer":  # another answer may be longer
            assert half.flops.dense_equivalent == dense.flops.total
            assert half.flops.parts["attention_linear"] * 2 == dense.flops.parts["attention_linear"]
            assert half.flops.parts["mlp"] == dense.flops.parts["mlp"]
            assert half.baseline.ratios["flops"].value == pytest.approx(half.flops.total / dense.flops.total)
        assert half.trace.mean_depth_prefill == 0.75
        assert dense.trace.mean_depth_prefill == 1
    (weights, logits), (weights_after, logits_after) = at.before, at.after
    assert weights.keys() == weights_after.keys()
    assert all(torch.equal(weights[name], weights_after[name]) for name in weights)
    assert torch.equal(logits, logits_after)


def test_batching_changes_padding_and_nothing_else(runs: Callable[[int], Runs]) -> None:
    for name, alone in runs(1).records.items():
        together = runs(8).records[name]
        assert alone.trace.pad_tokens == 0
        assert together.trace.pad_tokens > 0
        assert together.trace.forwards < alone.trace.forwards
        one, eight = runs(1).lines(alone), runs(8).lines(together)
        for number in one:
            for key in ("prompt_tokens", "output_tokens", "filtered", "prompt_hash"):
                assert _rounded(one[number][key]) == _rounded(eight[number][key])


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    # a sum of log-likelihoods in float32, whose rounding (1.2e-7 of its size) each of some ten additions may add
    return pytest.approx(value, abs=1e-5, rel=1.2e-6) if isinstance(value, float) else value


def test_choices_of_one_token_share_a_row(runs: Callable[[int], Runs]) -> None:
    letters = runs(1).lines(runs(1).records["dense", "tiny_letters"])
    choices = runs(1).lines(runs(1).records["dense", "tiny_choice"])
    for number in letters:
        assert [row["requests"] for row in letters[number]["rows"]] == [[(0, 0), (1, 0), (2, 0)]]
        assert sorted(row["requests"] for row in choices[number]["rows"]) == [[(0, 0)], [(1, 0)], [(2, 0)]]


def test_group_has_its_own_score_and_those_of_its_tasks(runs: Callable[[int], Runs]) -> None:
    at = runs(1)
    record = at.records["dense", "tiny_group"]
    scores = {(score.task, score.metric): score for score in record.scores}
    assert scores["tiny_group", "acc"].n == 16
    parts = [scores[task, "acc"].value for task in ("tiny_choice", "tiny_letters")]
    assert scores["tiny_group", "acc"].value == pytest.approx(sum(parts) / 2)
    for task, accuracy in zip(("tiny_choice", "tiny_letters"), parts, strict=True):
        alone = at.records["dense", task]
        assert next(score.value for score in alone.scores if score.metric == "acc") == accuracy
        assert len(at.lines(record, task)) == 8


# ---- harder inputs -----------------------------------------------------------------------------------------------


@pytest.fixture
def execute(device: str) -> Execute:
    """Run dense on a task: its record, and the lines of its documents."""

    def run(store: Store, model: Path, tasks: Path, task: str, **more: Any) -> tuple[RunRecord, list[dict[str, Any]]]:
        settings = {"methods": ("dense",), "device": device, "tasks": (task,), **more}
        job = Job(pretrained=str(model), include_path=str(tasks), **settings)
        (record,) = Session(job, store, Silent()).execute()
        return record, list(store.find(record.id).samples())

    return run


@pytest.mark.parametrize("batch_size", [1, 8])
def test_documents_that_share_a_row_are_each_charged_for_it(
    batch_size: int, execute: Execute, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_tasks, tmp_path / "tasks")
    lines = (folder / "test.jsonl").read_text().splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join([lines[0], lines[1], lines[0], lines[0]]))
    task = (folder / "tiny_letters.yaml").read_text().replace(str(tiny_tasks), str(folder))
    (folder / "tiny_letters.yaml").write_text(task)
    record, found = execute(Store(tmp_path), tiny_folder, folder, "tiny_letters", batch_size=batch_size)
    first, second, third, fourth = found
    for line in found:
        assert [row["requests"] for row in line["rows"]] == [[(0, 0), (1, 0), (2, 0)]]
    assert first["flops"] == third["flops"] == fourth["flops"]
    assert first["responses"] == third["responses"] == fourth["responses"]
    assert record.flops.total == first["flops"] + second["flops"]
    assert record.trace.prompt_tokens == first["prompt_tokens"] + second["prompt_tokens"]


def test_answers_that_end_in_one_of_several_ways_are_as_long_in_any_batch(
    execute: Execute, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path
) -> None:
    """A generation configuration may name more end tokens than the tokenizer has."""
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [2, *range(3, 200, 4)]}))
    store = Store(tmp_path / "runs")
    alone, together = (
        [line["output_tokens"] for line in execute(store, model, tiny_tasks, "tiny_answer", batch_size=rows)[1]]
        for rows in (1, 8)
    )
    assert alone == together
    assert len(set(alone)) > 2


def test_audit_stays_within_the_positions_of_the_model(execute: Execute, tiny_tasks: Path, tmp_path: Path) -> None:
    """GPT-2 has learned positions, and no room after a prompt that fills them but for one token."""
    from harness.testing.tiny import tiny_model, tiny_tokenizer

    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    job = {"gen_kwargs": {"max_gen_toks": 1}, "num_fewshot": 12, "limit": 2}
    record, lines = execute(Store(tmp_path), tmp_path / "gpt2", tiny_tasks, "tiny_answer", **job)
    assert [(line["prompt_tokens"], line["output_tokens"]) for line in lines] == [(255, 1), (255, 1)]
    assert record.flops.audit_ratio == 1


def test_answers_that_are_not_numbers_are_said(
    execute: Execute, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][:] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    record, _ = execute(Store(tmp_path), model, tiny_tasks, "tiny_text", limit=2)
    assert "3 of 3 log-likelihoods are not a number" in record.warnings[0]  # one text has two windows
    assert {score.value for score in record.scores} == {None}
