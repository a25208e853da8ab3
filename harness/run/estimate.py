"""How long a job will take, worked out before anything slow: from its requests, and a few timed forwards of dense."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch

from harness.contract.decoder import Decoder
from harness.contract.method import Method
from harness.contract.mixins import OnText
from harness.core.text import duration
from harness.evaluate.workload import Workload
from harness.measure.clock import synchronize
from harness.measure.modules import profile_key
from harness.measure.profiles import kept_profile
from harness.measure.profiling import default_budget
from harness.model.weights.computations import HasKernels
from harness.run.spec import CostPlan, RunSpec

LENGTHS: Final = (16, 512)
"""Tokens of the timed text: as many as the requests have in the mean, between these."""
TOKENS: Final = 4096
"""Most tokens of the timed batch: a batch size may be any number, and the logits of all its rows fill any memory."""
STEPS: Final = 3
SHORT_S: Final = 20.0
"""A job that takes less needs no words about it."""


@dataclass(frozen=True)
class Speed:
    """Of the dense model, with as many rows in a forward as the job has, up to ``TOKENS``.

    Attributes:
        read_s: seconds for a token of a text.
        write_s: seconds for a token that is written.
    """

    read_s: float
    write_s: float

    @classmethod
    @torch.no_grad()
    def timed(cls, model: Decoder, rows: int, length: int, writes: bool = True) -> Self:
        """Read a batch of texts of so many tokens and, if the job writes, write a few; each after one not timed.

        No random number is drawn of those that the job will draw.
        """
        positions = getattr(model.config, "max_position_embeddings", None) or LENGTHS[1]
        length = min(max(length, LENGTHS[0]), LENGTHS[1], positions)
        rows = max(min(rows, TOKENS // length), 1)
        ids = torch.zeros(rows, length, dtype=torch.long, device=model.device)
        start = ids[:, : max(1, min(8, length - STEPS))]
        written = {"do_sample": False, "min_new_tokens": STEPS, "max_new_tokens": STEPS, "pad_token_id": 0}

        def seconds(call: Callable[[], object]) -> float:
            synchronize(model.device)
            began = time.perf_counter()
            call()
            synchronize(model.device)
            return time.perf_counter() - began

        def write() -> None:
            model.module.generate(start, attention_mask=torch.ones_like(start), **written)

        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            model.module(start)
            read_s = seconds(lambda: model.module(ids))
            write_s = min(seconds(write), seconds(write)) if writes else 0.0
        return cls(read_s / ids.numel(), write_s / (STEPS * rows))


@dataclass(frozen=True)
class Estimate:
    """Seconds that the parts of a job will take, at dense's speed.

    Attributes:
        preparing: by method, of those that read calibration text: tokens and seconds.
        scoring: by task, of one run: what is asked, and seconds.
        runs: by task, how many.
        costs_s: of the cost passes; None where only FLOPs are asked for.
    """

    preparing: Mapping[str, tuple[int, float]]
    scoring: Mapping[str, tuple[Workload, float]]
    runs: Mapping[str, int]
    costs_s: float | None

    @classmethod
    def of(
        cls,
        specs: Sequence[RunSpec],
        workloads: Mapping[str, Workload],
        model: Decoder,
        lacking: Callable[[RunSpec], Sequence[Method]],
    ) -> Self:
        """The estimate of the runs that are not done yet.

        Args:
            specs: those runs.
            workloads: of their tasks.
            model: the dense model, with nothing attached.
            lacking: the methods of a run whose states are still to be made.
        """
        job, loads = specs[0].job, workloads.values()
        length = sum(each.read for each in loads) // max(sum(each.requests for each in loads), 1)
        speed = Speed.timed(model, job.batch_size, length, any(each.written for each in loads))
        scoring = {
            task: (each, each.read * speed.read_s + each.written * speed.write_s) for task, each in workloads.items()
        }
        preparing = {
            f"{part.label} on {spec.task.name}": (
                tokens := part.reads(model),
                tokens * part.sweeps_on(model) * speed.read_s,
            )
            for spec in specs
            for part in lacking(spec)
            if isinstance(part, OnText)
        }
        runs = {task: sum(spec.task.name == task for spec in specs) for task in workloads}
        measured = job.costs.measure - {"flops"}
        costs_s = _profiles_s(job.costs, specs, model, max(seconds for _, seconds in scoring.values()))
        costs_s += sum(_passes_s(job.costs, runs[task], load, speed) for task, load in workloads.items())
        return cls(preparing, scoring, runs, costs_s if measured else None)

    @property
    def scores_s(self) -> float:
        """Seconds until all scores are there."""
        return sum(seconds for _, seconds in self.preparing.values()) + sum(
            seconds * self.runs[task] for task, (_, seconds) in self.scoring.items()
        )

    @property
    def total_s(self) -> float:
        """Seconds of everything."""
        return self.scores_s + (self.costs_s or 0.0)

    def say(self, say: Callable[[str], None]) -> None:
        """Tell the user, where it is long enough to be worth words."""
        if self.total_s >= SHORT_S:
            for line in self.lines():
                say(line)

    def lines(self) -> list[str]:
        """What will be done and how long it should take, in words."""
        lines = []
        for task, (load, seconds) in self.scoring.items():
            written = f", {load.written:,} to write at most" if load.written else ""
            runs = f" a run, {self.runs[task]} runs" if self.runs[task] > 1 else ""
            lines.append(
                f"{task}: {load.requests:,} requests, {load.read:,} tokens to read{written}: about "
                f"{duration(seconds)}{runs}"
            )
        lines += [
            f"preparing {name}: {tokens:,} tokens of calibration text, about {duration(seconds)}"
            for name, (tokens, seconds) in self.preparing.items()
        ]
        costs = "" if self.costs_s is None else f", then costs in about {duration(self.costs_s)}"
        less = "" if self.costs_s is None else "--measure flops leaves the costs out, "
        lines.append(f"scores in about {duration(self.scores_s)}{costs}; {less}--limit takes fewer documents")
        return lines


def _profiles_s(plan: CostPlan, specs: Sequence[RunSpec], model: Decoder, quality_s: float) -> float:
    """Seconds for the cost profiles that are not kept yet: dense's, and one for each set of kernels."""
    if "ideal" not in plan.measure:
        return 0.0
    own = {spec.stack.fingerprint for spec in specs if any(isinstance(part, HasKernels) for part in spec.stack.parts)}
    dense = kept_profile(profile_key(model)) is None
    return (dense + len(own)) * (plan.budget_s or default_budget(quality_s))


def _passes_s(plan: CostPlan, runs: int, load: Workload, speed: Speed) -> float:
    """Seconds of a task's measured passes, in which dense takes part twice."""
    requests = max(load.requests, 1)
    new = min(load.written / requests, plan.new_tokens)
    request_s = load.read / requests * speed.read_s + new * speed.write_s
    return plan.passes_s(plan.measure, [request_s] * (runs + 1), min(plan.prompts, requests))
