"""Which computation a linear layer gets: a kernel only where it is faster than dense on this machine.

Each is timed at 1, 8, 32 and 128 tokens, over the time of torch's product in the model's number format. What is faster
at one of these by a tenth, and slower at none, is taken; of several the fastest over all. Where that is no single one,
one may compute few tokens and another one many: what keeps packed weights alone goes before what keeps floats too. What
was measured once for a machine, a number of threads and a shape is kept, so that noise moves no run from one kernel to
another.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Final

import torch
from filelock import FileLock

from harness.contract.identity import digest
from harness.core import environment
from harness.core.errors import DiskError
from harness.core.files import write_atomic
from harness.core.paths import cache_folder
from harness.core.source import of_modules
from harness.model.weights.computations import TOKENS, Computation, Computations, Layer
from harness.model.weights.probe import BASELINE, Times, probe

MARGIN: Final = 0.1
"""By how much a kernel is to be faster than dense at some number of tokens, and two products than one over all."""
EVEN: Final = 1.05
"""Up to which part of dense's time something is not slower: the times of one product differ by as much."""


@dataclass(frozen=True)
class Decision:
    """What computes a layer by itself on this machine.

    Attributes:
        times: what decided; empty where no kernel can run.
    """

    kernel: str
    times: Times = field(default_factory=dict)

    def described(self, kernel: Computation) -> str:
        """How long a kernel takes beside dense, in words."""
        first, *between, last = (f"{ratio:.2g}" for ratio in ratios(self.times, kernel))
        middle = "".join(f", {ratio} at {tokens}" for ratio, tokens in zip(between, TOKENS[1:-1], strict=True))
        rest = f"{middle} and {last} times at {TOKENS[-1]}"
        return f"{kernel.name} takes {first} times dense's time at {TOKENS[0]} token{rest}"


def ratios(times: Times, kernel: Computation) -> list[float]:
    """Time over that of dense at each number of tokens, of what multiplies so many."""
    return [
        times[kernel.at(tokens).name][index] / dense
        for index, (tokens, dense) in enumerate(zip(TOKENS, times[BASELINE], strict=True))
    ]


def is_faster(over_dense: Sequence[float]) -> bool:
    """Whether something is faster than dense by the margin at a number of tokens, and at none slower, by its ratios."""
    return min(over_dense) <= 1 - MARGIN and max(over_dense) <= EVEN


def choose(computations: Computations, layer: Layer) -> Decision:
    """What computes a layer here: as it was once decided, else as it is measured now."""
    if not computations.able:
        return Decision(computations.dense.name)
    key = _key(computations, layer, [each.name for each in (*computations.able, computations.dense)])
    path = folder() / f"{digest(key)[:16]}.json"
    with _alone(path):
        times = _kept(path, key)
        if times is None:
            times = probe(computations, layer)
            with suppress(DiskError):  # measured again the next time
                write_atomic(path, json.dumps(key | {"times": times}, indent=2) + "\n")
    return decide(computations, times)


def decide(computations: Computations, times: Times) -> Decision:
    """The fastest of what is faster than dense, by their times; dense where there is nothing."""
    ways = [(way, ratios(times, way)) for way in (*computations.able, *computations.joined)]

    def cost(way: Computation, over_dense: Sequence[float]) -> tuple[bool, float]:
        keeps_floats = computations.dense in (way.at(TOKENS[0]), way.at(TOKENS[-1]))
        return keeps_floats, geometric_mean(over_dense) * (1 if way.by_tokens is None else 1 / (1 - MARGIN))

    faster = {way.name: cost(way, over_dense) for way, over_dense in ways if is_faster(over_dense)}
    return Decision(min(faster, key=faster.__getitem__) if faster else computations.dense.name, times)


def fastest(times: Times, kernels: Sequence[Computation]) -> Computation:
    """The kernel that takes least, of several."""
    return min(kernels, key=lambda kernel: geometric_mean(ratios(times, kernel)))


def folder() -> Path:
    """Where decisions are kept."""
    return cache_folder() / "kernel-times"


def _key(computations: Computations, layer: Layer, names: Sequence[str]) -> dict[str, Any]:
    """Everything that the times depend on."""
    on_cpu = computations.device.startswith("cpu")
    return {
        "processor": environment.processor(computations.device),
        "threads": torch.get_num_threads() if on_cpu else None,
        "torch": torch.__version__,
        "source": of_modules(computations.source, "harness.model.weights.probe").digest,
        "names": list(names),
        "layer": layer.label,
    }


def _kept(path: Path, key: dict[str, Any]) -> Times | None:
    """The times that a file holds; None where it holds none for these kernels."""
    try:
        kept = json.loads(path.read_text())
        times = {name: [float(seconds) for seconds in kept["times"][name]] for name in (BASELINE, *key["names"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    right = all(len(each) == len(TOKENS) and all(0 < seconds < math.inf for seconds in each) for each in times.values())
    return times if right and all(kept.get(name) == value for name, value in key.items()) else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process measures what several ask for; the others wait and read. Without a writable cache each is alone."""
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name(f".{path.stem}.lock")))
        yield
