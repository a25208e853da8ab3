"""The command that a record keeps asks for what was asked: every flag of ``harness run`` is taken round."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from harness.cli import app
from harness.results.store import Store
from harness.run.command import flags
from harness.run.spec import Job
from tests.conftest import Harness

GIVEN: dict[str, list[str]] = {
    "method": ["layer-drop:count=2+int8-dynamic", "--method", "./mine.py:Mine:a=1"],
    "method_args": ["count=2,scope=a/b", "--method", "layer-drop"],
    "tasks": ["arc_easy,./my tasks.yaml"],
    "pretrained": ["org/model"],
    "model_args": ["dtype=float32,revision=main", '{"trust": "true", "n": 3, "list": ["a,b"], "none": null}'],
    "num_fewshot": ["0"],
    "batch_size": ["16"],
    "device": ["cuda:1"],
    "limit": ["0.123456789"],
    "samples": ['{"arc_easy": [7, 0], "other": [3]}'],
    "gen_kwargs": ["temperature=0.7,do_sample=true,until=['\\n', \"it's\"]"],
    "apply_chat_template": ["true"],
    "system_instruction": ['Say "yes",\nor $no.'],
    "fewshot_as_multiturn": ["false"],
    "seed": ["5,None,7,8"],
    "include_path": ["my tasks"],
    "metadata": ["max_seq_lengths=[4096,8192],tokenizer=org/model"],
    "trust_remote_code": [],
    "confirm_run_unsafe_code": [],
    "calibration": ["dataset:org/text:train:text"],
    "score_mode": ["context-first"],
    "score_suffix": ["Question:"],
    "kernel": ["block-sparse int8 16x1, plain C"],
    "measure": ["latency,energy"],
    "cost_samples": ["3"],
    "repeats": ["2"],
    "warmup": ["0"],
    "cost_tokens": ["4"],
    "cost_budget": ["12.5"],
    "isolate": [],
    "accelerator": ["l4", "--accelerator", "h100-sxm"],
    "price": ["1.5"],
    "carbon_intensity": ["400"],
    "throughput": ["1,8"],
    "graph": [],
    "no_baseline": [],
    "no_resume": [],
    "name": ["first try"],
    "predict_only": [],
    "write_out": [],
}
"""A value of each flag that changes a job; no value is the flag's default."""
NO_PART_OF_A_JOB = {
    "suite": "names tasks with flags of their own; each run's command has its task with these flags",
    "model": "only hf is taken",
    "output_path": "where the results go",
    "offline": "whether the network may be used",
    "controls": "adds runs that name themselves",
    "dry_run": "runs nothing",
    "json": "how results are printed",
    "show_config": "what is printed beside them",
    "log_samples": "always on",
    "verbosity": "what the libraries print",
    "config": "a file of other flags",
}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The job that a command line asks for, which is not carried out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_MEASURE", raising=False)

    def parse(*words: str) -> Job:
        jobs: list[Job] = []

        class Recorder:
            def __init__(self, job: Job, *_: object) -> None:
                jobs.append(job)

            def evaluate(self) -> list[object]:
                return []

            measure = evaluate

        from harness.cli import main

        monkeypatch.setattr("harness.run.session.Session", Recorder)
        monkeypatch.setattr(sys, "argv", ["harness", "run", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, words
        return jobs[0]

    return parse


def names() -> set[str]:
    """All flags of ``harness run``; of a pair of opposite ones the one that is not the default."""
    command: Any = typer.main.get_command(app)
    parameters = [parameter for parameter in command.commands["run"].params if parameter.name != "help"]
    return {(parameter.secondary_opts or parameter.opts)[0].lstrip("-") for parameter in parameters}


def test_every_flag_is_taken_round_or_is_no_part_of_a_job() -> None:
    assert names() == GIVEN.keys() | NO_PART_OF_A_JOB.keys()
    assert not GIVEN.keys() & NO_PART_OF_A_JOB.keys()


@pytest.mark.parametrize("flag", GIVEN)
def test_a_flag_is_taken_round(flag: str, parsed: Any) -> None:
    basis = ["--tasks", "t"] * (flag != "tasks")
    default, job = parsed("--tasks", "t"), parsed(*basis, f"--{flag}", *GIVEN[flag])
    assert job != default
    assert parsed(*flags(job)) == job
    assert parsed(*shlex.split(shlex.join(flags(job)))) == job


def test_a_value_may_look_like_a_flag(parsed: Any) -> None:
    job = parsed("--tasks", "t", "--system_instruction=--limit 5", "--apply_chat_template", "my template")
    assert job.system_instruction == "--limit 5"
    assert parsed(*flags(job)) == job


def test_all_flags_together(parsed: Any) -> None:
    without = {"samples", "method"}  # they exclude --limit and --method_args
    words = [word for flag in GIVEN.keys() - without for word in (f"--{flag}", *GIVEN[flag])]
    job = parsed(*words)
    assert parsed(*flags(job)) == job


def test_what_was_not_asked_is_not_written(parsed: Any) -> None:
    expected = "--method dense --tasks t --pretrained pocket --measure flops,ideal,latency,memory"
    assert shlex.join(flags(parsed("--tasks", "t"))) == expected


def test_a_suite_becomes_a_task_with_its_flags(parsed: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("tasks: [{task: a, num_fewshot: 5, gen_kwargs: {temperature: 0.5}}, b]\n")
    job = parsed("--suite", "mine.yaml", "--limit", "3")
    for request in job.tasks:
        alone = Job.model_validate(job.asking(request).model_dump() | {"tasks": (request.task,)})
        assert parsed(*flags(alone)) == alone


def test_a_record_keeps_the_command_of_its_run(
    harness: Harness, tiny: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARNESS_MEASURE", raising=False)
    asked = [*tiny, "-t", "tiny_letters,tiny_answer", "-m", "layer-drop:count=2"]
    asked += ["--samples", json.dumps({"tiny_answer": [1, 3]}), "--measure", "flops"]
    asked += ["--metadata", "a=1", "--calibration", "bundled", "--no_baseline", "--json"]
    records = harness("run", *asked).json()
    assert len(records) == 2
    (record,) = [each for each in records if each["evaluation"]["task"] == "tiny_answer"]
    words = shlex.split(record["command"])
    assert words[:4] == ["harness", "run", "--method", "layer-drop:count=2"]
    for flag in ("--metadata", "--calibration", "--include_path", "--no_baseline", "--device"):
        assert flag in words
    (again,) = harness("run", *words[2:], "--json", "-o", "again").json()
    assert again["scores"] == record["scores"]
    assert again["method"] == record["method"]
    assert Store(Path("again")).folders()[0].finished
