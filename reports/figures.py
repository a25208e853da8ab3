"""Figures of a comparison: each is drawn from a table that is written beside it, and from nothing else.

Families have a colour that colour-blind readers tell apart and a marker that grey print keeps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

from harness.results.stats.pareto import Point, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

COLOURS = {
    "baseline": "#4c4a45",
    "routing": "#0067a5",
    "early-exit": "#007a58",
    "pruning": "#bb4a00",
    "quantization": "#8b3f93",
    "sparse": "#8a6500",
}
MARKERS = {"baseline": "s", "routing": "o", "early-exit": "^", "pruning": "D", "quantization": "v", "sparse": "P"}
_OTHER = ("#625f58", "X")
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a867c",
    "axes.grid": True,
    "grid.color": "#e3e0d8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Plot:
    """A figure's name, the table that it shows, and how it is drawn."""

    name: str
    title: str
    data: "DataFrame"
    draw: Callable[["Axes", "DataFrame"], None]

    @cached_property
    def svg(self) -> bytes:
        """The picture as SVG whose text is text; the same data give the same bytes."""
        return self._pictures[0]

    @cached_property
    def png(self) -> bytes:
        """The picture as PNG for those who cannot take SVG."""
        return self._pictures[1]

    @cached_property
    def _pictures(self) -> tuple[bytes, bytes]:
        """Both pictures of one drawing; nothing of the surrounding matplotlib settings changes."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        svg, png = BytesIO(), BytesIO()
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(6.4, 3.9))
            axes = figure.subplots()
            self.draw(axes, self.data)
            axes.set_title(self.title, loc="left", fontsize=10, fontweight="bold")
            figure.savefig(svg, format="svg", metadata={"Date": None})
            figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
        return svg.getvalue(), png.getvalue()


def look(family: str) -> tuple[str, str]:
    """Colour and marker of a family."""
    return COLOURS.get(family, _OTHER[0]), MARKERS.get(family, _OTHER[1])


def pareto(axes: "Axes", data: "DataFrame") -> None:
    """Score against a cost's ratio; filled markers are on the front that respects the intervals."""
    kept = set(front_of(data))
    for number, (_, row) in enumerate(data.iterrows()):
        colour, marker = look(row["family"])
        axes.errorbar(
            row["cost"],
            row["score"],
            xerr=_bars(row["cost"], row["cost_low"], row["cost_high"]),
            yerr=_bars(row["score"], row["score_low"], row["score_high"]),
            fmt=marker,
            color=colour,
            markerfacecolor=colour if number in kept else "white",
            ecolor=colour,
            elinewidth=0.8,
            markersize=7,
            zorder=3,
        ).lines[0].set_gid(f"run-{number}")
    best_first = sorted(range(len(data)), key=lambda number: number not in kept)
    _name(axes, [(data["cost"].iloc[n], data["score"].iloc[n], data["method"].iloc[n]) for n in best_first])
    on = data.iloc[sorted(kept, key=lambda number: data["cost"].iloc[number])]
    axes.step(on["cost"], on["score"], where="post", color="#0a6a6e", linewidth=1.2, zorder=2)
    axes.axvline(1, color="#8a867c", linestyle=":", linewidth=1)
    axes.set_xlabel(f"{data.attrs['cost']}, × dense")
    axes.set_ylabel(data.attrs["metric"])
    if data.attrs["less"]:
        axes.invert_yaxis()


def front_of(data: "DataFrame") -> list[int]:
    """Rows of a Pareto table on its front, by position."""
    sign = -1.0 if data.attrs["less"] else 1.0
    points = []
    for _, row in data.iterrows():
        cost = _interval(row["cost_low"], row["cost_high"])
        quality = _interval(row["score_low"], row["score_high"])
        turned = quality and (min(sign * bound for bound in quality), max(sign * bound for bound in quality))
        points.append(Point(row["cost"], sign * row["score"], cost, turned))
    return front(points)


def strength(axes: "Axes", data: "DataFrame") -> None:
    """Difference to dense against a method's parameter, with its interval."""
    colour, marker = look(data["family"].iloc[0])
    bounds = [_bars(row["difference"], row["low"], row["high"]) for _, row in data.iterrows()]
    axes.plot(data["strength"], data["difference"], color=colour, linewidth=1.2)
    for (_, row), bars in zip(data.iterrows(), bounds, strict=True):
        axes.errorbar(row["strength"], row["difference"], yerr=bars, fmt=marker, color=colour, elinewidth=0.8)
    axes.axhline(0, color="#8a867c", linestyle=":", linewidth=1)
    axes.set_xlabel(data["parameter"].iloc[0])
    axes.set_ylabel("score, method − dense")


def breakdown(axes: "Axes", data: "DataFrame") -> None:
    """What a run's FLOPs (or idealized seconds) are made of, over dense's total."""
    shades = ["#0a6a6e", "#63a7aa", "#b9d6d6", "#bb4a00", "#e8a87a", "#8b3f93", "#8a6500", "#625f58"]
    hatches = ["", "//", "..", "", "\\\\", "xx", "++", ""]
    left = [0.0] * len(data)
    for number, part in enumerate(column for column in data.columns if column != "method"):
        style: dict[str, Any] = {"color": shades[number % 8], "hatch": hatches[number % 8], "edgecolor": "white"}
        axes.barh(range(len(data)), data[part], left=left, label=part.replace("_", " "), height=0.7, **style)
        left = [base + width for base, width in zip(left, data[part], strict=True)]
    axes.set_yticks(range(len(data)), [method[:40] for method in data["method"]], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="#8a867c", linestyle=":", linewidth=1)
    axes.set_xlabel(data.attrs["unit"])
    axes.figure.legend(loc="outside lower center", fontsize=7, ncols=4)


def depths(axes: "Axes", data: "DataFrame") -> None:
    """How deep documents went, by difficulty: those that dense gets right and those that it gets wrong."""
    bins = [edge / 20 for edge in range(int(20 * max(1.0, data["depth"].max())) + 2)]
    for dense_right, colour, hatch in ((True, "#0067a5", ""), (False, "#bb4a00", "///")):
        some = data[data["dense_right"] == dense_right]["depth"]
        label = f"dense is {'right' if dense_right else 'wrong'} ({len(some)})"
        axes.hist(some, bins=bins, color=colour, alpha=0.55, hatch=hatch, edgecolor="white", label=label)
    axes.set_xlabel("executed share of the layers")
    axes.set_ylabel("documents")
    axes.legend(fontsize=7)


def phases(axes: "Axes", data: "DataFrame") -> None:
    """Tokens per second while reading and while writing, over dense's."""
    places = range(len(data))
    looks = {"prefill": ("#0067a5", ""), "decode": ("#bb4a00", "//")}
    known = [phase for phase in looks if data[phase].notna().any()]
    for number, phase in enumerate(known):
        shift = 0.4 * number - 0.2 * (len(known) - 1)
        colour, hatch = looks[phase]
        places_of = [at + shift for at in places]
        axes.bar(places_of, data[phase], 0.36, color=colour, hatch=hatch, edgecolor="white", label=phase)
    axes.set_xticks(list(places), [method[:24] for method in data["method"]], rotation=20, ha="right", fontsize=7)
    axes.axhline(1, color="#8a867c", linestyle=":", linewidth=1)
    axes.set_ylabel("tokens per second, × dense")
    axes.legend(fontsize=7)


def speedups(axes: "Axes", data: "DataFrame") -> None:
    """Measured against modelled speed-up; on the line, the model holds."""
    for _, row in data.iterrows():
        colour, marker = look(row["family"])
        axes.errorbar(
            row["modelled"],
            row["measured"],
            yerr=_bars(row["measured"], row["measured_low"], row["measured_high"]),
            fmt=marker,
            color=colour,
            elinewidth=0.8,
        )
    edge = [
        min(data["modelled"].min(), data["measured"].min(), 1),
        max(data["modelled"].max(), data["measured"].max(), 1),
    ]
    axes.plot(edge, edge, color="#8a867c", linestyle=":", linewidth=1)
    _name(axes, list(zip(data["modelled"], data["measured"], data["method"], strict=True)))
    axes.set_xlabel("modelled speed-up (idealized time)")
    axes.set_ylabel("measured speed-up (latency)")


def _name(axes: "Axes", points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points where there is room, the first given first; the table beside the figure has all."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float, float]] = []
    for x, y, name in points:
        text = name[:40]
        at, high = (x - left) / (right - left), (y - bottom) / (top - bottom)
        wide = 0.0105 * len(text) + 0.02  # share of the axes' width, at this size of figure and type
        start = at if at + wide < 1.02 else at - wide
        if any(start < end and begin < start + wide and abs(high - other) < 0.05 for begin, end, other in taken):
            continue
        taken.append((start, start + wide, high))
        shift, side = (6, "left") if start == at else (-6, "right")
        axes.annotate(text, (x, y), (shift, 4), textcoords="offset points", fontsize=7, ha=side)


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None or low != low or high != high else (low, high)


def _bars(value: float, low: float | None, high: float | None) -> Sequence[Sequence[float]] | None:
    """Lengths of an error bar to both sides."""
    bounds = _interval(low, high)
    return None if bounds is None else [[max(value - bounds[0], 0)], [max(bounds[1] - value, 0)]]
