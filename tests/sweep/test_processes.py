"""Real workers: six runs on two processes of which one is killed, and a small sweep on a Ray cluster."""

import secrets
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.core.errors import HarnessError
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from harness.sweep.local import Local
from harness.sweep.on_ray import Ray
from tests.silent import Silent
from tests.sweep.conftest import Swept
from tests.sweep.test_sweep import kept

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
        assert kept(swept.store.find(record.id)) == kept(whole.store.find(record.id))


def test_two_runs_on_a_ray_cluster(
    sweep: Callable[..., Swept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'efficiency-harness[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray  # it reads the token's mode once

    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short name: sockets have long ones
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=78_643_200,
            _temp_dir=folder,
            _node_ip_address="127.0.0.2",
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            launcher = Ray.joined("auto", tmp_path / "runs", None, {})
            assert launcher.workers == 1
            with pytest.raises(HarnessError, match="no machine of the Ray cluster has num_cpus=64"):
                Ray.joined("auto", tmp_path / "runs", None, {"num_cpus": 64})
            swept = sweep(launcher=launcher, method="layer-drop:count=1")
        finally:
            ray.shutdown()
    assert swept.counts == {"done": 2}
    assert all(item.record().baseline for item in swept.store.folders() if item.record().method.name != "dense")
