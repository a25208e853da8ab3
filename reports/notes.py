"""What a reader of a row's numbers must know beside them: what was saved here, what costs more, on which basis."""

import re
from collections.abc import Iterator
from typing import Final

from harness.contract.families import Family
from harness.core.rounding import Rounding
from harness.reports.columns import BY_KEY, COLUMNS, at, costs_more, estimate, ratio, why_no_ratio, wrote_as_much
from harness.reports.numbers import Notation
from harness.reports.rows import Row
from harness.results.saving import unexecuted, why_none

SHUFFLE: Final = "shuffle"
"""The method that gives a model's weights other neighbours."""
_ALIKE: Final = 5e-4
"""Ratios that differ by less are the same to three decimals."""
_MASKED: Final = re.compile(r"dense product over (\S+) zeros")
"""What computes a linear layer whose weight is masked: such a method has no kernel that could be faster."""
_JOINED: Final = "; "
"""Between the product for few tokens and the one for many."""


def notes(row: Row, notation: Notation, *, in_cells: bool = False) -> list[str]:
    """Sentences about one row, none about dense's own; numbers are written as the place that shows them does.

    Args:
        in_cells: the table marks a simulated saving, and a ratio above 1 in its own cell: leave these out.
    """
    return [] if row.is_dense else [*_basis(row, notation), *([] if in_cells else _marked(row, notation))]


def _basis(row: Row, notation: Notation) -> Iterator[str]:
    """What the row's ratios are of, and why it saved nothing."""
    method, kernels = row.record["method"], _kernels(row)
    rounding = Rounding.of(row.record["model"])
    if rounding and Family.QUANTIZATION in method["family"].split("+"):
        yield f"{rounding.sentence} before the method rounds them: dense is not their original{_grid(row, rounding)}"
    is_slower, asked = method.get("kernel_slower"), method.get("kernel_asked")
    if row.saving == "none here" and not unexecuted(row.record):
        yield f"none here: {why_none(row.record) if is_slower else kernels or why_none(row.record)}"
    if kernels and (is_slower or row.saving != "none here"):
        yield kernels
    if asked in (method.get("kernels") or {}) and asked not in kernels:
        yield f"ran on {asked}, asked for by --kernel"
    if packed := at(row.record, "memory/packed_weights"):
        yield (
            f"packed size, not measured: its weights would take {notation.quantity(packed, 'B')}, and the floats that "
            f"were multiplied took {notation.quantity(at(row.record, 'memory/weights'), 'B')}"
        )
    yield from _length(row, notation)
    if (words := estimate(row.record)) and ratio(row.record, row.dense, BY_KEY["energy_estimated"]) is None:
        joules = notation.quantity(at(row.record, "energy/estimated_j"), "J")
        why = "the clock decides it" if estimate(row.record, of_clock=True) else "it has no interval over windows"
        yield f"energy {joules} a request, {words}: {why}, and no ratio is made of it"


def _grid(row: Row, rounding: Rounding) -> str:
    """That a method may find the numbers that the file had, in the same groups; empty where its groups are others."""
    method = row.record["method"]
    parts = zip(method["name"].split("+"), method["params"], strict=False)
    before = {each.group for each in rounding.formats.values() if each.group > 1}
    for name, params in parts:
        if name == SHUFFLE:
            return ""
        for size in (params.get("group"), params.get("block")):
            if isinstance(size, int) and size in before:
                return (
                    f"; {name} rounds in the same groups of {size}, and with float offsets would find the same numbers "
                    f"again: {SHUFFLE}+{method['label']} has other groups"
                )
    return ""


def _marked(row: Row, notation: Notation) -> Iterator[str]:
    """A saving on paper, and costs above dense's."""
    if row.saving == "simulated":
        yield "its saving is simulated: the arithmetic on paper, not the running code, does less"
    if dearer := _dearer(row, notation):
        yield f"costs more than dense: {dearer}"


def _kernels(row: Row) -> str:
    """Where dense products stand in a kernel's place, for any tokens or for many, and whether that was asked for."""
    method = row.record["method"]
    counts, asked = method.get("kernels") or {}, method.get("kernel_asked")
    by_tokens = {name: count for name, count in counts.items() if _JOINED in name}
    dense = {
        name: count
        for name, count in counts.items()
        if "dense" in name and not _MASKED.fullmatch(name) and name not in by_tokens
    }
    on_request = sum(count for name, count in dense.items() if asked in ("dense", name))
    unforced = sum(dense.values()) - on_request

    def share(count: int) -> str:
        return "" if count == sum(counts.values()) else f" for {count} of {sum(counts.values())} linear layers"

    return "; ".join(
        [f"dense products{share(on_request)}, asked for by --kernel {asked}"] * bool(on_request)
        + [f"no faster kernel on this machine{share(unforced)}: dense products"] * bool(unforced)
        + [f"by the number of tokens{share(count)}: {name}" for name, count in by_tokens.items()]
    )


def _length(row: Row, notation: Notation) -> Iterator[str]:
    """On which tokens the costs of a run are compared that wrote another length than dense."""
    if wrote_as_much(row.record):
        return
    written = at(row.record, "baseline/output_tokens")
    totals = [
        f"{BY_KEY[key].title} {notation.ratio(total.value)}"
        for key in ("flops", "ideal_ref")
        if (total := ratio(row.record, row.dense, BY_KEY[f"{key}_total"])) is not None
    ]
    beside = f"; totals: {', '.join(totals)}" if totals else ""
    timed = ", its latency of texts of one length" if at(row.record, "time/latency") else ""
    lead = f"wrote {notation.ratio(written)} the tokens that dense wrote"
    yield f"{lead}: its ratios are of the same tokens{timed}{beside}"
    if missing := [
        BY_KEY[key].title
        for key in ("flops", "ideal_ref")
        if ratio(row.record, row.dense, BY_KEY[f"{key}_total"]) and not ratio(row.record, row.dense, BY_KEY[key])
    ]:
        yield f"{', '.join(missing)}: {why_no_ratio(row.record, BY_KEY['ideal_ref'])}"


def _dearer(row: Row, notation: Notation) -> str:
    """The costs that are above dense's by their whole interval."""
    dearer = []
    for column in COLUMNS:
        against = ratio(row.record, row.dense, column)
        if against is None or not costs_more(against, column):
            continue
        if column.key == "ideal_own" and own_is_ref(row):
            continue
        dearer.append(f"{column.title} {notation.ratio(against.value)}")
    return "; ".join(dearer)


def own_is_ref(row: Row) -> bool:
    """Whether the idealized time is the same with the method's own kernels as with dense's, or is not known."""
    own, reference = (ratio(row.record, row.dense, BY_KEY[key]) for key in ("ideal_own", "ideal_ref"))
    return own is None or (reference is not None and abs(own.value - reference.value) < _ALIKE)
