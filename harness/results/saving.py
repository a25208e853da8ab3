"""What a run saved, decided from what was observed of it, and why where that is nothing.

Records are handled as the JSON that they are. A cost counts as saved where it is below dense's on the same tokens;
older records have dense's FLOPs alone. Where the dense run wrote as much, its own costs count too.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from harness.results.audit import audit_doubt
from harness.results.baseline import SAME_LENGTH, same_length

Saving = Literal["none", "real", "simulated"]
Record = Mapping[str, Any]

_COUNTED: Final = (
    ("flops", "flops", "total", "dense_equivalent"),
    ("weight_bytes", "flops", "weight_bytes", "dense_weight_bytes"),
    ("kv_bytes", "flops", "kv_bytes", "dense_kv_bytes"),
    ("weights", "memory", "weights", "dense_weights"),
    ("kv_peak", "memory", "kv_peak", "dense_kv_peak"),
)
"""Counted costs: the name of the ratio to the dense run; the section, its cost, and dense's on the same tokens."""
_ROUNDING: Final = 1e-6
"""Shares of weight reads are sums of fractions, and are kept as whole bytes."""


def declared(record: Record) -> Saving:
    """What the run's methods and kernels say that they save."""
    savings: Saving = record["method"]["savings"]
    return "real" if record["method"].get("declared_real") else savings


def saving(record: Record) -> Saving:
    """What the run saved: what was declared, unless real work was to be saved, and none was, or none that is known; it
    took longer; or PyTorch's counter saw other work than the savings are computed from.
    """
    stated, saved = declared(record), saved_work(record)
    is_unknown = record["flops"] is None and not saved
    is_none = record["method"].get("kernel_slower") or _doubt(record) or saved is False or is_unknown
    return "none" if stated == "real" and is_none else stated


def saved_work(record: Record) -> bool | None:
    """Whether some counted cost is below dense's on the same tokens; None if the record cannot tell."""
    known = list(_ratios(record))
    if any(ratio < 1 - tolerance for _, ratio, tolerance in known):
        return True
    return False if len({name for name, _, _ in known}) == len(_COUNTED) else None


def _doubt(record: Record) -> str | None:
    """Why the counted work is not to be believed."""
    return audit_doubt((record["flops"] or {}).get("audit_ratio"))


def _ratios(record: Record) -> Iterator[tuple[str, float, float]]:
    """Counted costs by name over dense's, each with the tolerance within which it is dense's.

    Dense's cost on the same tokens decides where the record has it. The dense run counts too where it read and wrote
    those very tokens: it may have needed other forwards for them. Totals of other texts say nothing of the cache,
    whose reads grow with the square of a text's length and whose peak is that of one document.
    """
    baseline = record.get("baseline") or {}
    of_runs, length = baseline.get("ratios") or {}, baseline.get("output_tokens")
    of_same_texts = length is None or (length == 1 and baseline.get("answers_changed") == 0)
    for name, section, cost_name, dense_name in _COUNTED:
        known = record[section] or {}  # null where no formula counts what the model does
        cost, dense = known.get(cost_name), known.get(dense_name)
        if dense is not None and cost is not None:
            yield name, (cost / dense if dense else 1.0), _ROUNDING
        if name in of_runs and (of_same_texts or name == "weights"):
            yield name, of_runs[name]["value"], _ROUNDING
        elif name in of_runs and dense is None and same_length(length):
            ratio, tolerance = of_runs[name]["value"], SAME_LENGTH[1] - 1
            if not name.startswith("kv_") or ratio >= 1 - tolerance:
                yield name, ratio, tolerance
        elif cost == 0:  # a model without a cache
            yield name, 1.0, _ROUNDING


def why_none(record: Record) -> str:
    """Why a run saved nothing, from what ran."""
    if record["method"].get("kernel_slower"):
        return "the kernel that was asked for is slower than dense on this machine"
    if doubt := _doubt(record):
        return f"{doubt}, so that what was saved is not known"
    trace = record["trace"]
    scored = "" if trace["output_tokens"] else "scored text: "
    passes = (trace["attention_layer_tokens"], trace["mlp_layer_tokens"])
    if None in passes:
        return "its layers are not seen"
    if record["flops"] is None:
        return f"what it multiplies is not known: {(record.get('missing') or {}).get('flops', 'no reason is kept')}"
    ran, every = sum(passes) / 2, trace["layer_tokens_total"]
    if ran > every:
        return f"layers ran {ran / every:.2f} times as often as in dense"
    if passes != (every, every):
        return "what it adds costs as much as what it leaves out"
    if (record.get("routes") or {}).get("identity", 1) < 1:
        return f"{scored}as many layers ran as in dense, others of them"
    if scored and "early-exit" in record["method"]["family"]:
        return f"{scored}exits are masked, every layer ran"
    return f"{scored}every layer ran on every token"


def unexecuted(record: Record) -> str | None:
    """What is said of a run that was to save real work and ran just what dense runs; None of any other."""
    in_cache = (ratio < 1 - tolerance for name, ratio, tolerance in _ratios(record) if name.startswith("kv_"))
    if record["trace"]["executed"] is not False or declared(record) != "real" or any(in_cache):
        return None
    baseline = record.get("baseline") or {}
    changed = baseline.get("answers_changed")
    if _answers_are_those_of_dense(record, changed):
        return "never executed: every layer ran on every token, and every answer is dense's"
    share = f", and {changed:.1%} of the answers changed" if changed else ""
    return f"saved no work: every layer ran on every token, as in dense{share}"


def _answers_are_those_of_dense(record: Record, changed: float | None) -> bool:
    """Whether no answer changed, none is shorter or longer, and no score differs; without answers, scores alone."""
    if (record.get("baseline") or {}).get("output_tokens") not in (1, None):
        return False
    changes = [score["vs_baseline"] for score in record["scores"]]
    compared = [change["difference"] for change in changes if change is not None]
    return changed in (0, None) and bool(compared) and not any(compared)
