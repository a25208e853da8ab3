"""The script that takes the project's own board, with a harness that only writes down how it was called."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

HARNESS = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
case "$1 $2" in
    "ls methods") echo "$METHODS" ;;
    "run --method")
        [ "$3" != wanda ] || exit 2
        [ "$3" != slow ] || exec sleep 60
        mkdir -p "$RUNS/$3_$5_$3$5"
        echo '{"measured": ["latency"]}' >"$RUNS/$3_$5_$3$5/record.json" ;;
    submit*) mkdir -p "$DATA/$2" ;;
esac
"""
METHODS = [{"name": name, "from": "built in"} for name in ("dense", "wanda", "calm", "mue")]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "awk", "timeout"))), reason="the script wants bash, awk and timeout"
)


@pytest.fixture
def own(tmp_path: Path):
    """Call the script; the words of every call of the harness, and what was said."""
    harness = tmp_path / "harness"
    harness.write_text(HARNESS)
    harness.chmod(0o755)
    calls = tmp_path / "calls"
    environment = os.environ | {
        "HARNESS": str(harness),
        "CALLS": str(calls),
        "METHODS": json.dumps([*METHODS, {"name": "theirs", "from": "outside 1.0"}]),
        "RUNS": str(tmp_path / "runs"),
        "DATA": str(tmp_path / "data"),
    }

    def call(*words: str, **variables: str) -> tuple[list[list[str]], str]:
        calls.unlink(missing_ok=True)
        script = ["bash", str(ROOT / "leaderboard" / "own.sh"), *words]
        done = subprocess.run(
            script, env=environment | variables, capture_output=True, text=True, check=False, timeout=60
        )
        return [line.split() for line in calls.read_text().splitlines()] if calls.exists() else [], done.stderr

    return call


def ran(calls: list[list[str]]) -> list[tuple[str, str]]:
    return [(words[2], words[4]) for words in calls if words[0] == "run"]


def test_methods_in_order_and_others_go_on_after_one_that_fails(own) -> None:
    calls, said = own("--model", "smollm2", "--hours", "1", TASKS="arc_easy_500")
    methods = list(dict.fromkeys(method for method, _ in ran(calls)))
    drops = [f"layer-drop:unit={unit},count={count}" for unit in ("block", "attention", "mlp") for count in (3, 6)]
    assert methods == ["dense", *drops, "static-path", "dr-llm", "int8-dynamic", "wanda", "calm", "mue"]
    assert "left out: wanda on arc_easy_500" in said
    run = next(words for words in calls if words[0] == "run")
    assert run[run.index("--pretrained") + 1] == "smollm2-135m"
    order = [words[0] for words in calls]
    assert order[order.index("run") + 1] == "submit"  # as soon as it is finished


def test_the_bundled_model_without_hours_takes_every_method_on_its_tasks(own) -> None:
    calls, _ = own()
    assert {task for _, task in ran(calls)} == {"pocket_choice", "pocket_math", "pocket_recall_generate", "pocket_text"}
    assert {method for method, _ in ran(calls)} == {"wanda", "calm", "mue"}
    assert calls[-2][:1] == ["validate"]
    assert calls[-1][:2] == ["site", "build"]


def test_no_row_is_begun_that_would_end_after_the_hours(own, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "seconds").write_text("4000 plain arc_easy_500 dense\n90 searched arc_easy_500 dr-llm\n")
    calls, said = own("--model", "smollm2", "--hours", "1", "calm", "dr-llm")
    assert ("calm", "arc_easy_500") not in ran(calls)
    assert ("dr-llm", "arc_easy_500") in ran(calls)
    assert ("calm", "lambada_written_200") in ran(calls)
    assert "no time left for calm on arc_easy_500, about 66 min" in said


def test_a_row_is_stopped_at_the_end_of_the_hours(own, tmp_path: Path) -> None:
    calls, said = own("--model", "smollm2", "--hours", "0.0015", "slow", "calm")
    assert len(ran(calls)) == 1
    assert "left out: slow on arc_easy_500" in said
    seconds = (tmp_path / "runs" / "seconds").read_text().split()
    assert int(seconds[0]) < 20


def test_rows_of_a_gpu_in_a_few_minutes(own) -> None:
    flags = ("--model", "smollm2-135m", "--device", "cuda:0", "--dtype", "bfloat16", "--minutes", "8")
    calls, _ = own(*flags, TASKS="arc_easy_500", FLAGS="--limit 2")
    methods = [method for method, _ in ran(calls)]
    assert methods[:2] == ["layer-drop:unit=block,count=6", "layer-drop:unit=block,count=3"]
    assert set(methods) >= {"int8-weight-only", "fp8", "wanda", "calm", "mue"}
    assert "dense" not in methods  # it comes with the first row of a task
    for words in calls:
        if words[0] == "run":
            assert words[words.index("--device") + 1] == "cuda:0"
            assert words[words.index("--model_args") + 1] == "dtype=bfloat16"
            assert words[words.index("--limit") + 1] == "2"
    again, said = own(*flags[:-1], "0.001", TASKS="arc_easy_500")
    assert ran(again) == []
    assert "no time left for calm on arc_easy_500" in said


def test_another_type_of_the_bundled_model(own) -> None:
    calls, _ = own("--dtype", "bfloat16", "mue", TASKS="pocket_text")
    (words,) = [words for words in calls if words[0] == "run"]
    assert words[words.index("--model_args") + 1] == "dtype=bfloat16"
    assert "--device" not in words


def test_a_wrong_flag_is_said(own) -> None:
    calls, said = own("--seconds", "3")
    assert calls == []
    assert said.startswith("usage: leaderboard/own.sh")
