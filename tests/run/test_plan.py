"""A plan's units are data: a process that comes to other ids says so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.errors import HarnessError
from harness.model.source import BUNDLED
from harness.run.plan import Plan
from harness.run.spec import Job
from harness.run.units import Unit


def test_a_unit_of_another_machine_is_refused_in_a_sentence() -> None:
    plan = Plan(Job(methods=("dense",), tasks=("t",), pretrained="m"))
    specs: Any = [SimpleNamespace(id="0123456789ab")]
    vars(plan)["specs"] = specs
    assert plan.spec(Unit(kind="quality", task="t", run="0123456789ab")) is specs[0]
    with pytest.raises(HarnessError, match="no run has the id ffffffffffff here"):
        plan.spec(Unit(kind="quality", task="t", run="ffffffffffff"))


@pytest.mark.parametrize(("folder", "said"), [(Path("elsewhere"), 1), (BUNDLED, 0)])
def test_a_task_that_was_made_for_the_bundled_model_is_named_with_another(folder: Path, said: int) -> None:
    plan = Plan(Job(methods=("dense",), tasks=("t",), pretrained="m"))
    of_tasks = {"own": {"version": 1.0, "made_for": "pocket"}, "any": {"version": 1.0}, "plain": None}
    tasks = {name: SimpleNamespace(config=SimpleNamespace(metadata=metadata)) for name, metadata in of_tasks.items()}
    specs: Any = [SimpleNamespace(task=SimpleNamespace(name="t", tasks=tasks), score_mode="lm-eval")] * 2
    vars(plan).update(specs=specs, source=SimpleNamespace(folder=folder))
    assert [note.partition(" was made for")[0] for note in plan.notes] == ["own"] * said
