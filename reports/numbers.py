"""Numbers as people read them; what is not known is a dash and never a zero."""

_PREFIXES = (
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)


def quantity(value: float | None, unit: str) -> str:
    """Three digits and a prefix: 1.23 GFLOP; a share as per cent."""
    if value is None:
        return "–"
    if unit == "share":
        return f"{value:.0%}"
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if abs(value) >= size), (1.0, ""))
    return f"{float(f'{value / size:.3g}'):g} {prefix}{unit}"


def score(value: float | None) -> str:
    """A score with four decimals, or five digits where it is large."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.5g}"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    if value is None:
        return "–"
    return f"{'−' if value < 0 else '+'}{score(abs(value))}"


def times(value: float | None) -> str:
    """A ratio to dense."""
    if value is None:
        return "–"
    return f"{value:.3f}×" if abs(value) < 0.095 else f"{value:.2f}×"


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """The bounds of a 95 % interval; empty without one."""
    if low is None or high is None:
        return ""
    write = signed if sign else lambda bound: times(bound).removesuffix("×")
    return f"{write(low)} to {write(high)}"
