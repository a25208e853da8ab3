"""Idealized times on a device whose time is launches: every operation takes as long, whatever it works on.

The clock is scripted: it moves by ``LAUNCH`` with each operation that has a kernel, and by ``WAIT`` where the host
reads a result.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.contract.decoder import Decoder
from harness.measure import added, clock, serve
from harness.measure.interleave import Participant
from harness.measure.profile import CostProfile
from harness.measure.profiling import measure_profile
from harness.measure.serve import CostRequest
from harness.measure.shape import ModelShape
from harness.methods.routing.router import RouterController, new_router
from harness.model.paths.layer_path import routed
from harness.model.tokens.confidence import Saturation
from harness.model.tokens.exits import EarlyExit
from harness.model.tokens.token_depth import token_depth
from harness.run.measured import Serving
from harness.run.modelled import Profiles, request_times
from harness.run.spec import CostPlan
from harness.testing.tiny import tiny_decoder
from tests.silent import Silent

LAYERS = 8
LAUNCH, WAIT = 1e-5, 5e-5
REQUESTS = [CostRequest("t", index, tuple(range(3, 15 + 4 * index)), 12 + 4 * index, 8) for index in range(3)]


class Launches(TorchDispatchMode):
    """A device's clock, in seconds."""

    now = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.now += LAUNCH
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny_decoder("llama", layers=LAYERS)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launches]:
    read = torch.Tensor.tolist

    def waits(tensor: torch.Tensor) -> Any:
        launches.now += WAIT
        return read(tensor)

    with pytest.MonkeyPatch.context() as patch, Launches() as launches:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))  # this profile is nobody else's
        patch.setattr(torch.Tensor, "tolist", waits)
        patch.setattr(clock, "mark", lambda _: launches.now)
        patch.setattr(added, "mark", lambda _: launches.now)
        patch.setattr(serve, "time", SimpleNamespace(perf_counter=lambda: launches.now))
        yield launches


@pytest.fixture(scope="module")
def profile(model: Decoder, device: Launches) -> CostProfile:
    return measure_profile(model, Silent(), budget_s=1e-9)


@contextmanager
def routers(model: Decoder) -> Iterator[None]:
    """A router at every layer, which skips every second one."""
    drawn = torch.Generator().manual_seed(0)
    routers = [new_router(32, 8, drawn) for _ in range(LAYERS)]
    for layer, router in enumerate(routers):
        router[-1].bias.copy_(torch.tensor([9.0, 0.0, 0.0] if layer % 2 else [0.0, 9.0, 0.0]))
    controller = RouterController(model, routers, windows=3, control=0.5)
    with routed(model, controller), model.assisted(controller.auxiliaries):
        yield


def exits(model: Decoder) -> AbstractContextManager[None]:
    """Every written token leaves after half of the layers, which are checked at that place alone."""
    return token_depth(model, EarlyExit(model, Saturation(32), lambda *_: -1.0, {LAYERS // 2 - 1}))


@pytest.mark.parametrize("attach", [routers, exits])
def test_what_a_method_adds_is_priced_as_what_it_costs_there(
    model: Decoder,
    device: Launches,
    profile: CostProfile,
    attach: Callable[[Decoder], AbstractContextManager[None]],
) -> None:
    serving = Serving(model, REQUESTS, CostPlan(), Silent(), "t")
    dense = [serve.serve(model, request).end_to_end for request in REQUESTS]
    participant = Participant("m", lambda: attach(model))
    with participant.attached():
        seconds = [serve.serve(model, request).end_to_end for request in REQUESTS]
        shape = ModelShape.of(model)
    prices = serving.added(participant)
    assert prices.error is not None
    assert prices.error < 0.1
    of_method = request_times(Profiles(profile, profile, prices), shape, serving.traces(participant)).seconds
    of_dense = request_times(
        Profiles(profile, profile), shape, serving.traces(Participant("dense", lambda: attached_nothing()))
    ).seconds
    for ideal, ideal_dense, measured, measured_dense in zip(of_method, of_dense, seconds, dense, strict=True):
        assert ideal / ideal_dense == pytest.approx(measured / measured_dense, rel=0.1)


@contextmanager
def attached_nothing() -> Iterator[None]:
    yield


def test_time_does_not_grow_with_the_work(profile: CostProfile) -> None:
    one, many = (profile.prefill.mlp_seconds(tokens) for tokens in (1, 16))
    assert many == pytest.approx(one, rel=0.01)
    assert profile.fill.per_token == pytest.approx(0, abs=LAUNCH / 100)
    assert profile.router.base >= WAIT


def test_a_router_is_priced_with_reading_its_choice(profile: CostProfile) -> None:
    assert profile.router.base == pytest.approx(2 * LAUNCH + WAIT, rel=0.3)
