"""Rules of times without launch overhead: they are those of captured steps, on a machine and of a method that has them.

They are a regime of their own, and are compared with no time of single requests.
"""

from collections.abc import Iterator, Mapping
from math import isclose
from typing import Any, Final

from harness.leaderboard.case import Case
from harness.leaderboard.physics import FORWARD_S, hidden, is_same, pass_s, peak, token_flops
from harness.measure.conditions import spread_doubts
from harness.reports.columns import at
from harness.results.graph import NAMES, Graph, GraphTimes
from harness.results.graph_ratios import compared

_ROUNDED: Final = 1e-8  # seconds that a sum of rounded times may be off, for each token
_APART: Final = 8.0
"""Dense's times beside a run and in its own record, on one machine, differ by less than this factor."""


def graph(case: Case) -> Iterator[str]:
    """Times of captured steps are of what could be captured, give what is stated of them, and are possible."""
    if (stated := at(case.record, "time/graph")) is None:
        return
    section = Graph.model_validate(stated)
    yield from (f"captured steps: {text}" for text in _problems(case.record, section))


def graph_beside_dense(case: Case, dense: Case) -> Iterator[str]:
    """Dense's times by captured steps beside a run are near those of dense's own record, of the same requests."""
    stated = [at(each.record, "time/graph") for each in (case, dense)]
    if None in stated:
        return
    section, of_dense = map(Graph.model_validate, stated)
    if section.dense is None or any(
        getattr(section, name) != getattr(of_dense, name) for name in ("prompts", "new_tokens", "seed", "prompt_tokens")
    ):
        return
    own, beside = of_dense.typical, compared(section.model_copy(update={"run": section.dense})).typical
    for name in own.keys() & beside.keys():
        if not 1 / _APART <= beside[name] / own[name] <= _APART:
            yield f"captured steps: dense's {name} is {beside[name]:.3g} s beside it, {own[name]:.3g} s in its own run"


def _problems(record: Mapping[str, Any], section: Graph) -> Iterator[str]:
    if misshapen := next(_shape(section), None):
        yield misshapen
        return
    yield from _where(record, section)
    yield from _derived(section)
    yield from _written(section)
    yield from _speed(record, section)
    doubts = [*spread_doubts(section.run.latency), *([section.differing] if section.differing else [])]
    yield from hidden(doubts, section.doubts)


def _shape(section: Graph) -> Iterator[str]:
    """Every time is there, of as many requests and rounds as are stated, and longer than a launch."""
    everybody = [each for each in (section.run, section.dense, section.dense_repeat) if each is not None]
    if len({each is None for each in (section.dense, section.dense_by, section.dense_repeat)}) > 1:
        yield "dense's times are there in part"
    if len(section.prompt_tokens) != section.prompts or min([*section.prompt_tokens, section.rounds]) < 1:
        yield f"{section.prompts} requests are stated, and tokens of {len(section.prompt_tokens)}"
    for times in everybody:
        present = [getattr(times, name) for name in NAMES if getattr(times, name)]
        if not times.latency or len(present) not in (1, len(NAMES)) or _names(times) != _names(section.run):
            yield "times of some kinds are there, and others are not"
        for rounds_of in present:
            if len(rounds_of) != section.prompts or any(len(rounds) != section.rounds for rounds in rounds_of):
                yield f"{section.prompts} requests and {section.rounds} rounds are stated, others were measured"
            elif (least := min(map(min, rounds_of))) < FORWARD_S:
                yield f"a step in {least:.2g} s: launching one takes longer on any machine"


def _names(times: GraphTimes) -> list[str]:
    return [name for name in NAMES if getattr(times, name)]


def _where(record: Mapping[str, Any], section: Graph) -> Iterator[str]:
    """On a device that has graphs, by a method whose steps are alike, in a regime of their own."""
    if not record["environment"]["device"].startswith("cuda"):
        yield f"they need CUDA, and this ran on {record['environment']['device']!a:.40}"
    if record.get("drafts") is not None:
        yield "a method that writes guessed tokens has no steps that are alike"
    if record["method"]["family"] == "baseline" and section.dense is not None:
        yield "dense is compared with itself"
    if section.run.latency == at(record, "time/latency/raw"):
        yield "the times are those of single requests to the last digit, which are another regime"
    if section.dense is not None and section.run == section.dense:
        yield "the times are dense's to the last digit"


def _derived(section: Graph) -> Iterator[str]:
    """Typical times, ratios and noise follow from the times."""
    computed = compared(section)
    for name in sorted({*section.typical, *computed.typical}):
        stated, own = section.typical.get(name), computed.typical.get(name)
        if stated is None or own is None or not isclose(stated, own, rel_tol=1e-3):
            yield f"a typical {name!a:.40} of {stated} s is stated, its requests give {own} s"
    for what in ("ratios", "noise"):
        pair = [getattr(each, what) for each in (section, computed)]
        for name in sorted({*pair[0], *pair[1]}):
            stated, own = (ratios.get(name) for ratios in pair)
            if not is_same(stated, own):
                values = ["nothing" if each is None else f"{each.value:.6g}" for each in (stated, own)]
                yield f"{what}: {values[0]} of dense is stated of {name!a:.40}, the times give {values[1]}"


def _written(section: Graph) -> Iterator[str]:
    """Tokens come one by one: latency is the first's time and that of the others, which are as many for everybody."""
    if not 0 <= section.differences <= section.tokens:
        yield f"{section.differences} of {section.tokens} tokens are said to differ"
    least, most = section.prompts, sum(section.prompt_tokens) + section.prompts * section.new_tokens
    if section.run.tpot:
        counts = [_count(times) for times in (section.run, section.dense, section.dense_repeat) if times is not None]
        if counts[0] is None or counts.count(counts[0]) < len(counts) or max(counts[0]) >= section.new_tokens:
            yield "latency is not the time of the first token and of those after it"
            return
        least = most = sum(counts[0]) + section.prompts
    if not least <= section.tokens <= most:
        yield f"{section.tokens} tokens are said to be compared, and there are {least if least == most else most}"


def _count(times: GraphTimes) -> list[int] | None:
    """Tokens after the first of every request; None where rounds do not agree on a whole number of them."""
    counts = []
    for rounds in zip(times.latency, times.ttft, times.tpot, strict=True):  # [3][rounds]
        latency, first, each = rounds[0][0], rounds[1][0], rounds[2][0]
        count = round((latency - first) / each)
        off = max(abs(whole - first - count * each) for whole, first, each in zip(*rounds, strict=True))
        if count < 1 or off > _ROUNDED * count:
            return None
        counts.append(count)
    return counts


def _speed(record: Mapping[str, Any], section: Graph) -> Iterator[str]:
    """No request is faster than its arithmetic, and no step than reading the weights."""
    of_token, most = token_flops(record), peak(record["environment"], record["model"]["dtype"])
    written = (_count(section.run) if section.run.tpot else None) or [0] * section.prompts
    for rounds, tokens, after in zip(section.run.latency, section.prompt_tokens, written, strict=True):
        if (seconds := min(rounds)) < (work := of_token * (tokens + after)) / most:
            yield f"a request in {seconds:.2g} s: its {work:.2g} FLOPs take longer on any machine"
            break
    phase = "mean_depth_decode" if section.run.tpot else "mean_depth_prefill"
    step = min(map(min, section.run.tpot or section.run.latency))
    if step < pass_s(record, record["trace"][phase]):
        yield f"a step in {step:.2g} s: reading {record['memory']['weights']:,} bytes of weights takes longer"
