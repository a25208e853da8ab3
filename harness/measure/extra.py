"""Work that a trace counted for itself: what methods add to the model's own, and layers in whose place others ran."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

FILL = "fill"
"""The kind of added work that projects keys and values alone; every other kind decides, predicts or checks."""

Part = Literal["attention", "scores", "mlp", "cache", "head"]
"""What of a layer was counted as it ran: attention's projections, its query-key-value products, the MLP, and the bytes
of keys and values that it wrote; and the language-model head, which is of no layer, at 0."""


class Extra(NamedTuple):
    """Work of one kind that a method adds, in one forward of one row.

    Attributes:
        tokens: that it was done for.
        calls: of the modules that did it; 0 beside ``tokens`` in a trace that was stored without them.
        macs: multiply-accumulates.
        bytes: this row's share of the weight bytes that were read for it.
    """

    tokens: int = 0
    calls: int = 0
    macs: int = 0
    bytes: float = 0.0

    def plus(self, more: "Extra") -> "Extra":
        """Both."""
        return Extra(*(mine + added for mine, added in zip(self, more, strict=True)))  # type: ignore[arg-type]


class Work(NamedTuple):
    """Work of one part of a layer, in one forward of one row, in place of what the model's shape says.

    Attributes:
        macs: multiply-accumulates.
        bytes: this row's share of the weight bytes that were read, or the bytes that were written to the cache; None
            where the shape says them.
    """

    macs: int
    bytes: float | None = None

    def plus(self, more: "Work") -> "Work":
        """Both."""
        known = [part.bytes for part in (self, more) if part.bytes is not None]
        return Work(self.macs + more.macs, sum(known) if known else None)


Own = Mapping[Part, Mapping[int, Work]]
"""By part, and by the dense layer's index."""


def share(total: int, of: int, number: int) -> int:
    """What falls to one of some rows of a total that they share equally; the first ones take what is left over."""
    whole, rest = divmod(total, of)
    return whole + (number < rest)


def extra_of(plain: Mapping[str, Any]) -> dict[str, Extra]:
    """Added work of a stored segment, in the form of today or in the fields that older traces have."""
    if "extra" in plain:
        return {kind: Extra(*values) for kind, values in plain["extra"].items()}
    older = {
        "router": Extra(plain.get("router", 0), plain.get("router_calls", 0), plain.get("router_macs", 0)),
        FILL: Extra(sum(plain.get("fill", ())), 0, plain.get("fill_macs", 0)),
    }
    extra = {kind: work for kind, work in older.items() if any(work)}
    if extra and (read := plain.get("auxiliary_bytes", 0.0)):  # which were not kept apart
        first = next(iter(extra))
        extra[first] = extra[first]._replace(bytes=read)
    return extra


def own_of(plain: Mapping[str, Any]) -> dict[Part, dict[int, Work]]:
    """Counted parts of a stored segment's layers."""
    return {
        part: {layer: Work(macs, read) for layer, macs, read in layers} for part, layers in plain.get("own", {}).items()
    }


OLDER = ("fill_macs", "router", "router_calls", "router_macs", "auxiliary_bytes")
"""Fields of older stored segments, which are one mapping now."""
