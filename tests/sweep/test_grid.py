"""A grid of many seeds: what does not depend on a seed is found once, and no plan outlives the next."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.evaluate.tasks import TaskLoader
from harness.results.store import Store
from harness.run.plan import Plan
from harness.run.spec import Job
from harness.sweep.grid import Grid
from harness.sweep.request import asked
from tests.sweep.conftest import Heard


def told(plan: Plan) -> list[Any]:
    """What the runs of a plan are told apart by, and the first prompt of each."""
    prompts = [leaf.fewshot_context(leaf.eval_docs[0], 2) for s in plan.specs for leaf in s.task.tasks.values()]
    return [[(spec.id, spec.calibration and spec.calibration.fingerprint) for spec in plan.specs], prompts]


@pytest.mark.parametrize("method", ["layer-drop:count=1", "static-path:skip=1,questions=4"])
def test_a_plan_for_another_seed_is_as_one_that_is_made_anew(method: str, tiny_job: Callable[..., Job]) -> None:
    def job(seed: int) -> Job:
        seeds = (seed,) * 4
        return tiny_job(methods=(method,), tasks=("tiny_choice", "tiny_letters"), limit=4, seeds=seeds)

    first = Plan(job(1))
    before = told(first)
    second = first.reseeded(job(2))
    after = told(second)
    assert after == told(Plan(job(2)))
    assert after != before
    assert told(second.reseeded(job(1))) == before


def test_a_task_is_loaded_once_for_all_seeds(
    tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], TaskLoader.load
    monkeypatch.setattr(TaskLoader, "load", lambda *args: (loads.append(args), load(*args))[1])
    settings = {"pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "task": "tiny_letters", "limit": 4}
    request = asked({**settings, "method": "layer-drop:count=1..2", "seeds": "1..20", "device": device})
    grid = Grid(request, Store(tmp_path), Heard())
    grid.check()
    ids, specs = set(), []
    for place in grid.places():
        ids.add(place.spec.id)
        specs.append(weakref.ref(place.spec))
        if len(specs) % 15 == 0:
            gc.collect()
            assert sum(spec() is not None for spec in specs) <= 6  # of this job and the one before
    assert len(ids) == grid.total == 60
    assert len(loads) == 1
