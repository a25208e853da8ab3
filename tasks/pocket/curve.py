"""Draw the losses of a training log as an SVG: ``python -m harness.tasks.pocket.curve LOG SVG``."""

import argparse
import json
from itertools import accumulate
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN = 720, 360, 48
LINES: Final = {
    "packed": ("short documents", "#1f77b4"),
    "packed_exit": ("short documents, at a random exit", "#9ecae1"),
    "recall": ("recall", "#d62728"),
    "recall_exit": ("recall, at a random exit", "#f4a6a6"),
}
SMOOTH: Final = 0.95
"""Weight of the past in the exponential mean that is drawn."""


def draw(log: Path) -> str:
    """The SVG of a log: loss in nats per weighted token over tokens read in millions."""
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if "packed" in row]
    tokens = [total / 1e6 for total in accumulate(row["tokens"] for row in rows)]
    curves = {name: smoothed([row[name] for row in rows]) for name in LINES}
    top = max(curve[len(curve) // 20] for curve in curves.values())
    parts = [_axes(tokens[-1], top)]
    for index, (name, (label, color)) in enumerate(LINES.items()):
        points = " ".join(
            f"{_x(x, tokens[-1]):.1f},{_y(min(y, top), top):.1f}" for x, y in zip(tokens, curves[name], strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH - 260}" y="{MARGIN + 16 * index}" fill="{color}">{escape(label)}</text>')
    style = 'font-family="sans-serif" font-size="12"'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    return "\n".join([head, background, *parts, "</svg>\n"])


def smoothed(values: list[float]) -> list[float]:
    """The exponential mean of the values so far, without a bias towards the start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = SMOOTH * total + value, SMOOTH * weight + 1
        means.append(total / weight)
    return means


def _axes(tokens: float, top: float) -> str:
    ticks = []
    for step in range(5):
        loss, read = top * step / 4, tokens * step / 4
        ticks.append(f'<text x="{MARGIN - 34}" y="{_y(loss, top) + 4:.1f}">{loss:.2f}</text>')
        ticks.append(f'<text x="{_x(read, tokens) - 8:.1f}" y="{HEIGHT - MARGIN + 18}">{read:.1f}</text>')
    corner = f"{MARGIN},{MARGIN} {MARGIN},{HEIGHT - MARGIN} {WIDTH - MARGIN},{HEIGHT - MARGIN}"
    ticks.append(f'<polyline points="{corner}" fill="none" stroke="black"/>')
    ticks.append(f'<text x="{WIDTH / 2 - 60}" y="{HEIGHT - 10}">million tokens read</text>')
    ticks.append(f'<text x="{MARGIN - 34}" y="{MARGIN - 16}">loss, nats per weighted token</text>')
    return "\n".join(ticks)


def _x(tokens: float, most: float) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * tokens / most


def _y(loss: float, top: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * loss / top


def main() -> None:
    """Draw a log, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="log.jsonl of a training run")
    parser.add_argument("svg", type=Path, help="the file to write")
    arguments = parser.parse_args()
    arguments.svg.write_text(draw(arguments.log))


if __name__ == "__main__":
    main()
