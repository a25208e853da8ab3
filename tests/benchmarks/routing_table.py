"""The table of docs/routing.md from a folder of runs: every method against dense, with what it executed.

    python -m tests.benchmarks.routing_table runs --task pocket_math --metric exact_match,strict-match

Differences are paired over documents, with 95 % intervals; W>C and C>W count documents that the method alone, and dense
alone, got right.
"""

import argparse
from pathlib import Path

import numpy as np

from harness.results.record import RunRecord
from harness.results.stats.paired import difference
from harness.results.store import RunFolder, Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--metric", required=True)
    args = parser.parse_args()
    folders = [folder for folder in Store(args.runs).folders() if folder.finished]
    records = {folder: folder.record() for folder in folders}
    rows = {folder: record for folder, record in records.items() if record.evaluation.task == args.task}
    dense = next(folder for folder, record in rows.items() if record.method.name == "dense")
    base = scores(dense, args.metric)
    print(
        "| method | score | difference to dense [95 %] | W>C | C>W | layers, prompt | layers, decode | FLOPs | paths |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for folder, record in sorted(rows.items(), key=lambda row: (row[1].method.name, -executed(row[1]))):
        print(line(record, base, scores(folder, args.metric)))


def scores(folder: RunFolder, metric: str) -> dict[int, float]:
    """Each document's score."""
    return {line["doc_id"]: float(line["scores"][metric]) for line in folder.samples()}


def executed(record: RunRecord) -> float:
    """The share of layers that ran while prompts were read."""
    return record.trace.mean_depth_prefill or 0.0


def line(record: RunRecord, base: dict[int, float], own: dict[int, float]) -> str:
    """One row of the table."""
    documents = sorted(base.keys() & own.keys())
    found = difference(*(np.array([each[document] for document in documents]) for each in (base, own)))
    compared = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] | {found.gained} | {found.lost}"
    if record.method.name == "dense":
        compared = "- | - | -"
    decode = record.trace.mean_depth_decode
    ratio = record.flops.total / record.flops.dense_equivalent
    paths = "-" if record.routes is None else f"{record.routes.distinct} ({record.routes.identity:.0%} full)"
    score = np.mean([own[document] for document in documents])
    depths = f"{executed(record):.1%} | {'-' if decode is None else f'{decode:.1%}'}"
    return f"| {record.method.label} | {score:.3f} | {compared} | {depths} | {ratio:.2f} | {paths} |"


if __name__ == "__main__":
    main()
