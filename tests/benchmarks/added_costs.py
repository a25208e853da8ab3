"""Whether what routers, exit checks and key-value fills are idealized to take is what they take, on the bundled model.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.added_costs [--profile 60] [--rounds 15]

Routers are drawn at random, exits are told when to happen: the work is that of trained ones. Dense and the methods take
turns on texts and generations as long as those of the pocket tasks, timed by the clock of the profile; the shortest of
the rounds counts. Prints each time over dense's: measured, idealized with what the method adds as timed in place, and
with the profile's generic costs.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.contract.decoder import Decoder
from harness.measure.clock import clock_for, seconds
from harness.measure.ideal import NOTHING_ADDED, ideal_runtime
from harness.measure.interleave import Participant
from harness.measure.profiling import measure_profile
from harness.measure.serve import CostRequest, serve
from harness.measure.shape import ModelShape
from harness.methods.routing.programs import Predictor, ProgramController
from harness.methods.routing.router import RouterController, new_router
from harness.model.layouts import dissect
from harness.model.paths.controller import Controller
from harness.model.paths.layer_path import routed
from harness.model.source import BUNDLED
from harness.model.tokens.confidence import Confidence, Saturation, SoftmaxResponse
from harness.model.tokens.exits import EarlyExit
from harness.model.tokens.token_depth import token_depth
from harness.run.measured import Serving
from harness.run.spec import CostPlan
from tests.silent import Silent

TEXTS = ((30, 0), (45, 0), (60, 0), (75, 0), (90, 0), (120, 0))
GENERATIONS = ((60, 24), (90, 24), (120, 32))
"""Tokens read and written."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = bundled()
    profile = measure_profile(model, Silent(), arguments.profile)
    held_out = profile.held_out
    print(f"profile: {profile.label}, held out {held_out.mape:.1%}, speed-ups {held_out.speedup_error:.1%}")
    for kind, lengths in (("scored", TEXTS), ("generated", GENERATIONS)):
        requests = [CostRequest("t", n, tuple(range(3, 3 + n)), n - 8, new) for n, new in lengths]
        times, ideal = observed(model, profile, requests, arguments.rounds)
        for name in list(times)[1:]:
            measured, added, generic = (
                float(np.exp(np.log(np.array(of[name]) / np.array(of["dense"])).mean())) for of in (times, *ideal)
            )
            print(f"{kind}: {name}: measured {measured:.2f}x, idealized {added:.2f}x, by generic costs {generic:.2f}x")


def bundled() -> Decoder:
    """The bundled model."""
    module = AutoModelForCausalLM.from_pretrained(BUNDLED).eval().requires_grad_(False)
    return Decoder(module, AutoTokenizer.from_pretrained(BUNDLED), dissect(module), "bundled")


def observed(model, profile, requests, rounds):
    """Seconds of each way, measured, and idealized with its own added costs and with generic ones: [requests] each."""
    clock, every = clock_for(model.device), ways(model)
    rounds_s: dict[str, list[list[float]]] = {name: [[] for _ in requests] for name in every}
    for number in range(rounds + 1):
        for name, attach in every.items():
            with attach():
                for place, request in enumerate(requests):
                    took = seconds(clock, lambda request=request: serve(model, request))
                    if number:  # the first warms up
                        rounds_s[name][place].append(took)
    times = {name: [min(each) for each in measured] for name, measured in rounds_s.items()}
    own, generic = dict[str, list[float]](), dict[str, list[float]]()
    serving = Serving(model, requests, CostPlan(), Silent(), "t")
    for name, attach in every.items():
        participant = Participant(name, attach)
        with attach():
            shape, adds = ModelShape.of(model), bool(model.auxiliaries)
        added = serving.added(participant) if adds else NOTHING_ADDED
        traces = serving.traces(participant)
        own[name] = [ideal_runtime(profile, shape, trace, added).total for trace in traces]
        generic[name] = [ideal_runtime(profile, shape, trace).total for trace in traces]
    return times, (own, generic)


def ways(model: Decoder) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """Dense, and methods that add something."""
    width, layers = model.config.hidden_size, len(model.anatomy.blocks)
    drawn = torch.Generator().manual_seed(0)
    routers = RouterController(model, [new_router(width, 128, drawn) for _ in range(layers)], 8, 0.5)
    torch.manual_seed(0)
    predictor = ProgramController(model, Predictor(width, 64, layers), 0.0)

    @contextmanager
    def directed(controller: Controller) -> Iterator[None]:
        with routed(model, controller), model.assisted(controller.auxiliaries):
            yield

    def exiting(confidence: Confidence, at: int) -> AbstractContextManager[None]:
        checked = range(3, layers - 1, 4)
        policy = EarlyExit(model, confidence, lambda layer, _: -1.0 if layer >= at else 2.0, checked)
        return token_depth(model, policy)

    return {
        "dense": nullcontext,
        "routers in every layer, none skipped": lambda: directed(routers),
        "a predictor of paths": lambda: directed(predictor),
        "exits by the head, none taken": lambda: exiting(SoftmaxResponse(model), layers),
        "exits by the head, after a third": lambda: exiting(SoftmaxResponse(model), 3),
        "exits by saturation, after two thirds": lambda: exiting(Saturation(width), layers - 5),
    }


if __name__ == "__main__":
    main()
