"""Which computation a linear layer gets: a kernel only where it is faster than dense on this machine.

A kernel is faster where its times at one token and at 128, each over the time of torch's product in the model's number
format, have a geometric mean of at most 0.9, and neither is above 1.1: a decoding step and a prompt count alike, and
what is won at one is not taken from the other. Of several the fastest is taken. What was measured once for a machine, a
number of threads and a shape is kept, so that noise moves no run from one kernel to another.
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
from harness.model.weights.computations import Computations, Layer
from harness.model.weights.probe import BASELINE, TOKENS, Times, probe

MARGIN: Final = 0.1
"""By how much a kernel is to be faster than dense, and how much slower it may be at one number of tokens."""


@dataclass(frozen=True)
class Decision:
    """What computes a layer by itself on this machine.

    Attributes:
        times: what decided; empty where no kernel can run.
    """

    kernel: str
    times: Times = field(default_factory=dict)

    def described(self, name: str) -> str:
        """How long a kernel takes beside dense, in words."""
        one, many = ratios(self.times, name)
        return f"{name} takes {one:.2g} times dense's time at {TOKENS[0]} token and {many:.2g} times at {TOKENS[1]}"


def ratios(times: Times, name: str) -> list[float]:
    """Time over that of dense at each number of tokens."""
    return [seconds / dense for seconds, dense in zip(times[name], times[BASELINE], strict=True)]


def is_faster(times: Times, name: str) -> bool:
    """Whether a kernel is faster than dense by the margin, and at no number of tokens slower by more than it."""
    over_dense = ratios(times, name)
    return geometric_mean(over_dense) <= 1 - MARGIN and max(over_dense) <= 1 + MARGIN


def choose(computations: Computations, layer: Layer) -> Decision:
    """What computes a layer here: as it was once decided, else as it is measured now."""
    names = [kernel.name for kernel in computations.able]
    if not names:
        return Decision(computations.dense.name)
    key = _key(computations, layer, names)
    path = folder() / f"{digest(key)[:16]}.json"
    with _alone(path):
        times = _kept(path, key)
        if times is None:
            times = probe(computations, layer)
            with suppress(DiskError):  # measured again the next time
                write_atomic(path, json.dumps(key | {"times": times}, indent=2) + "\n")
    return decide(computations, times)


def decide(computations: Computations, times: Times) -> Decision:
    """The fastest of the kernels that are faster than dense, by their times; dense where there is none."""
    faster = [kernel.name for kernel in computations.able if is_faster(times, kernel.name)]
    return Decision(fastest(times, faster) if faster else computations.dense.name, times)


def fastest(times: Times, names: Sequence[str]) -> str:
    """The kernel that takes least, of several."""
    return min(names, key=lambda name: geometric_mean(ratios(times, name)))


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
