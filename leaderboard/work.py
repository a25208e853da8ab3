"""Rules of the work: FLOPs, tokens and layers agree with each other, with the model's shape and modelled times."""

from collections.abc import Iterator, Mapping
from math import inf, isclose
from typing import Any, Final

from pydantic import ValidationError

from harness.core.errors import HarnessError
from harness.leaderboard.case import Case
from harness.measure.accelerators import HOST, accelerator
from harness.measure.flops import causal_flops, executed_flops
from harness.measure.segment import Segment
from harness.measure.shape import ModelShape
from harness.reports.columns import at
from harness.results.audit import audit_doubt
from harness.results.samples import SampleLine

_FASTEST: Final = 1e19  # FLOP/s of no machine
_PARTS: Final = ("attention_linear", "mlp")


def work(case: Case) -> Iterator[str]:
    """FLOPs, tokens and layers agree with each other."""
    record, flops, trace, model = case.record, case.record["flops"], case.record["trace"], case.record["model"]
    if flops is None:
        yield from () if at(record, "missing").get("flops") else ("no FLOPs, and no reason why",)
        return
    if sum(flops["parts"].values()) != flops["total"]:
        yield f"the parts of the FLOPs sum to {sum(flops['parts'].values())}, not to {flops['total']}"
    if not 0 <= flops["useful"] <= flops["total"] or not 0 <= flops["causal"] <= flops["total"]:
        yield "useful or causal FLOPs exceed the total"
    if record["method"]["family"] == "baseline" and flops["total"] != flops["dense_equivalent"]:
        yield "dense did not do dense's work"
    if None in (trace["layer_tokens_total"], trace["attention_layer_tokens"], trace["mlp_layer_tokens"]):
        yield "FLOPs are stated, and not how many tokens ran the layers"
        return
    tokens = trace["layer_tokens_total"] / model["layers"]
    executions = max(trace["attention_layer_tokens"], trace["mlp_layer_tokens"], 1)
    if not tokens.is_integer() or trace["forwards"] > max(tokens, executions):  # drafts are no tokens of dense
        yield "layer tokens do not fit the model's layers, or there are more forwards than tokens"
    linear = flops["parts"].get("attention_linear", 0) + flops["parts"].get("mlp", 0)
    if linear > 2 * model["parameters"] / model["layers"] * executions:
        yield "more FLOPs in the layers than their parameters allow"
    if flops["total"] <= 0 or flops["total"] / max(record["duration_s"], 1e-3) > _FASTEST:
        yield f"{flops['total']:.3g} FLOPs in {record['duration_s']} s: faster than any machine"


def depth(case: Case) -> Iterator[str]:
    """The layers that ran are those of the documents, and of prompts and texts."""
    trace, drafts = case.record["trace"], case.record.get("drafts")
    ran = (trace["attention_layer_tokens"], trace["mlp_layer_tokens"])
    if None in ran or not trace["layer_tokens_total"] or drafts is not None:
        return
    share = sum(ran) / 2 / trace["layer_tokens_total"]
    phases = [trace[name] for name in ("mean_depth_prefill", "mean_depth_decode") if trace[name] is not None]
    if phases and not 0.98 * min(phases) <= share <= 1.02 * max(phases):
        yield f"{share:.4f} of the layers ran, and {' and '.join(f'{each:.4f}' for each in phases)} are stated by phase"
    known = [(line["depth"], line["prompt_tokens"] + line["output_tokens"]) for line in case.samples]
    if any(each is None for each, _ in known) or not (tokens := sum(count for _, count in known)):
        return
    of_documents = sum((each or 0.0) * count for each, count in known) / tokens
    if not isclose(share, of_documents, rel_tol=0.05):
        yield f"{share:.4f} of the layers ran, the documents say {of_documents:.4f}"


def audit(case: Case) -> Iterator[str]:
    """PyTorch's counter saw the FLOPs that are stated, by the ratio and by the two counts."""
    flops = case.record["flops"] or {}
    if doubt := audit_doubt(flops.get("audit_ratio")):
        yield doubt
    stated, counted = flops.get("audit_stated"), flops.get("audit_counted")
    if stated and counted is not None and (doubt := audit_doubt(counted / stated)):
        yield doubt
    if stated and flops.get("audit_ratio") and not isclose(flops["audit_ratio"], counted / stated, rel_tol=1e-6):
        yield f"an audit of {flops['audit_ratio']} is stated, and its counts give {counted / stated}"


def by_shape(case: Case) -> Iterator[str]:
    """Work lies between the least and the most that the shape allows for what ran, and is that of the traces."""
    given, flops = case.manifest.get("shape"), case.record["flops"]
    if given is None or flops is None or at(case.record, "trace/layer_tokens_total") is None:
        return
    try:
        shape = ModelShape.model_validate(given if case.renewed else _renewed(given))
    except (ValidationError, KeyError, TypeError, AttributeError):
        yield "the manifest's shape is not that of a model"
        return
    if len(shape.layers) != case.record["model"]["layers"]:
        yield f"the manifest's shape has {len(shape.layers)} layers, the record {case.record['model']['layers']}"
        return
    if case.record["memory"]["weights"] != shape.bytes:
        yield f"{case.record['memory']['weights']:,} bytes of weights are stated, the shape has {shape.bytes:,}"
    if case.record["memory"].get("packed_weights") != shape.packed:
        yield f"packed weights take {shape.packed} bytes by the shape, which is not what is stated"
    traced = [line for line in case.samples if "rows" in line]
    yield from _of_trace(case, shape, traced) if traced else _between(case.record, shape)
    yield from _moved(case, shape)


def _renewed(shape: Mapping[str, Any]) -> dict[str, Any]:
    """A shape of any age as it is written now: older ones have the widths of queries and of keys."""
    layers = []
    for layer in shape["layers"]:
        known = dict(layer)
        if "query_width" in known:
            known |= {"pair_macs": 2 * known.pop("query_width"), "cache_width": 2 * known.pop("kv_width")}
        layers.append(known)
    return {**shape, "layers": layers}


def _between(record: Mapping[str, Any], shape: ModelShape) -> Iterator[str]:
    trace, parts = record["trace"], record["flops"]["parts"]
    ran = {"attention_linear": trace["attention_layer_tokens"], "mlp": trace["mlp_layer_tokens"]}
    macs = {
        "attention_linear": [layer.attention.macs for layer in shape.layers],
        "mlp": [layer.mlp.macs for layer in shape.layers],
    }
    expands = any(layer.expansion.macs for layer in shape.layers)
    for part in _PARTS:
        least, most = (2 * ran[part] * bound(macs[part]) for bound in (min, max))
        stated = parts.get(part, 0)
        if stated < 0.999 * least or (stated > 1.001 * most and not (expands and part == "attention_linear")):
            yield f"{part}: {stated:,} FLOPs, and the shape allows {least:,} to {most:,} for the layers that ran"
    head = 2 * trace["head_tokens"] * shape.head.macs
    if not isclose(parts.get("head", 0), head, rel_tol=1e-3, abs_tol=1):
        yield f"head: {parts.get('head', 0):,} FLOPs, and the shape gives {head:,} for the tokens that ran it"
    tokens = trace["layer_tokens_total"] / len(shape.layers)
    dense = 2 * tokens * sum(layer.attention.macs + layer.mlp.macs for layer in shape.layers)
    if record["method"]["family"] == "baseline" and record["flops"]["dense_equivalent"] < 0.999 * dense:
        stated = record["flops"]["dense_equivalent"]
        yield f"dense: {stated:,} FLOPs, and the shape gives {dense:,.0f} for the layers alone"


def _moved(case: Case, shape: ModelShape) -> Iterator[str]:
    """What attention multiplied and what memory moved lie between what so many tokens and forwards need and can use."""
    trace, flops, layers = case.record["trace"], case.record["flops"], shape.layers
    lengths = [line["prompt_tokens"] + line["output_tokens"] + line["pad_tokens"] for line in case.samples]
    runs = max(1.0, trace["attention_layer_tokens"] / max(trace["layer_tokens_total"], 1))
    drafts = 1 if case.record.get("drafts") is None else 16  # guessed tokens are none of a document
    pairs = runs * drafts * sum(length * length for length in lengths)
    depths = [trace[name] for name in ("mean_depth_prefill", "mean_depth_decode") if trace[name] is not None]
    shallowest = 0.0 if drafts > 1 or not depths else 0.9 * min(1.0, *depths)
    weights = sum(layer.attention.least + layer.mlp.least for layer in layers)
    is_dense = case.record["method"]["family"] == "baseline"
    written = 0.9 * sum(lengths) * sum(map(shape.kv_bytes, range(len(layers)))) if is_dense else 0
    bounds = {
        "attention_scores": (
            flops["parts"].get("attention_scores", 0),
            2 * min(layer.pair_macs for layer in layers) * trace["attention_layer_tokens"],
            2 * sum(layer.pair_macs for layer in layers) * pairs,
        ),
        "weight_bytes": (flops["weight_bytes"], shallowest * trace["forwards"] * weights, inf),
        "kv_bytes": (flops["kv_bytes"], written, 2 * pairs * sum(map(shape.kv_bytes, range(len(layers))))),
    }
    for name, (stated, least, most) in bounds.items():
        if not 0.999 * least <= stated <= 1.001 * most:
            yield f"{name} of {stated:,}: the shape allows {least:,.0f} to {most:,.0f} for these tokens and forwards"


def _of_trace(case: Case, shape: ModelShape, lines: list[SampleLine]) -> Iterator[str]:
    """FLOPs computed again from every document's trace."""
    if len(lines) != len(case.samples):
        yield f"{len(case.samples) - len(lines)} documents have no trace, and others have"
    parts: dict[str, int] = {}
    causal = 0
    for line in lines:
        rows = [[Segment.from_json(segment) for segment in row["segments"]] for row in line["rows"]]
        if any(len(segment.attention) != len(shape.layers) for row in rows for segment in row):
            yield f"the trace of document {line['doc_id']} is of another model"
            return
        counts = [executed_flops(shape, row) for row in rows]
        causal += sum(causal_flops(shape, row).total for row in rows)
        for count in counts:
            for name, value in count.parts().items():
                parts[name] = parts.get(name, 0) + value
        if (total := sum(count.total for count in counts)) != line["flops"]:
            yield f"document {line['doc_id']}: {line['flops']} FLOPs are stated, its trace gives {total}"
    flops = case.record["flops"]
    if not isclose(sum(parts.values()), flops["total"], rel_tol=1e-9):
        yield f"{flops['total']:,} FLOPs are stated, the traces give {sum(parts.values()):,}"
    if not isclose(causal, flops["causal"], rel_tol=1e-6):
        yield f"{flops['causal']:,} causal FLOPs are stated, the traces give {causal:,}"


def modelled(case: Case) -> Iterator[str]:
    """Modelled seconds are those of their parts; a roofline is of its machine, and no less than the work takes."""
    record, ideal = case.record, at(case.record, "time/ideal")
    if ideal is not None and not isclose(sum(ideal["parts"].values()), ideal["ref_s"], rel_tol=1e-6):
        yield f"idealized: {ideal['ref_s']} s are stated, their parts sum to {sum(ideal['parts'].values())} s"
    for name, bound in (at(record, "time/roofline") or {}).items():
        yield from (f"roofline of {ascii(name)[1:-1]:.40}: {text}" for text in _roofline(case, name, bound))


def _roofline(case: Case, name: str, bound: Mapping[str, Any]) -> Iterator[str]:
    seconds = bound["seconds"]
    if bound["parts"] and not isclose(sum(bound["parts"].values()), seconds, rel_tol=1e-6):
        yield f"{seconds} s are stated, the parts sum to {sum(bound['parts'].values())} s"
    for field, factor in (("dollars", (bound["price_usd_per_hour"] or 0) / 3600), ("energy_bound_j", bound["tdp"])):
        if bound[field] is not None and factor and not isclose(bound[field], seconds * factor, rel_tol=1e-6):
            yield f"{field} of {bound[field]} do not follow from {seconds} s"
    peak = bound["peak"]
    if name != HOST:
        try:
            machine = accelerator(name)
            known = {"peak": machine.peak(bound["dtype"]), "bandwidth": machine.bandwidth, "tdp": machine.tdp}
        except HarnessError as error:  # another version may know other machines
            if case.renewed:
                yield str(error)
            return
        for field, value in known.items():
            if bound[field] is not None and bound[field] != value:
                yield f"{field} of {bound[field]:.6g}, and {value} is that of its data sheet"
        peak = known["peak"]
    if case.renewed and (not bound["parts"] or None in (bound["peak"], bound["bandwidth"])):
        yield "a bound without its parts, or without the machine's peak and bandwidth"
    flops = case.record["flops"]
    if flops is None or peak is None or not case.samples:
        return
    padding = flops["total"] - flops["useful"]
    least = max(flops["causal"] - padding, 0) / peak / len(case.samples)
    if seconds < 0.99 * least:
        yield f"{seconds:.4g} s a document, and its arithmetic alone takes {least:.4g} s"
