"""Rules of what a record says twice: a name and its settings, a total and its parts, a summary and its measurements."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from typing import Any, Final

import numpy as np

from harness.contract.method import written
from harness.leaderboard.case import Case
from harness.leaderboard.physics import hidden
from harness.measure.conditions import spread_doubts
from harness.reports.columns import at
from harness.results.conditions import Conditions
from harness.results.cost_lines import requests_of
from harness.results.saving import saving
from harness.results.stats.summary import summarize

_FAMILIES: Final = re.compile(r"[a-z0-9]+([-+][a-z0-9]+)*")
_DIGEST: Final = re.compile(r"[0-9a-f]{16,64}")
_OF_SPREAD: Final = 0.5
"""Share of a median's interval by which a bound may be off: measurements are drawn in an order that is not kept."""
_OF_DEPTH: Final = 0.03
_OF_GAPS: Final = 5.0  # between the median gap of tokens, their mean, and the median over requests
_KEPT: Final = ("environment", "tasks", "git", "command")
"""What every manifest says that is made today."""


def named(case: Case) -> Iterator[str]:
    """A method's label is its name with its settings, as they are written on the command line."""
    method = case.record["method"]
    if not _FAMILIES.fullmatch(method["family"]):
        yield f"{method['family']!a:.60} is the name of no family"
    if not _is_label(method["label"], method["name"].split("+"), method["params"]):
        yield f"the label {method['label']!a:.80} is not that of {method['name']!a:.60} with its parameters"
    if method.get("declared_real") and method["savings"] != (saved := saving(case.record)):
        yield f"its saving is said to be {method['savings']}, and what ran says {saved}"
    if case.renewed and method["savings"] == "real" and not method.get("declared_real"):
        yield "its saving is said to be real, and none is declared"


def _is_label(label: str, names: Sequence[str], params: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a label is names joined by a plus, each with some of its parameters and their values."""
    if len(names) != len(params) or not all(names):
        return False
    rest = label
    for index, (name, values) in enumerate(zip(names, params, strict=True)):
        start = name if index == 0 else f"+{name}"
        if not rest.startswith(start):
            return False
        rest = rest.removeprefix(start)
        mark = ":"
        while rest.startswith(mark):
            fitting = [
                text for key, value in values.items() if rest.startswith(text := f"{mark}{key}={written(value)}")
            ]
            if not fitting:
                return False
            rest, mark = rest.removeprefix(max(fitting, key=len)), ","
    return not rest


def complete(case: Case) -> Iterator[str]:
    """No score is left out, every document is told by a digest, and a new manifest says how the run was made."""
    stated: dict[str, set[str]] = {}
    for score in case.record["scores"]:
        stated.setdefault(score["task"], set()).add(f"{score['metric']},{score['filter']}")
    if sum(map(len, stated.values())) < len(case.record["scores"]):
        yield "a score is stated twice"
    every = set[str]().union(*stated.values())
    absent = {name for line in case.samples for name in line["scores"].keys() - stated.get(line["task"], every)}
    if absent:
        yield f"documents have scores that the record does not: {', '.join(map(ascii, sorted(absent)[:3]))}"
    if not case.record["scores"]:
        yield "the record has no score"
    for name, lines in (("samples", case.samples), ("costs", case.costs)):
        if any(not _DIGEST.fullmatch(line["doc_hash"]) for line in lines):
            yield f"documents of {name} are told by something else than a digest"
    if case.costs and {_place(line) for line in case.costs} - {_place(line) for line in case.samples}:
        yield "costs are stated of documents that were not scored"
    if not case.renewed:
        return
    absent = {name for name in _KEPT if name not in case.manifest}
    absent |= {"shape"} if case.record["trace"]["layer_tokens_total"] and not case.manifest.get("shape") else set()
    if absent:
        yield f"the manifest says nothing of {', '.join(sorted(absent))}"
    if any("answer" not in line for line in case.samples) and case.packed:
        yield "documents have no answer"


def _place(line: Mapping[str, Any]) -> tuple[str, int, str]:
    return line["task"], line["doc_id"], line["doc_hash"][:16]


def totals(case: Case) -> Iterator[str]:
    """Tokens, layers, FLOPs, paths and caches agree with what they are made of."""
    yield from _of_tokens(case)
    yield from _of_flops(case)
    yield from _of_paths(case.record)
    yield from _of_memory(case.record)


def _of_tokens(case: Case) -> Iterator[str]:
    trace, layers = case.record["trace"], case.record["model"]["layers"]
    batch = case.record["evaluation"]["batch_size"]  # rows that are done run on until the last one of their batch is
    ran = (trace["attention_layer_tokens"], trace["mlp_layer_tokens"])
    if trace["layer_tokens_total"] is None or None in ran or case.record.get("drafts") is not None:
        return
    read, wrote = trace["prompt_tokens"] + trace["pad_tokens"], trace["output_tokens"]
    tokens = trace["layer_tokens_total"] / max(layers, 1)
    if not tokens or trace["forwards"] < 1:
        yield "no layer is said to have run"
        return
    if tokens > 1.05 * (read + wrote) + trace["forwards"] * batch:
        yield f"{tokens:,.0f} tokens are said to have run the layers, and there were {read + wrote:,}"
    reading, writing = trace["mean_depth_prefill"], trace["mean_depth_decode"]
    if case.renewed and (
        (reading is None and trace["prompt_tokens"]) or (writing is None and wrote > len(case.samples))
    ):
        yield "how much of the layers ran is not stated for prompts or for texts"
    if reading is None or (writing is None and wrote) or case.record["evaluation"].get("score_mode") == "context-first":
        return
    read = min(read, tokens)
    share, whole = (
        sum(ran) / 2 / trace["layer_tokens_total"],
        (reading * read + (writing or 0) * (tokens - read)) / tokens,
    )
    if not isclose(share, whole, rel_tol=_OF_DEPTH):
        yield f"{share:.4f} of the layers ran, and {whole:.4f} follow from prompts and texts"
    if 0 < sum(line["depth"] is None for line in case.samples) < len(case.samples):
        yield "some documents say how much of the layers ran, and others do not"


def _of_flops(case: Case) -> Iterator[str]:
    flops, trace = case.record["flops"], case.record["trace"]
    if flops is None:
        return
    if case.record["trace"]["executed"] is not True and flops["total"] != flops["dense_equivalent"]:
        yield "its work is said never to have differed from dense's, and its FLOPs do"
    tokens = (trace["layer_tokens_total"] or 0) / max(case.record["model"]["layers"], 1)
    padding = trace["pad_tokens"] / tokens if tokens else 1.0
    if flops["useful"] < (1 - 2 * padding) * flops["total"] * 0.999:
        yield f"{flops['useful']:,} FLOPs are said to be useful, and {padding:.1%} of the tokens are padding"
    scores = flops["parts"].get("attention_scores", 0)
    if flops["causal"] < 0.999 * (flops["total"] - scores):
        yield f"{flops['causal']:,} causal FLOPs are stated, fewer than those outside of attention"
    counts = (flops.get("audit_stated"), flops.get("audit_counted"))
    if (None in counts and counts != (None, None)) or counts[0] == 0:
        yield "an audit has two counts, both of some work"
    elif counts[0] is not None and flops["audit_ratio"] is None:
        yield "an audit is stated without its ratio"
    elif case.renewed and flops["audit_ratio"] is None and "flops.audit_ratio" not in case.record["missing"]:
        yield "no audit of the FLOPs, and no reason why"


def _of_paths(record: Mapping[str, Any]) -> Iterator[str]:
    routes = record.get("routes")
    if routes is None:
        return
    common, whole = routes["common"], "1" * record["model"]["layers"]
    if record.get("drafts") is None:  # the depth of a token that was kept is that of all that were guessed for it
        repeats = max((int(times) for path in common for times in path if times.isdecimal()), default=1)
        repeats = max(repeats, 1 if sum(common.values()) > 1 - 1e-6 else 2)  # rare paths are not listed
        for union, depth in (("union_prefill", "mean_depth_prefill"), ("union_decode", "mean_depth_decode")):
            ran, mean = routes[union], record["trace"][depth]
            if ran is not None and mean is not None and repeats * ran < 0.98 * mean:
                yield f"batches ran {ran:.4f} of the layers, and their rows {mean:.4f}"
    if any(len(path) != len(whole) or not path.isdecimal() for path in common) or sum(common.values()) > 1 + 1e-6:
        yield "the paths are not those of so many layers, or their shares sum to more than one"
    elif len(common) > routes["distinct"] or (len(common) == routes["distinct"] and sum(common.values()) < 1 - 1e-6):
        yield f"{routes['distinct']} paths are stated, and their shares say otherwise"
    if whole in common and not isclose(common[whole], routes["identity"], abs_tol=1e-6):
        yield f"{routes['identity']} of the rows are said to have run every layer, and the paths say {common[whole]}"


def _of_memory(record: Mapping[str, Any]) -> Iterator[str]:
    memory = record["memory"]
    layers = memory.get("kv_layers")
    if layers and (len(layers) != record["model"]["layers"] or sum(layers) != memory["kv_peak"]):
        yield f"a cache of {memory['kv_peak']} bytes is stated, and its {len(layers)} layers have {sum(layers):,}"
    if record["method"]["family"] != "baseline":
        return
    flops = record["flops"] or {}
    pairs = [(flops, name, f"dense_{name}") for name in ("weight_bytes", "kv_bytes")]
    pairs += [(memory, name, f"dense_{name}") for name in ("weights", "kv_peak")]
    for section, name, of_dense in pairs:
        if section.get(of_dense) is not None and section[of_dense] != section[name]:
            yield f"dense's {name} are {section[name]:,}, and said to be {section[of_dense]:,}"


def summaries(case: Case) -> Iterator[str]:
    """Spreads and percentiles are those of the measurements, which are as many as were asked for."""
    section, settings = at(case.record, "time/latency"), at(case.record, "time/settings")
    if section is None:
        return
    raw = section["raw"]
    if settings is None:
        if case.renewed:
            yield "latencies are stated, and not how they were measured"
    elif len(raw) != settings["prompts"] or any(len(rounds) != settings["rounds"] for rounds in raw):
        yield f"{settings['prompts']} requests and {settings['rounds']} rounds are stated, others were measured"
    times: dict[str, list[float]] = {"end_to_end": [seconds for rounds in raw for seconds in rounds]}
    runs: list[Mapping[str, Any]] = [dict(request["run"]) for request in requests_of(case.costs)]
    for name in ("ttft", "tpot"):
        times[name] = [each for run in runs for each in run.get(name, ())]
    for name, measured in times.items():
        if case.renewed and section[name] is not None and measured and min(measured) > 0:
            yield from _summary(name, section[name], measured)
    for name in ("end_to_end", "ttft", "tpot", "itl"):
        yield from _sorted(name, section[name])
    if case.renewed:
        yield from _speeds(case, section)
        doubts = Conditions.model_validate(section["conditions"]).doubts() + spread_doubts(raw)
        yield from hidden(doubts, section["doubts"])


def _sorted(name: str, summary: Mapping[str, Any] | None) -> Iterator[str]:
    if summary is None:
        return
    known = [summary[field] for field in ("min", "median", "p90", "p95", "p99") if summary[field] is not None]
    if not summary["n"] or known != sorted(known):
        yield f"a summary of {name} of no measurement, or of percentiles that fall"


def _speeds(case: Case, section: Mapping[str, Any]) -> Iterator[str]:
    """Prompt tokens a second are those of the requests; tokens come one by one at the speed of their gaps."""
    times = [
        (each["prompt_tokens"], each["run"].get("ttft", each["run"]["latency"])) for each in requests_of(case.costs)
    ]
    seconds = sum(sum(rounds) for _, rounds in times)
    if seconds > 0:
        speed = sum(tokens * len(rounds) for tokens, rounds in times) / seconds
        if not isclose(speed, section["prefill_tokens_per_s"], rel_tol=1e-3):
            yield f"{section['prefill_tokens_per_s']:.4g} prompt tokens a second are stated, {speed:.4g} were read"
    if section["tpot"] is None or case.record.get("drafts") is not None:
        return
    for name, value in (("itl", at(section, "itl/median")), ("decode_tokens_per_s", section["decode_tokens_per_s"])):
        gap = value if name == "itl" or not value else 1 / value
        if not gap or not 1 / _OF_GAPS <= gap / section["tpot"]["median"] <= _OF_GAPS:
            yield f"{name} of {value} beside {section['tpot']['median']:.4g} s a token"


def _summary(name: str, stated: Mapping[str, Any], measured: Sequence[float]) -> Iterator[str]:
    computed = summarize(np.array(measured)).model_dump()
    for field in ("n", "min", "mad", "relative_iqr", "p90", "p95", "p99"):
        of_record, of_files = stated[field], computed[field]
        is_known = of_record is not None and of_files is not None
        if not (isclose(of_record, of_files, rel_tol=1e-3, abs_tol=1e-9) if is_known else of_record is of_files):
            yield f"{field} of {name} is stated as {of_record}, its measurements give {of_files}"
    slack = _OF_SPREAD * (computed["median_high"] - computed["median_low"]) + 1e-9
    for field in ("median_low", "median_high"):
        if abs(stated[field] - computed[field]) > slack:
            yield f"{field} of {name} is stated as {stated[field]:.4g}, its measurements give {computed[field]:.4g}"
