"""Costs by serving: a sample of a task's own requests, served alone, dense and all methods taking turns.

Latency, memory and energy are measured in passes of their own, at batch size 1, and nothing is traced meanwhile.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.contract.decoder import Decoder
from harness.core.errors import HarnessError
from harness.core.progress import Progress
from harness.measure.added import AddedTimer, fitted
from harness.measure.clock import clock_for, current
from harness.measure.conditions import Observer, spread_doubts
from harness.measure.energy import Window, WindowMeter
from harness.measure.interleave import Participant, Turns, interleave
from harness.measure.memory import Peak, held, peak_memory, set_aside
from harness.measure.meters import meters
from harness.measure.segment import Segment
from harness.measure.serve import CostRequest, Served, serve
from harness.results import costs
from harness.results.conditions import Conditions
from harness.results.cost_lines import Timings
from harness.results.costs import typical
from harness.results.samples import SampleLine
from harness.results.stats.summary import summarize
from harness.run.spec import CostPlan, RunSpec

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM

DIGITS: Final = 9
"""Stored times are in whole nanoseconds."""
ADDED_REQUESTS: Final = 6
ADDED_ROUNDS: Final = 3
"""Requests by which what a method adds is timed, and how often, after once that is not."""
SLOW_S: Final = 1.0
"""Requests that take longer are served once to estimate how long the passes will take, others are warmed up first."""
FEW_SAMPLES: Final = 44
"""Below this many measurements not even the 90th percentile can be stated."""


@dataclass(frozen=True)
class Serving:
    """The measured passes of one task.

    Attributes:
        title: of the progress bars, after what is measured.
    """

    model: Decoder
    requests: Sequence[CostRequest]
    plan: CostPlan
    progress: Progress
    title: str

    def latency(self, participants: Sequence[Participant]) -> tuple[Turns, Conditions]:
        """Everybody's times of every request, and what happened around them."""
        observer, plan = Observer(self.model.device), self.plan
        with self.progress.bar(f"latency · {self.title}") as bar:
            turns = interleave(
                partial(serve, self.model),
                participants,
                self.requests,
                rounds=plan.rounds,
                warmup=plan.warmup,
                seed=plan.seed,
                bar=bar,
            )
        return turns, observer.conditions()

    def traces(self, participant: Participant) -> list[list[Segment]]:
        """What runs for each request, which is then served once more under observation."""
        with participant.attached():
            return [self._trace(request) for request in self.requests]

    def added(self, participant: Participant) -> costs.AddedCosts:
        """What a method adds to the layers, of a few of the requests, each served several times: the least of each."""
        count = min(ADDED_REQUESTS, len(self.requests))
        # spread over the requests, which are spread over the lengths
        chosen = [self.requests[round(i * (len(self.requests) - 1) / max(count - 1, 1))] for i in range(count)]
        timed = []
        with participant.attached():
            with current(self.model.device), AddedTimer(self.model, clock_for(self.model.device)) as timer:
                for request in chosen:
                    serve(self.model, request)
                    timer.seconds()
                    rounds = []
                    for _ in range(ADDED_ROUNDS):
                        serve(self.model, request)
                        rounds.append(timer.seconds())
                    timed.append({what: min(each.get(what, 0.0) for each in rounds) for what in rounds[0]})
            return fitted([self._trace(request) for request in chosen], timed)

    def memory(self, participants: Sequence[Participant]) -> dict[Participant, Peak | None]:
        """The peak of each while the longest request is served; None where the system does not tell."""
        longest = max(self.requests, key=lambda request: len(request.tokens) + request.new_tokens)
        peaks = {}
        with self.progress.bar(f"memory · {self.title}") as bar:
            bar.expect(len(participants))
            for participant in participants:
                dense = held(self.model)
                with participant.attached(), set_aside(self.model, dense):
                    serve(self.model, longest)
                    peaks[participant] = peak_memory(
                        lambda: serve(self.model, longest), self.model.device, self.model.devices
                    )
                bar.advance(1)
        return peaks

    def energy(self, participants: Sequence[Participant]) -> "EnergyWindows":
        """Rounds of windows, the participants taking turns, the idle machine before and after.

        Raises:
            HarnessError: nothing here can read or estimate energy.
        """
        if len(self.model.devices) > 1:
            raise HarnessError("energy: of a model that is spread over devices it is not measured")
        windows, draw = self.plan.windows, random.Random(self.plan.seed)
        observer = Observer(self.model.device)
        meter = WindowMeter(meters(self.model.device), windows)
        if not meter.meters:
            raise HarnessError("energy: neither a counter nor codecarbon works here; `harness doctor` says why")
        busy: dict[Participant, list[Window]] = {participant: [] for participant in participants}
        with self.progress.bar(f"energy · {self.title}") as bar:
            bar.expect(windows.rounds * len(participants) + 2)
            idle = [meter.idle()]
            bar.advance(1)
            for _ in range(windows.rounds):
                for participant in draw.sample(list(participants), len(participants)):
                    with participant.attached():
                        self._serve_all()
                        busy[participant].append(meter.busy(self._serve_all))
                    meter.cool_down()
                    bar.advance(1)
            idle.append(meter.idle())
            bar.advance(1)
        return EnergyWindows(busy, idle, observer.conditions().others_share)

    def seconds_for(self, wanted: frozenset[str], participants: Sequence[Participant]) -> float:
        """About how long the passes will take, by one or two requests of each participant."""
        return self.plan.passes_s(wanted, [*map(self._request_seconds, participants)], len(self.requests))

    def _request_seconds(self, participant: Participant) -> float:
        """About what a request takes: of the shortest and the longest, or of the shortest alone where that is slow."""
        by_length = sorted(self.requests, key=lambda request: len(request.tokens) + request.new_tokens)
        with participant.attached():
            first_s = serve(self.model, by_length[0]).end_to_end
            if first_s > SLOW_S:
                return first_s
            return sum(serve(self.model, request).end_to_end for request in (by_length[0], by_length[-1])) / 2

    def _trace(self, request: CostRequest) -> list[Segment]:
        """What runs for a request, with the methods that are attached."""
        from harness.measure.trace import Tracer

        with Tracer(self.model) as tracer:
            serve(self.model, request)
            (segments,) = tracer.collect()  # of one row
        return segments

    def _serve_all(self) -> int:
        for request in self.requests:
            serve(self.model, request)
        return len(self.requests)


@dataclass(frozen=True)
class EnergyWindows:
    """What the energy pass read.

    Attributes:
        others_share: share of the machine that other processes used meanwhile.
    """

    busy: dict[Participant, list[Window]]
    idle: list[Window]
    others_share: float


def draw_requests(
    lm: "HarnessLM", spec: RunSpec, lines: Sequence[SampleLine], count: int | None = None
) -> list[CostRequest]:
    """Requests of documents drawn by seed, spread over the lengths of their prompts, in the order of ``lines``.

    Their ``document`` is the ``doc_id`` of the line.

    Args:
        count: how many; as the plan has them, if not given.

    Raises:
        HarnessError: the task asks for nothing that can be served.
    """
    from harness.evaluate.requests import requests_of

    plan = spec.job.costs
    count = count or plan.prompts
    written = {(line["task"], line["doc_id"]): line["output_tokens"] for line in lines}
    chosen = spread_sample(lines, count, plan.seed)
    places = {(line["task"], line["doc_id"]) for line in chosen}
    # lm-eval refuses a task without a document, so the first stands for none
    samples = {name: sorted(number for task, number in places if task == name) or [0] for name in spec.task.tasks}
    collected = requests_of(lm, spec.task, spec.job, samples, spec.context_first)
    # under samples, lm-eval numbers documents by their place in the list
    requests = [replace(request, document=samples[request.task][request.document]) for request in collected]
    kept = [
        _capped(request, written.get((request.task, request.document), 0), plan.new_tokens)
        for request in requests
        if (request.task, request.document) in places
    ]
    if not kept:
        raise HarnessError(f"{spec.task.name}: no request to measure costs with")
    drawn = random.Random(plan.seed).sample(kept, min(count, len(kept)))
    order = {(line["task"], line["doc_id"]): index for index, line in enumerate(lines)}
    return sorted(drawn, key=lambda request: order[request.task, request.document])


def spread_sample(lines: Sequence[SampleLine], count: int, seed: int) -> list[SampleLine]:
    """Documents drawn by seed, one from each of ``count`` equal parts of them in the order of their lengths."""
    ordered = sorted(lines, key=lambda line: (line["prompt_tokens"], line["task"], line["doc_id"]))
    draw = random.Random(seed)
    count = min(count, len(ordered))
    bounds = [round(index * len(ordered) / count) for index in range(count + 1)]
    return [draw.choice(ordered[low:high]) for low, high in pairwise(bounds)]


def clock_of(device: str) -> str:
    """What latency is read from, in words."""
    return "wall clock" if device == "cpu" else "wall clock, the device synchronized at every token"


def latency_of(
    requests: Sequence[CostRequest], served: Sequence[Sequence[Served]], seen: Conditions, clock: str
) -> costs.Latency:
    """The summary of a participant's measurements, [requests][rounds]."""
    every = [request for rounds in zip(*served, strict=True) for request in rounds]  # in the order of the rounds
    generated = [request for request in every if request.tokens_after_first]
    kinds = {"generate" if request.new_tokens else "score" for request in requests}
    prompt_tokens = sum(len(request.tokens) for request in requests) * len(served[0])
    gaps = [gap for request in generated for gap in request.gaps]
    raw = [[round(request.end_to_end, DIGITS) for request in rounds] for rounds in served]
    doubts = [*seen.doubts(), *spread_doubts(raw)]
    if len(every) < FEW_SAMPLES:
        doubts.append(f"few samples: {len(every)}, {FEW_SAMPLES} are the least for a percentile")
    return costs.Latency(
        kind="mixed" if len(kinds) > 1 else kinds.pop(),  # type: ignore[arg-type]
        clock=clock,
        typical_s=typical(raw),
        end_to_end=summarize(np.array([request.end_to_end for request in every])),
        ttft=summarize(np.array([request.ttft for request in generated])) if generated else None,
        tpot=summarize(np.array([request.tpot for request in generated], dtype=float)) if generated else None,
        itl=summarize(np.array(gaps)) if gaps else None,
        prefill_tokens_per_s=prompt_tokens / sum(request.ttft for request in every),
        decode_tokens_per_s=sum(request.tokens_after_first for request in generated) / sum(gaps) if gaps else None,
        raw=raw,
        conditions=seen,
        doubts=doubts,
    )


def timings_of(request: CostRequest, rounds: Sequence[Served]) -> Timings:
    """A participant's times of one request, of which those of tokens only where it generates."""
    timings = Timings(latency=[round(served.end_to_end, DIGITS) for served in rounds])
    if request.new_tokens:
        timings["ttft"] = [round(served.ttft, DIGITS) for served in rounds]
        per_token = [served.tpot for served in rounds]
        if all(seconds is not None for seconds in per_token):
            timings["tpot"] = [round(seconds or 0.0, DIGITS) for seconds in per_token]
    return timings


def _capped(request: CostRequest, written: int, most: int) -> CostRequest:
    """Generate as many tokens as the evaluation did for the document, 2 at the least, so that a gap can be timed."""
    if not request.new_tokens:
        return request
    return replace(request, new_tokens=min(max(written, 2), most, max(request.new_tokens, 2)))
