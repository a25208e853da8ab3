"""A job that cannot be is refused, and a run's id changes with what determines its result and with nothing else."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from harness.contract.stack import Stack
from harness.contract.study import Study
from harness.core.environment import Environment
from harness.evaluate.tasks import LoadedTask
from harness.model.source import ModelSource
from harness.model.weights.kernel_plan import KernelPlan
from harness.run.spec import UNSUPPORTED_MODEL_ARGS, Job, RunSpec
from tests.conftest import ROOT
from tests.toys import ENVIRONMENT, Paper, Toy

JOB: dict[str, Any] = {"methods": ("toy",), "tasks": ("t",), "pretrained": "m"}


def job(**changes: Any) -> Job:
    return Job(**JOB | changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tasks": ()}, "at least 1 item"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"batch_size": "auto"}, "valid integer"),
        ({"num_fewshot": -1}, "greater than or equal to 0"),
        ({"limit": 0}, "greater than 0"),
        ({"limit": -5}, "greater than 0"),
        ({"limit": float("nan")}, "finite number"),
        ({"limit": float("inf")}, "finite number"),
        ({"limit": 5, "samples": {"t": [0]}}, "exclude each other"),
        ({"samples": {"t": []}}, "at least 1 item"),
        ({"samples": {"t": [-1]}}, "greater than or equal to 0"),
        ({"samples": {"t": ["x"]}}, "valid integer"),
        ({"seeds": (0, 1, 2)}, "Field required"),
        ({"seeds": (0, -1, 2, 3)}, "greater than or equal to 0"),
        ({"seeds": (0, 2**32, 2, 3)}, "less than 4294967296"),
        ({"method_args": {"count": 1}, "methods": ("toy", "paper")}, "needs exactly one method"),
        ({"method_args": {"count": 1}, "methods": ("dense",)}, "needs exactly one method"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        job(**change)


@pytest.mark.parametrize("name", UNSUPPORTED_MODEL_ARGS)
def test_a_model_argument_that_does_not_work_here_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(
        ValidationError, match=f"model argument '{name}' is not supported: {UNSUPPORTED_MODEL_ARGS[name]}"
    ):
        job(model_args={name: "x"})


def test_method_args_may_go_to_the_one_method_beside_dense() -> None:
    assert job(method_args={"count": 1}, methods=("dense", "toy")).method_args == {"count": 1}


def test_seeds_may_be_left_unset() -> None:
    assert job(seeds=(None, None, 0, 2**32 - 1)).seeds == (None, None, 0, 2**32 - 1)


def test_samples_are_taken_in_the_tasks_order_and_once() -> None:
    assert job(samples={"t": [7, 0, 7, 3]}).samples == {"t": [0, 3, 7]}


def task(name: str = "t", **generation: Any) -> LoadedTask:
    return LoadedTask(name, {name: SimpleNamespace(config=SimpleNamespace(generation_kwargs=generation))}, [], None)


def spec(**changes: Any) -> RunSpec:
    job_changes = changes.pop("job", {})
    parts: dict[str, Any] = {
        "job": job(**job_changes),
        "stack": Stack((Toy(),)),
        "task": task(),
        "model": ModelSource("m", None, Path("m"), "sha256:0"),
        "environment": Environment(**ENVIRONMENT),
        "data": "digest of the data",
        "calibration": Study(("text",), "a text"),
    }
    return RunSpec(**parts | changes)


def environment(**changes: Any) -> Environment:
    return Environment(**ENVIRONMENT | changes)


@pytest.mark.parametrize(
    "change",
    [
        {"stack": Stack((Toy(count=3),))},
        {"stack": Stack((Toy(), Paper()))},
        {"task": task("u")},
        {"data": "another digest"},
        {"calibration": Study(("another text",), "a text")},
        {"calibration": None},
        {"model": ModelSource("m", None, Path("m"), "sha256:1")},
        {"environment": environment(versions={"torch": "3"})},
        {"environment": environment(device_name="another processor")},
        {"environment": environment(python="3.12.0")},
        {"job": {"batch_size": 2}},
        {"job": {"num_fewshot": 0}},
        {"job": {"limit": 5}},
        {"job": {"samples": {"t": [1]}}},
        {"job": {"gen_kwargs": {"top_p": 0.5}}},
        {"job": {"apply_chat_template": True}},
        {"job": {"apply_chat_template": "tool_use"}},
        {"job": {"system_instruction": "Be brief."}},
        {"job": {"seeds": (0, 1234, 1234, 1)}},
        {"job": {"model_args": {"dtype": "float16"}}},
        {"job": {"metadata": {"max_seq_lengths": [4096]}}},
        {"job": {"trust_remote_code": True}},
        {"kernels": KernelPlan(by_layer=[{"64x32 float32": "onednn int8"}])},
        {"kernels": KernelPlan(asked="dense")},  # what is said of the run depends on it
    ],
)
def test_what_determines_a_result_changes_its_id(change: dict[str, Any]) -> None:
    assert spec(**change).id != spec().id


@pytest.mark.parametrize(
    "change",
    [
        {"model": ModelSource("elsewhere/m", None, Path("elsewhere/m"), "sha256:0")},
        {"calibration": Study(("text",), "the same text under another name")},
        {"environment": environment(load_average=(3.0,), cpus=64, ram_bytes=2, os="Linux 7", python="3.11.9")},
        {"job": {"methods": ("other", "toy"), "baseline": False}},
        {"job": {"tasks": ("t", "u")}},
        {"job": {"resume": False}},
        {"job": {"include_path": "tasks"}},
        {"job": {"confirm_run_unsafe_code": True}},
        {"job": {"pretrained": "./m"}},
        {"job": {"device": "cpu"}},
        {"job": {"kernel": "dense"}},  # no method here has it
        {"kernels": KernelPlan(by_place={"0.mlp.up_proj": "onednn int8"}, notes=["a note"], saves=False)},
    ],
)
def test_what_does_not_determine_a_result_leaves_its_id(change: dict[str, Any]) -> None:
    assert spec(**change).id == spec().id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"limit": 5}, {"limit": 5.0}),
        ({"samples": {"t": [0, 1]}}, {"samples": {"t": [1, 0, 1]}}),
        ({"gen_kwargs": {"a": 1, "b": 2}}, {"gen_kwargs": {"b": 2, "a": 1}}),
        ({"model_args": {"a": 1, "b": 2}}, {"model_args": {"b": 2, "a": 1}}),
    ],
)
def test_the_same_in_other_words_has_the_same_id(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert spec(job=one).id == spec(job=other).id


def test_an_id_is_what_a_record_takes() -> None:
    assert len(spec().id) == 12
    assert set(spec().id) <= set("0123456789abcdef")


def test_an_id_is_the_same_in_every_process() -> None:
    ids = {
        subprocess.run(
            [sys.executable, "-c", "from tests.run.test_spec import spec; print(spec().id)"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert ids == {spec().id}


@pytest.mark.parametrize(
    ("job_change", "limited"), [({}, False), ({"limit": 5}, True), ({"samples": {"t": [0]}}, True)]
)
def test_a_part_of_the_documents_is_marked(job_change: dict[str, Any], limited: bool) -> None:
    assert spec(job=job_change).evaluation.limited is limited


@pytest.mark.parametrize(
    ("generation", "random"),
    [
        ({}, False),
        ({"do_sample": False}, False),
        ({"do_sample": True}, True),
        ({"temperature": 0.7}, True),
        ({"temperature": "0.7"}, True),
        ({"temperature": 0.0}, False),
        ({"temperature": 0.7, "do_sample": False}, False),
    ],
)
def test_sampling_is_known_as_lm_eval_knows_it(generation: dict[str, Any], random: bool) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    assert spec(task=task(**generation)).draws_at_random is random
    assert normalize_gen_kwargs(generation)["do_sample"] is random


def test_a_group_draws_at_random_when_one_of_its_tasks_does() -> None:
    both = replace(task(), tasks=task("a").tasks | task("b", do_sample=True).tasks)
    assert spec(task=both).draws_at_random
