"""``harness run --controls``: what a router must beat, at the share of the layers that it was seen to run."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Harness
from tests.silent import Silent

ROUTER = "dr-llm:questions=6,simulations=6,epochs=1,hidden=4"
FLAGS = ["--task", "tiny_choice", "--limit", "6"]


@pytest.mark.usefixtures("no_survey")
def test_controls_run_the_share_that_the_router_ran(harness: Harness, tiny: list[object]) -> None:
    done = harness("run", "--method", f"{ROUTER},control=-0.9", *FLAGS, *tiny, "--controls", "--json")
    assert done.code == 0, done.err
    records: list[dict[str, Any]] = json.loads(done.out)
    labels = [record["method"]["label"].partition(":")[0] for record in records]
    assert labels in (["dense", "dr-llm", "static-path", "random-skip"], ["dense", "dr-llm", "random-skip"])
    shares = [share(record["trace"]) for record in records]
    assert shares[0] == 1.0
    assert shares[1] < 1.0
    assert shares[-1] == pytest.approx(shares[1], abs=0.13)  # of four layers, on six documents
    assert f"ran {shares[1]:.1%} of the layers; its controls: " in " ".join(done.err.split())
    assert all(record["baseline"] for record in records[1:])


def share(trace: dict[str, Any]) -> float:
    ran: float = (trace["attention_layer_tokens"] + trace["mlp_layer_tokens"]) / 2
    return ran / float(trace["layer_tokens_total"])


def test_a_share_at_the_edge_has_controls_that_can_run() -> None:
    """Four of 30 layers are 0.1333, and that is less than the four that stay where both ends are protected."""
    from harness.methods.routing.dr_llm import DrLLM
    from harness.run.controls import _controls

    trace = SimpleNamespace(attention_layer_tokens=40, mlp_layer_tokens=40, layer_tokens_total=300)
    outline = SimpleNamespace(anatomy=SimpleNamespace(blocks=range(30)))
    session: Any = SimpleNamespace(
        folder=lambda _: SimpleNamespace(record=lambda: SimpleNamespace(trace=trace)),
        plan=SimpleNamespace(outline=lambda _: outline),
        progress=Silent(),
    )
    spec: Any = SimpleNamespace(stack=SimpleNamespace(parts=(DrLLM(),), label="dr-llm"), checkpoint=None)
    assert [*_controls(session, spec)][1] == "random-skip:executed=0.1333,first=0,last=0"


@pytest.mark.usefixtures("no_survey")
def test_what_runs_all_layers_has_no_controls(harness: Harness, tiny: list[object]) -> None:
    done = harness("run", "--method", f"{ROUTER},control=1.0", *FLAGS, *tiny, "--controls")
    assert done.code == 0, done.err
    assert "controls" not in done.err
    assert "random-skip" not in done.out
    assert "costs more than dense: FLOPs" in " ".join(done.out.split())
    assert " real " not in done.out


def test_controls_want_one_process(harness: Harness, tiny: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.core.environment.processes", lambda: 2)
    done = harness("run", "--method", ROUTER, *FLAGS, *tiny, "--controls")
    assert "--controls reads what runs executed, in one process" in done.err


def test_a_task_without_right_answers_trains_no_router(harness: Harness, tiny: list[object], tmp_path: Any) -> None:
    """A random model writes no solution: a sentence, and no row that is dense under another name."""
    done = harness(
        "run", "--method", "dr-llm:questions=10,simulations=2", "--task", "tiny_answer", "--limit", "4", *tiny
    )
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "does the whole model (none) or any path that was tried give the right answer" in said
    assert "no router is trained" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/*/record.json"))
