"""Numbers as people read them; what is not known is a dash and never a zero."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["score", "difference", "ratio"]


@dataclass(frozen=True)
class Notation:
    """How numbers are written. Pages and terminals differ in digits and signs alone.

    Attributes:
        decimals: of a score below 10; a larger score has one digit more than that in all.
        minus, cross: the sign of a negative difference, and that of a ratio.
        bounds: an interval as a format of its two bounds.
        unknown: what stands for a number that is not known.
        digits: of a quantity with its unit.
        fine: a ratio below this has three decimals, others have two.
        prefixes: of units, the largest first.
    """

    decimals: int
    minus: str
    cross: str
    bounds: str
    unknown: str
    digits: int = 3
    fine: float = 0.095
    prefixes: tuple[tuple[float, str], ...] = (
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

    def score(self, value: float | None) -> str:
        """A score, as 0.6942 or 1234.5."""
        if value is None:
            return self.unknown
        if abs(value) < 10:
            return f"{value:.{self.decimals}f}"
        return f"{float(f'{value:.{self.decimals + 1}g}'):.15g}"

    def difference(self, value: float | None) -> str:
        """A difference, always with its sign."""
        if value is None:
            return self.unknown
        return f"{self.minus if value < 0 else '+'}{self.score(abs(value))}"

    def ratio(self, value: float | None) -> str:
        """A ratio to dense, as 0.80×."""
        return self.unknown if value is None else f"{self._bare_ratio(value)}{self.cross}"

    def _bare_ratio(self, value: float) -> str:
        return f"{value:.3f}" if abs(value) < self.fine else f"{value:.2f}"

    def interval(self, low: float | None, high: float | None, kind: Kind = "ratio") -> str:
        """The bounds of a 95 % interval of a score, difference or ratio; empty without one."""
        if low is None or high is None:
            return ""
        writers: dict[Kind, Callable[[float], str]] = {"score": self.score, "difference": self.difference}
        write = writers.get(kind, self._bare_ratio)
        return self.bounds.format(write(low), write(high))

    def quantity(self, value: float | None, unit: str) -> str:
        """A number with its unit and prefix, as 1.23 GFLOP; a share as per cent."""
        if value is None:
            return self.unknown
        if unit == "share":
            return f"{value * 100:.0f} %"
        size, prefix = next((pair for pair in self.prefixes if abs(value) >= pair[0]), (1.0, ""))
        return f"{float(f'{value / size:.{self.digits}g}'):g} {prefix}{unit}"


PAGE: Final = Notation(decimals=4, minus="−", cross="×", bounds="{} to {}", unknown="–")
TERMINAL: Final = Notation(decimals=3, minus="-", cross="x", bounds="[{}, {}]", unknown="-")
"""Plain characters, to be copied and searched for, and few enough for 100 columns."""
