"""A method that does nothing costs what dense does, in whichever manner it has texts read context first."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from harness.measure.serve import Served
from harness.results.store import Store
from harness.run.session import Session
from tests.silent import Silent


@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    """Does nothing."""

    name = "plain"
    family = Family.CACHE

    @contextmanager
    def attach(self, model, prepared):
        yield


@dataclass(frozen=True, kw_only=True)
class Directing(Plain):
    name = "directing"
    directs_layers = True


@dataclass(frozen=True, kw_only=True)
class Pooling(Plain):
    name = "pooling"
    pools_prompt = True


@dataclass(frozen=True, kw_only=True)
class Stepwise(Plain):
    name = "stepwise"
    phases = frozenset({Phase.DECODE})


@dataclass(frozen=True, kw_only=True)
class AtTokens(Plain):
    name = "at-tokens"
    input_dependent = True


@dataclass(frozen=True, kw_only=True)
class Alone(Plain):
    name = "alone"
    batchable = False


METHODS = [f"{__file__}:{kind.__name__}" for kind in (Plain, Directing, Pooling, Stepwise, AtTokens, Alone)]


@pytest.fixture
def forwards_as_seconds(monkeypatch):
    """Requests take a second for each forward and a tenth of one for each token: latency without noise."""
    from harness.measure import serve as served

    def serve(model, request):
        seconds = []
        count = model.module.register_forward_pre_hook(
            lambda module, args, kwargs: seconds.append(1 + (args or [kwargs["input_ids"]])[0].shape[1] / 10),
            with_kwargs=True,
        )
        try:
            served.serve(model, request)
        finally:
            count.remove()
        return Served((sum(seconds),), (0,))

    monkeypatch.setattr("harness.run.measured.serve", serve)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.usefixtures("forwards_as_seconds", "few_resamples")
def test_nothing_costs_nothing(batch_size, tiny_job, tmp_path, monkeypatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    asked = {"flops", "ideal", "latency"} if batch_size == 1 else {"flops"}
    job = tiny_job(
        methods=tuple(METHODS if batch_size == 1 else METHODS[:-1]),
        tasks=("tiny_choice",),
        limit=4,
        batch_size=batch_size,
        score_mode="context-first",
        costs={"measure": asked, "prompts": 2, "rounds": 2, "warmup": 0, "budget_s": 1.0, "accelerators": ["l4"]},
    )
    for record in Session(job, Store(tmp_path / "runs"), Silent()).execute():
        if record.method.name == "dense":
            continue
        ratios = record.baseline.ratios
        expected = {"flops", "weight_bytes", "kv_bytes", "weights", "kv_peak"}
        if "ideal" in asked:
            expected |= {"ideal_ref", "ideal_own", "latency"}
            for name in ("ideal_requests", "roofline:l4"):
                assert (name in ratios) == (f"baseline.ratios.{name}" not in record.missing)
                assert (name in ratios) == (record.method.name == "plain")
        assert expected <= ratios.keys()
        for name, ratio in ratios.items():
            assert ratio.value == pytest.approx(1.0, rel=1e-6), (record.method.name, name)
