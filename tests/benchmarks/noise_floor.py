"""Does the interval of a latency ratio hold? Dense against dense, and against dense made 10 % slower, many times.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.noise_floor

Prints in how many of 20 repetitions the interval of dense against dense contains 1, and in how many a planted 10 %
slowdown of every forward is found.
"""

import time
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np

from harness.measure.interleave import Participant, interleave
from harness.measure.serve import CostRequest, serve
from harness.results.stats.ratio import paired_ratio
from harness.testing.tiny import tiny_decoder
from tests.silent import Silent

REPETITIONS, SLOWDOWN = 20, 0.10


@contextmanager
def slower(model):
    """Every forward takes a tenth longer, by waiting."""
    module = model.module
    began = []
    before = module.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))

    def wait(*_):
        until = time.perf_counter() + SLOWDOWN * (time.perf_counter() - began.pop())
        while time.perf_counter() < until:
            pass

    after = module.register_forward_hook(wait)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def main() -> None:
    model = tiny_decoder("llama", layers=12, hidden_size=256, intermediate_size=768)
    requests = [
        CostRequest("t", n, tuple(range(3, 3 + n)), n, new)
        for n, new in zip(range(20, 140, 10), [0, 8] * 6, strict=True)
    ]
    contains = found = 0
    for seed in range(REPETITIONS):
        attachers = {"dense": nullcontext, "repeat": nullcontext, "slower": lambda: slower(model)}
        participants = [Participant(name, attach) for name, attach in attachers.items()]
        turns = interleave(partial(serve, model), participants, requests, rounds=5, warmup=1, seed=seed, bar=Silent())
        dense, repeat, slowed = (
            np.array([[served.end_to_end for served in rounds] for rounds in turns.served[participant]])
            for participant in participants
        )  # [requests, rounds] each
        same, slow = paired_ratio(dense, repeat), paired_ratio(dense, slowed)
        contains += not same.decided
        found += slow.low > 1
        print(
            f"{same.value:.3f} [{same.low:.3f}, {same.high:.3f}]   {slow.value:.3f} [{slow.low:.3f}, {slow.high:.3f}]"
        )
    print(f"dense against dense contains 1 in {contains} of {REPETITIONS}; the slowdown is found in {found}")


if __name__ == "__main__":
    main()
