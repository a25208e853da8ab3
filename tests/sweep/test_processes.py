"""Real workers: six runs on two processes of which one is killed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from harness.sweep.local import Local
from tests.silent import Silent
from tests.sweep.conftest import Swept
from tests.sweep.records import timeless

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_survey")]


def test_a_killed_worker_changes_no_record(
    sweep: Callable[..., Swept], tiny_job: Callable[..., Job], failing: str, tmp_path: Path
) -> None:
    methods, tasks = (f"{failing}:how=kill,once=true", "layer-drop:count=1"), ("tiny_letters", "tiny_choice")
    swept = sweep(launcher=Local(tmp_path / "runs", 2), method=list(methods), task=list(tasks))
    assert swept.counts == {"done": 6}
    assert sum("killed by SIGKILL" in sentence for sentence in swept.heard.said) == 1
    whole = Session(tiny_job(methods=methods, tasks=tasks, limit=4), Store(tmp_path / "whole"), Silent())
    for record in whole.execute():
        assert timeless(swept.store.find(record.id)) == timeless(whole.store.find(record.id))
