"""How good a cost profile is on this machine, and whether its speed-ups are those that methods really reach.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.cost_profile [--layers 12 --width 512]

Prints fit and held-out errors, how far two profiles of the same model agree, the time one takes, and the predicted
against the measured speed-up of layer drop, dense and the method taking turns.
"""

import argparse
from contextlib import nullcontext

import numpy as np

from harness.measure.clock import clock_for, seconds
from harness.measure.conditions import Observer
from harness.measure.ideal import ideal_runtime
from harness.measure.profile import Work, forward_seconds
from harness.measure.profiling import measure_profile
from harness.measure.serve import CostRequest, serve
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.surgery import without_blocks, without_branches
from harness.testing.tiny import tiny_decoder
from tests.silent import Silent

ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    sizes = {"hidden_size": arguments.width, "intermediate_size": 3 * arguments.width}
    heads = {"num_attention_heads": arguments.width // 64, "num_key_value_heads": arguments.width // 128}
    model = tiny_decoder("llama", layers=arguments.layers, max_position_embeddings=1024, **sizes, **heads)
    observer = Observer()
    first, second = (measure_profile(model, Silent(), seed=seed) for seed in (0, 1))
    for profile in (first, second):
        held = profile.held_out
        print(
            f"{profile.label}: reading R2 {profile.prefill_fit.r2:.4f} MAPE {profile.prefill_fit.mape:.1%}, decoding "
            f"R2 {profile.decode_fit.r2:.4f} MAPE {profile.decode_fit.mape:.1%}; held out {held.mape:.1%} (bias "
            f"{held.bias:+.1%}), speed-up off by {held.speedup_error:.1%} (at most {held.speedup_worst:.1%}); raw IQR "
            f"{profile.relative_iqr:.0%}; {profile.seconds:.0f} s"
        )
    print(f"two profiles differ by {_disagreement(first, second, arguments.layers):.1%} at most, over full depth")
    _speedups(model, first)
    conditions = observer.conditions()
    print(f"clock {first.clock}, threads {conditions.threads}, others used {conditions.others_share:.0%}")


def _disagreement(first, second, layers) -> float:
    """Largest relative difference of a layer's cost and of a whole forward's."""
    found = []
    for costs in ("prefill", "decode"):
        works = [(1, c) for c in (64, 256)] if costs == "decode" else [(n, n) for n in (16, 64, 256)]
        for n, c in works:
            for a, m in ((layers, layers), (layers // 2, layers // 2)):
                one, other = (forward_seconds(getattr(p, costs), Work(n, c, a, m)) for p in (first, second))
                found.append(abs(one / other - 1))
    return max(found)


def _speedups(model, profile) -> None:
    layers = len(model.anatomy.blocks)
    half = range(1, layers, 2)
    methods = {
        "dense": nullcontext,
        "a quarter of the blocks out": lambda: without_blocks(model, range(1, layers, 4)),
        "half of the blocks out": lambda: without_blocks(model, half),
        "half of the attentions out": lambda: without_branches(model, attention=half),
        "half of the MLPs out": lambda: without_branches(model, mlp=half),
    }
    requests = [CostRequest("t", 0, tuple(range(3, 3 + n)), n, new) for n, new in ((48, 32), (200, 0))]
    for request in requests:
        timed = {name: [] for name in methods}
        ideal = {}
        for _ in range(ROUNDS):
            for name, attach in methods.items():
                with attach():
                    timed[name].append(seconds(clock_for(model.device), lambda request=request: serve(model, request)))
        for name, attach in methods.items():
            with attach(), Tracer(model) as tracer:
                serve(model, request)
                ideal[name] = ideal_runtime(profile, ModelShape.of(model), tracer.collect()[0]).total
        kind = f"{len(request.tokens)} read, {request.new_tokens} written"
        for name in list(methods)[1:]:
            predicted = ideal["dense"] / ideal[name]
            measured = float(np.median(np.array(timed["dense"]) / np.array(timed[name])))
            print(
                f"{kind}: {name}: predicted {predicted:.2f}x measured {measured:.2f}x ({predicted / measured - 1:+.1%})"
            )


if __name__ == "__main__":
    main()
