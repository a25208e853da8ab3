"""What ``harness analyze attention`` found, as tables and figures: each figure is drawn from its table alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from harness.reports.columns import at
from harness.reports.figures import Plot
from harness.reports.rows import Row, difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

Lines = Sequence[Mapping[str, Any]]
_RULE: Final = "#8a867c"
_COLOURS: Final = ("#0067a5", "#bb4a00", "#0a6a6e", "#8b3f93", "#8a6500", "#625f58")
_MARKERS: Final = "osD^vP"


def kept_lines(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Quality against what the cache kept: a line for every run that is compared with dense and whose cache is known.

    ``kept`` is the largest cache over dense's for the same tokens; ``pairs`` are the FLOPs of attention's products over
    those of the dense run, where that is among the rows and read the same texts in the same forwards.
    """
    lines = []
    for row in rows:
        change = difference(row.score)
        held, dense_held = (at(row.record, f"memory/{name}") for name in ("kv_peak", "dense_kv_peak"))
        if row.is_dense or row.score is None or change is None or not held or not dense_held:
            continue
        products = at(row.record, "flops/parts/attention_scores")
        dense_products = at(row.dense, "flops/parts/attention_scores") if row.dense else None
        alike = row.dense is not None and at(row.record, "trace/forwards") == at(row.dense, "trace/forwards")
        lines.append(
            {
                "task": row.record["evaluation"]["task"],
                "model": row.model,
                "method": row.record["method"]["label"],
                "name": row.record["method"]["name"],
                "metric": row.score["metric"],
                "documents": row.score["n"],
                "settings": row.settings,
                "kept": held / dense_held,
                "pairs": products / dense_products if products and dense_products and alike else None,
                "score": row.score["value"],
                "difference": change["difference"],
                "low": change["low"],
                "high": change["high"],
            }
        )
    return sorted(lines, key=lambda line: (line["task"], line["model"], line["name"], -line["kept"]))


def plots(analysis: Mapping[str, Lines]) -> Iterator[Plot]:
    """The figure of every part of an analysis that has lines."""
    from pandas import DataFrame

    titles = {
        "layers": ("Entropy and sinks by layer", _layers),
        "split": ("Attention of a decode step", _split),
        "length": ("Costs by length of the context", _lengths),
        "kept": ("Quality against kept share", _kept),
    }
    for name, lines in analysis.items():
        if lines:
            title, draw = titles[name]
            yield Plot(f"attention_{name}", title, DataFrame(list(lines)), draw)


def _layers(axes: "Axes", data: "DataFrame") -> None:
    """Means over heads, with the range of the heads."""
    shares = data.assign(entropy=data["entropy"] / data["uniform"])
    named = {"entropy": "entropy, of uniform's", "sinks": "first keys", "recent": "last keys"}
    for (column, label), colour, marker in zip(named.items(), _COLOURS, _MARKERS, strict=False):
        by_layer = shares.groupby("layer")[column]
        mean = by_layer.mean()
        axes.plot(mean.index, mean, color=colour, marker=marker, markersize=4, label=label)
        axes.fill_between(mean.index, by_layer.min(), by_layer.max(), color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("layer (band: from the lowest head to the highest)")
    axes.set_ylabel("share")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=7)


def _split(axes: "Axes", data: "DataFrame") -> None:
    named = {"sdpa": "torch's attention", "whole": "whole heads", "split": "split keys"}
    for (column, label), colour, marker in zip(named.items(), _COLOURS, _MARKERS, strict=False):
        axes.plot(data["keys"], data[column], color=colour, marker=marker, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("keys")
    axes.set_ylabel("milliseconds a layer")
    axes.legend(fontsize=7)


def _lengths(axes: "Axes", data: "DataFrame") -> None:
    for number, ((method, cost), part) in enumerate(data.groupby(["method", "cost"], sort=False)):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        bars = [part["value"] - part["low"], part["high"] - part["value"]]
        axes.errorbar(
            part["length"],
            part["value"],
            yerr=bars,
            color=colour,
            marker=marker,
            markersize=4,
            label=f"{method}, {cost}",
        )
    axes.axhline(1, color=_RULE, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of the context")
    axes.set_ylabel("cost, × dense")
    axes.legend(fontsize=7)


def _kept(axes: "Axes", data: "DataFrame") -> None:
    for number, ((task, name), part) in enumerate(data.groupby(["task", "name"], sort=False)):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot(part["kept"], part["difference"], color=colour, marker=marker, markersize=4, label=f"{name}, {task}")
    axes.axhline(0, color=_RULE, linestyle=":", linewidth=1)
    axes.set_xlabel("KV cache, × dense")
    axes.set_ylabel("score, method − dense")
    axes.legend(fontsize=7)
