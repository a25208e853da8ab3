"""The cost pass: after the scores, a sample of the same real requests is served alone and measured.

For every task, dense and all methods take turns on the same requests at batch size 1. Latency, memory and energy are
measured in passes of their own, and nothing is traced meanwhile. What follows from traces by arithmetic alone, the
idealized runtime and the roofline, is worked out for every document of the evaluation.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.core.errors import HarnessError
from harness.measure.conditions import Observer
from harness.measure.energy import COOLDOWN_S, ROUNDS, WindowMeter, energy, missing_reason
from harness.measure.interleave import Turns, interleave
from harness.measure.memory import peak_memory, weight_files_bytes
from harness.measure.meters import meters
from harness.measure.segment import Segment
from harness.measure.serve import CostRequest, Served, serve
from harness.measure.traffic import kv_cache_bytes
from harness.results import costs
from harness.results.compare import Line, ratio_info
from harness.results.costs import Conditions
from harness.results.record import RunRecord
from harness.results.stats.ratio import paired_ratio
from harness.results.stats.summary import summarize
from harness.run.spec import CostPlan, RunSpec

if TYPE_CHECKING:
    from harness.core.progress import Progress
    from harness.evaluate.lm import HarnessLM

DENSE, AGAIN = "dense", "dense, once more"
FEW_SAMPLES: Final = 44
"""Below this many measurements not even the 90th percentile can be stated."""


@dataclass
class CostPass:
    """The cost pass of one task.

    Attributes:
        specs: the runs of the task, dense among them if the job has it.
        lines: the documents of one of them, from which requests are drawn.
        attach: applies a run's methods to the model.
    """

    lm: "HarnessLM"
    specs: Sequence[RunSpec]
    lines: Sequence[Line]
    attach: Callable[[RunSpec], AbstractContextManager[object]]
    progress: "Progress"
    isolated: bool
    _turns: Turns | None = field(default=None, init=False)

    @property
    def plan(self) -> CostPlan:
        """What is to be measured."""
        return self.specs[0].job.costs

    @cached_property
    def participants(self) -> dict[str, Callable[[], AbstractContextManager[object]]]:
        """Every run, and dense twice: what differs between the two is noise."""

        def attacher(spec: RunSpec) -> Callable[[], AbstractContextManager[object]]:
            return lambda: self.attach(spec)

        found = {run_name(spec): attacher(spec) for spec in self.specs}
        return found | ({AGAIN: found[DENSE]} if DENSE in found else {})

    @cached_property
    def requests(self) -> list[CostRequest]:
        """Requests of documents drawn by seed, spread over the lengths of their prompts."""
        from harness.evaluate.evaluation import simple_evaluate

        plan, spec = self.plan, self.specs[0]
        wrote = {(line["task"], line["doc_id"]): line["output_tokens"] for line in self.lines}
        chosen = spread_sample(self.lines, plan.prompts, plan.seed)
        wanted: dict[str, list[int]] = {}
        for line in chosen:
            wanted.setdefault(line["task"], []).append(line["doc_id"])
        asked = [(line["task"], line["doc_id"]) for line in chosen]
        samples = {name: sorted(wanted.get(name, [0])) for name in spec.task.tasks}
        found = self.lm.collect(lambda: simple_evaluate(self.lm, spec.task, spec.job, samples))
        # under samples, lm-eval numbers documents by their place in the list
        named = [(one, (one.task, samples[one.task][one.document])) for one in found]
        kept = [_capped(one, wrote.get(place, 0), plan.new_tokens) for one, place in named if place in asked]
        drawn = random.Random(plan.seed).sample(kept, min(plan.prompts, len(kept)))
        if not drawn:
            raise HarnessError(f"{spec.task.name}: no request to measure costs with")
        return drawn

    # ---- latency ------------------------------------------------------------------------------------------

    def latency(self) -> dict[str, costs.Time]:
        """Every run's latency, by name."""
        plan, observer = self.plan, Observer()
        with self.progress.bar(f"latency · {self.specs[0].task.name}") as bar:
            self._turns = interleave(
                self.lm.decoder,
                self.participants,
                self.requests,
                rounds=plan.rounds,
                warmup=plan.warmup,
                seed=plan.seed,
                bar=bar,
            )
        conditions = observer.conditions()
        settings = costs.CostSettings(
            prompts=len(self.requests),
            rounds=plan.rounds,
            warmup=plan.warmup,
            new_tokens=plan.new_tokens,
            seed=plan.seed,
            isolated=self.isolated,
            chunk=self._turns.chunk,
        )
        return {
            name: costs.Time(settings=settings, latency=latency_of(self.requests, served, conditions))
            for name, served in self._turns.served.items()
        }

    def ratios(self, name: str) -> dict[str, costs.RatioInfo]:
        """Measured times of a run over dense's, request by request; empty without a dense run."""
        turns = self._turns
        if turns is None or DENSE not in turns.served or name == DENSE:
            return {}
        found = {}
        times: dict[str, Callable[[Served], float | None]] = {"latency": lambda one: one.end_to_end}
        if all(request.new_tokens > 0 for request in self.requests):
            times |= {"ttft": lambda one: one.ttft, "tpot": lambda one: one.tpot}
        for cost, read in times.items():
            ours, theirs = turns.seconds(name, read), turns.seconds(DENSE, read)
            if ours is not None and theirs is not None:
                found[cost] = ratio_info(paired_ratio(theirs, ours))
        return found

    # ---- memory -------------------------------------------------------------------------------------------

    def memory(self, spec: RunSpec, record: RunRecord, longest_kv: int) -> costs.Memory:
        """The record's memory, with what the process used for the longest of the requests."""
        request = max(self.requests, key=lambda one: len(one.tokens) + one.new_tokens)
        with self.attach(spec):
            serve(self.lm.decoder, request)
            peak = peak_memory(lambda: serve(self.lm.decoder, request), self.lm.decoder.device)
        counted = record.memory.model_copy(update={"disk": weight_files_bytes(Path(spec.model.loadable))})
        if peak is None:
            return counted
        return counted.model_copy(
            update={
                "peak": peak.peak,
                "activations": max(peak.peak - peak.before - longest_kv, 0),
                "rss_anonymous": peak.anonymous,
                "rss_file": peak.file,
                "cuda_allocated": peak.allocated,
                "cuda_reserved": peak.reserved,
            }
        )

    # ---- energy -------------------------------------------------------------------------------------------

    def energy(
        self, prefill_shares: dict[str, float | None], weights: dict[str, list[float]]
    ) -> dict[str, costs.Energy]:
        """Every run's energy, by name: rounds of windows, the runs taking turns, the idle machine before and after.

        Args:
            prefill_shares: each run's share of the idealized time that reading takes.
            weights: each run's idealized seconds of the requests, by which the energy is theirs.
        """
        observer, draw = Observer(), random.Random(self.plan.seed)
        meter = WindowMeter(meters(str(self.lm.decoder.device)))
        if not meter.meters:
            raise HarnessError("energy: neither a counter nor codecarbon works here; `harness doctor` says why")
        windows: dict[str, list[Any]] = {run_name(spec): [] for spec in self.specs}
        with self.progress.bar(f"energy · {self.specs[0].task.name}") as bar:
            bar.expect(ROUNDS * len(windows) + 2)
            idle = [meter.idle()]
            bar.advance(1)
            for _ in range(ROUNDS):
                for name in draw.sample(list(windows), len(windows)):
                    with self.participants[name]():
                        self._serve_all()
                        windows[name].append(meter.busy(self._serve_all))
                    meter.sleep(COOLDOWN_S)
                    bar.advance(1)
            idle.append(meter.idle())
            bar.advance(1)
        others = observer.conditions().others_share
        return {
            name: energy(
                found,
                idle,
                others_share=others,
                prefill_share=prefill_shares.get(name),
                weights=weights.get(name, ()),
                intensity_g_per_kwh=self.plan.carbon_intensity,
            )
            for name, found in windows.items()
        }

    def _serve_all(self) -> int:
        for request in self.requests:
            serve(self.lm.decoder, request)
        return len(self.requests)


def spread_sample(lines: Sequence[Line], count: int, seed: int) -> list[Line]:
    """Documents drawn by seed, one from each of ``count`` equal parts of them in the order of their lengths."""
    ordered = sorted(lines, key=lambda line: (line["prompt_tokens"], line["task"], line["doc_id"]))
    draw = random.Random(seed)
    count = min(count, len(ordered))
    bounds = [round(index * len(ordered) / count) for index in range(count + 1)]
    return [draw.choice(ordered[low:high]) for low, high in pairwise(bounds)]


def latency_of(requests: Sequence[CostRequest], served: Sequence[Sequence[Served]], seen: Conditions) -> costs.Latency:
    """The summary of a participant's measurements, [requests][rounds]."""
    every = [one for rounds in zip(*served, strict=True) for one in rounds]  # in the order of the rounds
    generated = [one for one in every if len(one.times) > 1]
    kinds = {"generate" if request.new_tokens else "score" for request in requests}
    prompts = sum(len(request.tokens) for request in requests) * len(served[0])
    gaps = [gap for one in generated for gap in one.gaps]
    ends = summarize(np.array([one.end_to_end for one in every]))
    doubts = seen.doubts()
    if len(every) < FEW_SAMPLES:
        doubts.append(f"few samples: {len(every)}, {FEW_SAMPLES} are the least for a percentile")
    return costs.Latency(
        kind="mixed" if len(kinds) > 1 else kinds.pop(),  # type: ignore[arg-type]
        end_to_end=ends,
        ttft=summarize(np.array([one.ttft for one in generated])) if generated else None,
        tpot=summarize(np.array([one.tpot for one in generated], dtype=float)) if generated else None,
        itl=summarize(np.array(gaps)) if gaps else None,
        prefill_tokens_per_s=prompts / sum(one.ttft for one in every),
        decode_tokens_per_s=len(gaps) / sum(gaps) if gaps else None,
        raw=[[round(one.end_to_end, 7) for one in rounds] for rounds in served],
        conditions=seen,
        doubts=doubts,
    )


def kv_of(lines: Iterable[Line], shape: Any) -> int:
    """The largest cache of a document's rows, from their stored traces."""
    rows = (row for line in lines for row in line["rows"])
    return max((kv_cache_bytes(shape, map(Segment.from_json, row["segments"])) for row in rows), default=0)


def missing_energy(result: costs.Energy) -> dict[str, str]:
    """The record's reason for the joules that were not measured."""
    reason = missing_reason(result)
    return {"energy.measured_j": reason} if reason else {}


def run_name(spec: RunSpec) -> str:
    """The run among the participants."""
    return DENSE if spec.stack.is_dense else f"{spec.stack.label} {spec.id}"


def _capped(request: CostRequest, wrote: int, most: int) -> CostRequest:
    """Generate as many tokens as the evaluation did for the document, 2 at the least, so that a gap can be timed."""
    if not request.new_tokens:
        return request
    tokens = min(max(wrote, 2), most, max(request.new_tokens, 2))
    return CostRequest(request.task, request.document, request.tokens, request.prompt_length, tokens)
