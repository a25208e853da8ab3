"""Regimes that stand apart from single requests: each has tables of its own, and no column beside the others."""

from types import ModuleType
from typing import Final

from harness.reports import graph, throughput

REGIMES: Final[dict[str, tuple[str, ModuleType]]] = {
    "throughput": ("Throughput of batches", throughput),
    "graph": ("Without launch overhead, by captured steps", graph),
}
"""The title of each one's tables, and what makes them, by the name of its file in a report."""
