"""Workers of a real Ray cluster on this machine: the same records as of one process, also when a machine goes away.

Ray is not among the packages that the tests install: ``pip install ray``, and name this file with ``-m slow``.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.core.errors import HarnessError
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from harness.sweep.on_ray import Ray
from tests.silent import Silent
from tests.sweep.cluster import IP, Cluster, cluster
from tests.sweep.conftest import Swept
from tests.sweep.records import timeless

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_survey"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'efficiency-harness[ray]'"),
]


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """A head and two workers."""
    with cluster(workers=2) as started:
        yield started


@contextmanager
def joined(machines: Cluster, results: Path, workers: int) -> Iterator[Ray]:
    """This process as the driver, once so many workers are there."""
    import ray

    ray.init(machines.address, _node_ip_address=IP, log_to_driver=False, logging_level="ERROR")
    try:
        while sum(node["Alive"] for node in ray.nodes()) < workers + 1:
            time.sleep(0.2)
        yield Ray.joined(machines.address, results, workers, {})
    finally:
        ray.shutdown()


def test_two_runs(machines: Cluster, sweep: Callable[..., Swept], tmp_path: Path) -> None:
    with joined(machines, tmp_path / "runs", workers=2) as launcher:
        assert launcher.threads in (None, 1)
        with pytest.raises(HarnessError, match="no machine of the Ray cluster has num_cpus=64"):
            Ray.joined(machines.address, tmp_path / "runs", None, {"num_cpus": 64})
        with pytest.raises(HarnessError, match="has room for 2 workers with num_cpus=1: give --workers 2"):
            Ray.joined(machines.address, tmp_path / "runs", 3, {})
        swept = sweep(launcher=launcher, method="layer-drop:count=1")
    assert swept.counts == {"done": 2}
    assert all(item.record().baseline for item in swept.store.folders() if item.record().method.name != "dense")


def test_a_machine_that_goes_away_changes_no_record(
    machines: Cluster, sweep: Callable[..., Swept], tiny_job: Callable[..., Job], failing: str, tmp_path: Path
) -> None:
    methods, tasks = (f"{failing}:how=machine,once=true", "layer-drop:count=1"), ("tiny_letters", "tiny_choice")
    with joined(machines, tmp_path / "runs", workers=2) as launcher:
        swept = sweep(launcher=launcher, method=list(methods), task=list(tasks))
    assert swept.counts == {"done": 6}
    assert sum("the worker was lost" in sentence for sentence in swept.heard.said) == 1
    whole = Session(tiny_job(methods=methods, tasks=tasks, limit=4), Store(tmp_path / "whole"), Silent())
    for record in whole.execute():
        assert timeless(swept.store.find(record.id)) == timeless(whole.store.find(record.id))


def test_a_cluster_that_is_not_there_is_refused_at_once(machines: Cluster, tmp_path: Path) -> None:
    """The fixture is asked for as Ray reads the cluster's token once, when it is imported."""
    with pytest.raises(HarnessError, match=r"no Ray cluster can be joined at 127\.0\.0\.2:9 \(.*refused\)"):
        Ray.joined("127.0.0.2:9", tmp_path, None, {})
