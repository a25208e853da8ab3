"""Prepared states on a machine: made once by however many processes, never more than their quota."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.states import QUOTA, States
from harness.contract.study import Study
from harness.core.errors import HarnessError
from tests.toys import Toy, toy_model

TEXT = Study(("text",), "a text")


def test_two_that_need_a_state_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, said, made = threading.Event(), threading.Event(), list[str](), list[int]()

    def prepare(*_: Any) -> Prepared:
        made.append(1)
        begun.set()
        assert go_on.wait(60)
        return Prepared(facts={"count": 4})

    def announce(message: str) -> None:
        said.append(message)
        if "waiting" in message:
            go_on.set()  # only now may the first one end

    monkeypatch.setattr(Toy, "prepare", prepare)
    found: list[Prepared] = []
    workers = [
        threading.Thread(
            target=lambda: found.append(Preparation(States(tmp_path), TEXT, announce).state(Toy(), toy_model()))
        )
        for _ in range(2)
    ]
    workers[0].start()
    assert begun.wait(60)
    workers[1].start()
    for worker in workers:
        worker.join(60)
    assert found[0] == found[1] == Prepared(facts={"count": 4})
    assert made == [1]
    assert said == ["preparing toy on a text", "another process prepares toy: waiting"]


@pytest.fixture
def full(tmp_path: Path) -> States:
    """Three states of about a kilobyte, used one after the other."""
    states = States(tmp_path)
    for age, name in enumerate(("newest", "middle", "oldest")):
        folder = states.folder(name, {"name": name})
        Prepared({"x": torch.randn(256)}).save(folder, {"name": name}, name)
        os.utime(folder, (10_000 - age, 10_000 - age))
    return states


def test_states_are_listed_with_their_size(full: States) -> None:
    assert [state.label for state in full.all()] == ["newest", "middle", "oldest"]
    assert all(1024 < state.size < 4096 for state in full.all())


def test_the_quota_takes_those_that_were_used_longest_ago(full: States) -> None:
    newest, middle, _ = full.all()
    small = States(full.root, newest.size + middle.size)
    assert [state.label for state in small.clear(keep=newest.folder)] == ["oldest"]
    assert [state.label for state in small.all()] == ["newest", "middle"]


def test_a_state_that_was_just_made_stays_even_alone_above_the_quota(full: States) -> None:
    tiny = States(full.root, 1)
    tiny.clear(keep=full.all()[2].folder)
    assert [state.label for state in tiny.all()] == ["oldest"]


def test_a_state_in_use_is_not_cleared(full: States) -> None:
    *_, oldest = full.all()
    with full.locked(oldest.folder, lambda: None):
        assert [state.label for state in States(full.root, 1).clear(keep=full.all()[0].folder)] == ["middle"]


def test_reading_a_state_makes_it_the_newest(tmp_path: Path) -> None:
    states = States(tmp_path)
    for count in (1, 2):
        Preparation(states, TEXT).state(Toy(count=count), toy_model())
    for age, state in enumerate(states.all()):
        os.utime(state.folder, (10_000 - age, 10_000 - age))
    second = states.all()[1].label
    Preparation(states, TEXT).state(Toy(count=int(second.rpartition("=")[2])), toy_model())
    assert states.all()[0].label == second


def test_what_is_cleared_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    preparation = Preparation(States(tmp_path, 1), TEXT, said.append)
    for count in (1, 2):
        preparation.state(Toy(count=count), toy_model())
    assert said[-1] == "the states on this machine fill their quota: cleared toy:count=1, unused longest"
    assert [state.label for state in States(tmp_path).all()] == ["toy:count=2"]


@pytest.mark.parametrize(("text", "bytes_"), [("500MB", 500_000_000), ("2g", 2 * 10**9), ("7", 7), ("1.5 kB", 1500)])
def test_the_quota_is_read_from_the_environment(text: str, bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_STATE_QUOTA", text)
    assert States.of_user().quota == bytes_
    monkeypatch.delenv("HARNESS_STATE_QUOTA")
    assert States.of_user().quota == QUOTA


@pytest.mark.parametrize("text", ["much", "-1GB", "", "1PB"])
def test_a_quota_that_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_STATE_QUOTA", text)
    with pytest.raises(HarnessError, match="expected a size, such as 500MB or 20GB"):
        States.of_user()
