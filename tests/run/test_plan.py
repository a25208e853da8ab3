"""A plan's units are data: a process that comes to other ids says so."""

from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.errors import HarnessError
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
