"""Figures of a comparison: each is drawn from a table that is written beside it, and from nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

from harness.contract.families import look
from harness.results.stats.pareto import Point, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

_RULE, _FRONT = "#8a867c", "#0a6a6e"  # lines of reference, and the line through the front
_BLUE, _ORANGE = "#0067a5", "#bb4a00"  # for two of a kind; colour-blind readers tell them apart
_PARTS = (
    ("#0a6a6e", ""),
    ("#63a7aa", "//"),
    ("#b9d6d6", ".."),
    ("#bb4a00", ""),
    ("#e8a87a", "\\\\"),
    ("#8b3f93", "xx"),
    ("#8a6500", "++"),
    ("#625f58", ""),
)
"""Colour and hatch of the parts of a bar."""
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


def pareto(axes: "Axes", data: "DataFrame") -> None:
    """Score against a cost's ratio; filled markers are on the front that respects the intervals."""
    kept = set(front_of(data))
    for number, (_, row) in enumerate(data.iterrows()):
        family = look(row["family"])
        axes.errorbar(
            row["cost"],
            row["score"],
            xerr=_bars(row["cost"], row["cost_low"], row["cost_high"]),
            yerr=_bars(row["score"], row["score_low"], row["score_high"]),
            fmt=family.marker,
            color=family.light,
            markerfacecolor=family.light if number in kept else "white",
            ecolor=family.light,
            elinewidth=0.8,
            markersize=7,
            zorder=3,
        ).lines[0].set_gid(f"run-{number}")
    best_first = sorted(range(len(data)), key=lambda number: number not in kept)
    _name(axes, [(data["cost"].iloc[n], data["score"].iloc[n], data["method"].iloc[n]) for n in best_first])
    on = data.iloc[sorted(kept, key=lambda number: data["cost"].iloc[number])]
    axes.step(on["cost"], on["score"], where="post", color=_FRONT, linewidth=1.2, zorder=2)
    axes.axvline(1, color=_RULE, linestyle=":", linewidth=1)
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
        signed = quality and (min(sign * bound for bound in quality), max(sign * bound for bound in quality))
        points.append(Point(row["cost"], sign * row["score"], cost, signed, data.attrs["kind"]))
    return front(points)


def strength(axes: "Axes", data: "DataFrame") -> None:
    """Difference to dense against a method's parameter, with its interval."""
    family = look(data["family"].iloc[0])
    axes.plot(data["strength"], data["difference"], color=family.light, linewidth=1.2)
    for _, row in data.iterrows():
        axes.errorbar(
            row["strength"],
            row["difference"],
            yerr=_bars(row["difference"], row["low"], row["high"]),
            fmt=family.marker,
            color=family.light,
            elinewidth=0.8,
        )
    axes.axhline(0, color=_RULE, linestyle=":", linewidth=1)
    axes.set_xlabel(data["parameter"].iloc[0])
    axes.set_ylabel("score, method − dense")


def breakdown(axes: "Axes", data: "DataFrame") -> None:
    """What a run's FLOPs (or idealized seconds) are made of, over dense's total."""
    left = [0.0] * len(data)
    for part, (colour, hatch) in zip((name for name in data.columns if name != "method"), cycle(_PARTS), strict=False):
        style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "height": 0.7}
        axes.barh(range(len(data)), data[part], left=left, label=part.replace("_", " "), **style)
        left = [base + width for base, width in zip(left, data[part], strict=True)]
    axes.set_yticks(range(len(data)), [method[:40] for method in data["method"]], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color=_RULE, linestyle=":", linewidth=1)
    axes.set_xlabel(data.attrs["unit"])
    axes.figure.legend(loc="outside lower center", fontsize=7, ncols=4)


def depths(axes: "Axes", data: "DataFrame") -> None:
    """How deep documents went, by difficulty: those that dense gets right and those that it gets wrong."""
    bins = [edge / 20 for edge in range(int(20 * max(1.0, data["depth"].max())) + 2)]
    for dense_right, colour, hatch in ((True, _BLUE, ""), (False, _ORANGE, "///")):
        documents = data[data["dense_right"] == dense_right]["depth"]
        label = f"dense is {'right' if dense_right else 'wrong'} ({len(documents)})"
        axes.hist(documents, bins=bins, color=colour, alpha=0.55, hatch=hatch, edgecolor="white", label=label)
    axes.set_xlabel("executed share of the layers")
    axes.set_ylabel("documents")
    axes.legend(fontsize=7)


def phases(axes: "Axes", data: "DataFrame") -> None:
    """Speed of prefill and of decoding over dense's: what a first token and a further one take, turned over."""
    styles = {"prefill": (_BLUE, ""), "decode": (_ORANGE, "//")}
    measured = [phase for phase in styles if data[phase].notna().any()]
    for number, phase in enumerate(measured):
        shift = 0.4 * number - 0.2 * (len(measured) - 1)
        colour, hatch = styles[phase]
        centres = [place + shift for place in range(len(data))]
        axes.bar(centres, data[phase], 0.36, color=colour, hatch=hatch, edgecolor="white", label=phase)
    axes.set_xticks(range(len(data)), [method[:24] for method in data["method"]], rotation=20, ha="right", fontsize=7)
    axes.axhline(1, color=_RULE, linestyle=":", linewidth=1)
    axes.set_ylabel("measured speed, × dense")
    axes.legend(fontsize=7)


def speedups(axes: "Axes", data: "DataFrame") -> None:
    """Measured against modelled speed-up; on the line, the model holds."""
    for _, row in data.iterrows():
        family = look(row["family"])
        axes.errorbar(
            row["modelled"],
            row["measured"],
            yerr=_bars(row["measured"], row["measured_low"], row["measured_high"]),
            fmt=family.marker,
            color=family.light,
            elinewidth=0.8,
        )
    edge = [
        min(data["modelled"].min(), data["measured"].min(), 1),
        max(data["modelled"].max(), data["measured"].max(), 1),
    ]
    axes.plot(edge, edge, color=_RULE, linestyle=":", linewidth=1)
    _name(axes, list(zip(data["modelled"], data["measured"], data["method"], strict=True)))
    axes.set_xlabel("modelled speed-up (idealized time)")
    axes.set_ylabel("measured speed-up (latency)")


def _name(axes: "Axes", points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points where there is room, in the order given; the table beside the figure has all."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float, float]] = []
    for x, y, name in points:
        text = name[:40]
        across, up = (x - left) / (right - left), (y - bottom) / (top - bottom)  # shares of the axes' size
        width = 0.0105 * len(text) + 0.02  # share of the axes' width, at this size of figure and type
        start = across if across + width < 1.02 else across - width
        if any(start < end and begin < start + width and abs(up - level) < 0.05 for begin, end, level in taken):
            continue
        taken.append((start, start + width, up))
        shift, side = (6, "left") if start == across else (-6, "right")
        axes.annotate(text, (x, y), (shift, 4), textcoords="offset points", fontsize=7, ha=side)


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None or low != low or high != high else (low, high)


def _bars(value: float, low: float | None, high: float | None) -> Sequence[Sequence[float]] | None:
    """Lengths of an error bar to both sides."""
    bounds = _interval(low, high)
    return None if bounds is None else [[max(value - bounds[0], 0)], [max(bounds[1] - value, 0)]]
