"""How long a job will take is said beforehand, of what it will really ask of the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.results.store import Store
from harness.run import estimate
from harness.run.estimate import TOKENS, Speed
from harness.run.session import Session
from harness.run.spec import CostPlan, Job
from tests.silent import Silent


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes a second for a token that it reads, and ten for one that it writes."""
    monkeypatch.setattr(Speed, "timed", classmethod(lambda *_: Speed(1.0, 10.0)))
    monkeypatch.setattr(estimate, "kept_profile", lambda _: None)


@pytest.mark.parametrize("mode", [None, "context-first"])
def test_what_is_asked_is_what_is_read(tiny_job: Callable[..., Job], tmp_path: Path, mode: str | None) -> None:
    """Tokens that the model will read, against those that it read."""
    job = tiny_job(methods=("dense",), tasks=("tiny_choice",), limit=4, score_mode=mode)
    session = Session(job, Store(tmp_path), Silent())
    guess = session.estimate()
    (record,) = session.execute()
    [(load, _)] = guess.scoring.values()
    lines = list(session.folder(session.plan.specs[0]).samples())
    assert load.requests == sum(len(row["requests"]) for line in lines for row in line["rows"])
    read = sum(line["prompt_tokens"] for line in lines)
    assert load.read == pytest.approx(read, rel=0.1)  # of an answer, the last token is not read
    assert session.estimate() is None
    assert record.scores


@pytest.mark.usefixtures("slow")
def test_parts_are_added_up(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    costs = CostPlan(measure=frozenset({"flops", "ideal", "latency"}), prompts=2, rounds=2, warmup=0, budget_s=7)
    job = tiny_job(
        methods=("layer-drop:count=1,samples=3,length=32", "wanda:samples=2,length=16"),
        tasks=("tiny_answer",),
        limit=3,
        calibration="bundled",
        costs=costs,
    )
    session = Session(job, Store(tmp_path), Silent())
    guess = session.estimate()
    [(load, seconds)] = guess.scoring.values()
    assert load.written > 0
    assert seconds == load.read + 10 * load.written
    assert [seconds for _, seconds in guess.preparing.values()] == [3 * 32, 2 * 2 * 16]
    assert guess.scores_s == 3 * seconds + 96 + 64
    request_s = load.read / 3 + 10 * min(load.written / 3, costs.new_tokens)
    assert guess.costs_s == pytest.approx(7 + 4 * request_s * 2 * (2 + 1))
    assert "3 runs" in guess.lines()[0]
    progress = Silent()
    Session(job, Store(tmp_path), progress).evaluate()
    assert any("then costs in about" in line for line in progress.said)
    assert any(title.startswith("preparing wanda") for title in progress.titles)
    again = Session(job, Store(tmp_path / "again"), Silent()).estimate()
    assert not again.preparing  # their states are kept


def test_what_cannot_be_told_keeps_nothing_from_running(
    tiny_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An estimate changes no answer either, though answers are drawn."""
    drawn = tiny_job(
        methods=("dense",), tasks=("tiny_answer",), limit=3, gen_kwargs={"do_sample": True, "temperature": 1.0}
    )
    answers = []
    for folder in ("with", "without"):
        progress = Silent()
        session = Session(drawn, Store(tmp_path / folder), progress)
        session.execute()
        answers.append(list(session.folder(session.plan.specs[0]).samples()))
        monkeypatch.setattr(Speed, "timed", classmethod(lambda *_: 1 / 0))
    assert answers[0] == answers[1]
    assert any(line.startswith("how long it will take cannot be told: ZeroDivision") for line in progress.said)
    assert Session(drawn, Store(tmp_path / "again"), progress).estimate() is None


def test_timing_leaves_the_model_and_the_random_numbers_as_they_were(
    tiny_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = tiny_job(methods=("dense",), tasks=("tiny_letters",), limit=2)
    model = Session(job, Store(tmp_path), Silent()).lm.decoder
    module, lengths, tokens = model.module, list[int](), list[int]()
    module.config.max_position_embeddings = 8  # fewer than are timed of other models

    def watch(*args: Any) -> None:
        lengths.append(args[-1].logits.shape[1])
        tokens.append(args[-1].logits.shape[:2].numel())
        torch.rand(1)  # a model that draws

    module.register_forward_hook(watch)
    random, generation, names = torch.get_rng_state(), module.generation_config.to_json_string(), set(vars(module))
    Speed.timed(model, 1, 40)
    assert max(lengths) == 8
    module.config.max_position_embeddings = 64
    tokens.clear()
    Speed.timed(model, 10**9, 40)  # a batch size may be any number
    assert 0 < max(tokens) <= TOKENS
    module.config.max_position_embeddings = 8
    assert torch.equal(torch.get_rng_state(), random)
    assert (module.generation_config.to_json_string(), set(vars(module))) == (generation, names)


def test_a_real_speed_is_of_both_kinds(tiny_job: Callable[..., Job], tmp_path: Path) -> None:
    job = tiny_job(methods=("dense",), tasks=("tiny_letters",), limit=2)
    progress = Silent()
    session = Session(job, Store(tmp_path), progress)
    speed = Speed.timed(session.lm.decoder, rows=2, length=40)
    assert speed.read_s > 0
    assert speed.write_s > 0
    session.execute()
    assert not any("about" in line for line in progress.said)  # a short job needs no words
