"""A search on the tiny model: every candidate a run of the store, killed and gone on with, beside its controls."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import LostWorkerError
from harness.results.budgets import budgets
from harness.results.store import Store
from harness.sweep import local
from harness.sweep.board import Board
from harness.sweep.items import Item, Outcome
from harness.sweep.tuning.documents import dealt
from harness.sweep.tuning.kept import Kept
from harness.sweep.tuning.metrics import KNOWN, Metrics
from harness.sweep.tuning.space import space
from harness.sweep.tuning.trials import Trials
from harness.sweep.tuning.tuning import Tuned, Tuning
from tests.conftest import Harness
from tests.sweep.conftest import Heard, Inline, Threads

pytestmark = pytest.mark.usefixtures("no_survey", "optuna")


class KilledError(Exception):
    """Ends a search in the middle of it."""


@dataclass
class Screen(Heard):
    """Watches as well."""

    @contextmanager
    def watching(self, board: Board) -> Iterator[None]:
        yield


@dataclass
class Dying(Threads):
    """Workers that are killed with the process that uses them, after so many items."""

    after: int = 10**9

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator[Inline]:
        with super().worker(number, alone=alone) as worker:
            carry_out = worker.carry_out

            def dying(item: Item) -> Outcome:
                if len(self.answered) >= self.after:
                    raise KilledError
                return carry_out(item)

            worker.carry_out = dying  # type: ignore[method-assign]
            yield worker


Tuner = Callable[..., Tuned]


@pytest.fixture
def tune(tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, device: str) -> Tuner:
    """Search on the tiny model."""

    def run(launcher: Threads, written: str = "layer-drop:layers=0|1|2,magnitude:sparsity=0.5|0.9") -> Tuned:
        settings = {"pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "device": device}
        given = {**settings, "task": "tiny_last", "batch_size": 4}
        metrics = Metrics.asked(["loss", "bytes"], budgets(["flops=0.99"], KNOWN[1:]))
        trials = Trials(given, metrics.measured, Store(launcher.results), Kept(launcher), Screen())
        documents = dealt(trials.plan(["dense"]).specs[0].task, 6, 12, 0)
        return Tuning(space(written, 4), metrics, documents, trials, evaluations=5, population=3).run()

    return run


def shown(tuned: Tuned) -> Any:
    """All that came of a search, but for times."""
    return (
        [(each.text, each.ways, each.validation, each.test, each.record and each.record.id) for each in tuned.chosen],
        tuned.ways,
        tuned.reference,
        tuned.correlations,
        tuned.failures,
    )


def test_a_killed_search_goes_on_computes_nothing_twice_and_ends_alike(tune: Tuner, tmp_path: Path) -> None:
    whole = Threads(tmp_path / "whole")
    tuned = tune(whole)
    assert shown(tuned) == shown(tune(again := Threads(tmp_path / "whole")))
    assert not again.answered
    items = list[str]()
    for after in (3, 9):
        with pytest.raises(KilledError):
            tune(dying := Dying(tmp_path / "killed", after=after))
        items += [item.name for item, _ in dying.answered if item.kind == "quality"]
    last = Threads(tmp_path / "killed")
    assert shown(tune(last)) == shown(tuned)
    items += [item.name for item, _ in last.answered if item.kind == "quality"]
    made = [item.name for item, _ in whole.answered if item.kind == "quality"]
    assert sorted(items) == sorted(made)
    ids = [{folder.id for folder in Store(tmp_path / name).folders()} for name in ("whole", "killed")]
    assert ids[0] == ids[1]


def test_candidates_are_chosen_within_budgets_and_reported_on_other_documents(tune: Tuner, tmp_path: Path) -> None:
    tuned = tune(Threads(tmp_path / "runs"), "layer-drop:layers=0|1|9,magnitude:sparsity=0.5|0.9")
    assert {way.name: way.evaluations for way in tuned.ways} == {"search": 5, "random": 5, "uniform": 5}
    assert any("layers=9" in text for text in tuned.failures)
    assert tuned.chosen
    for each in tuned.chosen:
        assert each.validation[2] <= 0.99
        assert "layer-drop" in each.text
        assert each.record is not None
        assert not isinstance(each.test, str)
        change = each.record.scores[0].vs_baseline
        assert change is not None
        assert each.test[0].value == pytest.approx(change.difference)  # perplexity: less is better
        (chosen_on,) = [
            record.evaluation.samples
            for folder in Store(tmp_path / "runs").folders()
            if folder.finished
            and (record := folder.record()).method.fingerprint == each.record.method.fingerprint
            and record.id != each.record.id
        ]
        assert not set(chosen_on["tiny_last"]) & set(each.record.evaluation.samples["tiny_last"])  # type: ignore[index]


def test_workers_stay_until_they_are_lost(tmp_path: Path) -> None:
    started = list[tuple[int, bool]]()

    @dataclass
    class Workers(Threads):
        ended: list[tuple[int, bool]] = field(default_factory=list)

        @contextmanager
        def worker(self, number: int, *, alone: bool = False) -> Iterator[Any]:
            started.append((number, alone))
            yield Lost()
            self.ended.append((number, alone))

    class Lost:
        def carry_out(self, item: Item) -> Outcome:
            raise LostWorkerError("it went")

        def stop(self) -> None:
            pass

    kept = Kept(Workers(tmp_path))
    for _ in range(2):
        with kept.worker(0):
            pass
    assert started == [(0, False)]
    with kept.worker(0) as worker, pytest.raises(LostWorkerError):
        worker.carry_out(None)  # type: ignore[arg-type]
    with kept.worker(0):
        pass
    assert started == [(0, False)] * 2
    with kept.worker(0, alone=True):
        assert kept.launcher.ended == [(0, False)] * 2  # type: ignore[attr-defined]
    kept.close()
    assert kept.launcher.ended[-1] == (0, True)  # type: ignore[attr-defined]


def test_the_command_shows_the_front_and_says_what_is_wrong(
    harness: Harness, tiny: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local.Local, "here", lambda results, *_: Threads(results))
    asked = ["tune", *tiny, "--task", "tiny_last", "--space", "layer-drop:layers=0|1", "--limit", "8", "--evals", "2"]
    plan = harness(*asked, "--dry_run", "--json")
    assert json.loads(plan.out)["candidates"] == 2
    assert json.loads(plan.out)["validation_documents"] == 4
    assert not (tmp_path / "runs").exists()
    assert "chosen on 4 documents, reported on 4 others" in harness(*asked, "--dry_run").out
    done = harness(*asked, "--objectives", "loss,flops", "--no_controls", "--json")
    result = json.loads(done.out)
    assert result["front"]
    assert result["ways"].keys() == {"search"}
    for each in result["front"]:
        assert each["command"].startswith("harness run --method layer-drop:")
        assert 0 < each["test"]["flops"]["value"] < 1
    table = harness(*asked, "--objectives", "loss,flops", "--no_controls")
    assert table.code == 0
    assert "hypervolume" in table.out
    file = tmp_path / "search.yaml"
    file.write_text(
        "space: [layer-drop:layers=0|1]\nobjectives: [loss, flops]\ncontrols: false\nbudget: {flops: 0.1}\n"
    )
    nothing = harness(*[each for each in asked if each not in ("--space", "layer-drop:layers=0|1")], file)
    assert nothing.code == 1, nothing.err
    assert "no candidate was measured within the budgets" in nothing.out
    for words, sentence in (
        (["--budget", "latancy=0.5"], "Did you mean 'latency'"),
        (["--objectives", "flops"], "add loss"),
        (["--space", "layr-drop"], "unknown method 'layr-drop'"),
        (["--limit", "3"], "each part needs 2"),
        (["--task", "tiny_choice"], "for one task"),
    ):
        wrong = harness(*asked, *words)
        assert wrong.code == 2
        assert sentence in wrong.err, wrong.err


def test_without_optuna_there_is_a_sentence(
    harness: Harness, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    done = harness("tune", *tiny, "--task", "tiny_last", "--space", "layer-drop:layers=0|1")
    assert done.code == 2
    assert done.err == "harness: harness tune needs Optuna: pip install 'efficiency-harness[tune]'\n"
