"""The machines of a Ray cluster: what they have, how many workers they hold, and which of them are alike."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from harness.core.errors import HarnessError

NAMED: Final = {"num_cpus": "CPU", "num_gpus": "GPU"}
"""What Ray calls in its machines what an actor asks for by other names."""
_MANY: Final = 10_000
"""Workers that fit where they ask for nothing."""
_ANSWER_S: Final = 60.0
"""Seconds that machines have to say what they are."""
_PROCESSORS: Final[dict[str, str]] = {}
"""Processors by machine, as they answered."""

Machines = Mapping[str, Mapping[str, float]]
"""What each machine has, by its id."""


def machines() -> dict[str, dict[str, float]]:
    """The machines of the cluster that is joined."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def able(every: Machines, asked: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """The machines that have what a worker asks for.

    Raises:
        HarnessError: there is none, so that it would be waited for without end.
    """
    needs = {NAMED.get(name, name): amount for name, amount in asked.items()}
    named = {
        node: has for node, has in every.items() if all(has.get(name, 0) >= amount for name, amount in needs.items())
    }
    if not named:
        raise HarnessError(f"no machine of the Ray cluster has {written(asked)}: give other --resources")
    return named


def room(on: Machines, asked: Mapping[str, float]) -> int:
    """How many workers machines hold that are able to, when nobody else uses them."""
    needs = {NAMED.get(name, name): amount for name, amount in asked.items() if amount}
    if not needs:
        return _MANY
    return sum(min(int(has[name] / amount) for name, amount in needs.items()) for has in on.values())


def written(asked: Mapping[str, float]) -> str:
    """What a worker asks for, for people."""
    return ", ".join(f"{name}={amount:g}" for name, amount in asked.items())


def kinds(on: Machines, asked: Mapping[str, float]) -> dict[str, str]:
    """What computes on each machine, as far as a run's id depends on it: its GPUs, or its processor.

    One that does not answer is left out.
    """
    if asked.get("num_gpus"):
        return {node: _gpus(has) for node, has in on.items()}
    _ask(node for node in on if node not in _PROCESSORS)
    return {node: _PROCESSORS[node] for node in on if node in _PROCESSORS}


def most(kinds: Mapping[str, str]) -> str:
    """The kind of most machines; of equals, the first by name, so that every sweep takes the same.

    Raises:
        HarnessError: there is none.
    """
    counts = Counter(kinds.values())
    if not counts:
        raise HarnessError("no machine of the Ray cluster answers")
    return min(counts, key=lambda kind: (-counts[kind], kind))


def _gpus(has: Mapping[str, float]) -> str:
    """The kinds of a machine's GPUs, as Ray names them."""
    names = sorted(name.partition(":")[2] for name in has if name.startswith("accelerator_type:"))
    return ", ".join(names) or "a GPU without a name"


def _ask(nodes: Iterable[str]) -> None:
    """Ask machines for their processors, all at once; one that is going away gives no answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    function = ray.remote(_processor)
    asked: dict[Any, str] = {}  # machines by their answers to come
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[function.options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote()] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
    for reference in answered:
        with suppress(ray.exceptions.RayError):
            _PROCESSORS[asked[reference]] = ray.get(reference)


def _processor() -> str:
    """The processor's name and its instruction sets, as far as they decide rounding."""
    from harness.core import cpu, environment

    return ", ".join([environment.cpu_model(), *(cpu.instruction_sets() or ()), *cpu.limits()])
