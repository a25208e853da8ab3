"""The command line of measurement: refusals in sentences, comparisons for people and as JSON, what doctor says."""

import pytest

from tests.conftest import Harness


def test_two_runs_are_compared(harness: Harness, tiny: list[object]) -> None:
    runs = harness("run", *tiny, "-t", "tiny_choice", "-m", "layer-drop:layers=1", "--json").json()
    ids = [run["id"] for run in runs]
    done = harness("compare", *ids)
    assert done.code == 0
    for words in (
        "layer-drop:",
        "B - A [95 %]",
        "acc_norm",
        "24 documents of both",
        "FLOPs",
        "counted",
        "answers differ",
    ):
        assert words in done.out
    assert all(len(line) <= 100 for line in done.out.splitlines())
    found = harness("compare", *ids, "--json").json()
    assert found["costs"]["ratios"]["flops"]["value"] < 1
    assert found["scores"][0]["vs_baseline"] == runs[1]["scores"][0]["vs_baseline"]
    strict, loose = (harness("compare", *ids, "--json", "--margin", margin).json() for margin in (0, 1))
    assert strict["scores"][0]["vs_baseline"]["noninferior"] is False
    assert loose["scores"][0]["vs_baseline"]["noninferior"] is True


def test_unlike_runs_are_refused_by_what_differs(harness: Harness, tiny: list[object]) -> None:
    asked = (["-t", "tiny_choice"], ["-t", "tiny_letters"], ["-t", "tiny_choice", "-L", 3])
    ids = [harness("run", *tiny, *flags, "--json").json()[0]["id"] for flags in asked]
    assert "task: 'tiny_choice' and 'tiny_letters'" in harness("compare", *ids[:2]).sentence
    assert "limit: None and 3.0" in harness("compare", ids[0], ids[2]).sentence
    assert "f" * 12 in harness("compare", ids[0], "f" * 12).sentence


def test_wrong_names_are_answered(harness: Harness, tiny: list[object]) -> None:
    flags = ["run", *tiny, "-t", "tiny_choice"]
    assert "latency" in harness(*flags, "--measure", "latncy").sentence
    assert "h100-sxm" in harness(*flags, "--accelerator", "h100-smx").sentence


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_a_budget_that_is_none_is_refused_in_a_sentence(budget: str, harness: Harness, tiny: list[object]) -> None:
    for command in (["run", *tiny, "-t", "tiny_choice"], ["profile"]):
        sentence = harness(*command, "--cost_budget", budget).sentence
        assert f"--cost_budget {budget}: expected a number of seconds above 0" in sentence


def test_doctor_says_what_can_be_measured(harness: Harness) -> None:
    out = harness("doctor").out
    for words in ("idealized time", "roofline", "latency", "energy", "memory", "counted", "modelled"):
        assert words in out
    for words in ("instruction sets", "torch uses", "bfloat16", "float16", "int8-dynamic", "block-sparse"):
        assert words in out
