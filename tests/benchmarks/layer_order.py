"""Which layers a model misses least: three findings of papers, checked on one model with paired intervals.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m tests.benchmarks.layer_order --pretrained MODEL \\
        --tasks arc_easy,lambada_openai --limit 200 --counts 3,6 --batch_size 16

1. Attention cheaper than block cheaper than MLP, so many of each gone (LLM-Drop, arXiv:2406.15786).
2. Deeper layers go first, by their influence (ShortGPT, arXiv:2403.03853): those chosen, and Spearman's correlation of
   influence and depth over all layers, which is negative where it holds.
3. Late layers matter less: without a window of blocks from three quarters of the depth on, against one from a quarter.

Differences are of ``acc`` over the same documents, with the intervals and tests of `harness compare`. Runs are kept in
``--runs``, so the same command again adds tasks and counts, and goes on where it stopped.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from harness.results.compare import compare
from harness.results.record import RunRecord
from harness.results.store import RunFolder, Store

METRIC = "acc"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--layers", type=int, default=30, help="How many the model has.")
    parser.add_argument("--tasks", default="arc_easy,lambada_openai")
    parser.add_argument("--limit", default="200")
    parser.add_argument("--counts", default="3,6")
    parser.add_argument("--batch_size", default="16")
    parser.add_argument("--calibration", default="task")
    parser.add_argument("--runs", default="runs/layer_order")
    args = parser.parse_args()
    for task in args.tasks.split(","):
        for count in map(int, args.counts.split(",")):
            units = {unit: f"layer-drop:unit={unit},count={count}" for unit in ("attention", "block", "mlp")}
            windows = {name: window(args.layers * quarter // 4, count) for name, quarter in (("early", 1), ("late", 3))}
            run([*units.values(), *windows.values()], task, args)
            folders = of_task(Store(Path(args.runs)), task)
            print(f"\n{task}, {args.limit} documents, {count} of {args.layers} gone; dense {score(folders['dense'])}\n")
            report({name: folders[method] for name, method in {**units, **windows}.items()}, folders["dense"])


def report(gone: dict[str, RunFolder], dense: RunFolder) -> None:
    """Tables of what each loses, and of the differences that the findings are about."""
    print("| gone | acc [95 %] | against dense [95 %] |\n|---|---|---|")
    for name, folder in gone.items():
        print(f"| {name}: {chosen(folder.record())} | {score(folder)} | {change(dense, folder)} |")
    print("\n| finding | difference [95 %] | p |\n|---|---|---|")
    for less, more in (("attention", "block"), ("block", "mlp"), ("attention", "mlp"), ("late", "early")):
        print(f"| {less} gone less {more} gone | {change(gone[more], gone[less], p=True)} |")
    print(f"\n{depths(gone['block'].record())}", flush=True)


def window(first: int, count: int) -> str:
    """Layer drop of blocks that follow each other."""
    return f"layer-drop:layers={'/'.join(map(str, range(first, first + count)))}"


def run(methods: list[str], task: str, args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "harness", "run", *(word for method in methods for word in ("--method", method))]
    command += ["--task", task, "--pretrained", args.pretrained, "--model_args", "dtype=float32", "--measure", "flops"]
    command += ["--limit", args.limit, "--batch_size", args.batch_size, "--calibration", args.calibration]
    done = subprocess.run([*command, "--output_path", args.runs], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def of_task(store: Store, task: str) -> dict[str, RunFolder]:
    """The runs by their methods, as the command line writes them."""
    folders = {}
    for folder in store.folders():
        record = folder.record()
        if record.evaluation.task == task:
            folders[spelled(record)] = folder
    return folders


def spelled(record: RunRecord) -> str:
    if record.method.name == "dense":
        return "dense"
    (params,) = record.method.params
    if params["layers"]:
        return f"layer-drop:layers={'/'.join(map(str, params['layers']))}"
    return f"layer-drop:unit={params['unit']},count={params['count']}"


def chosen(record: RunRecord) -> str:
    """The layers that went."""
    return " ".join(str(layer) for layer in sorted(layer for _, layer in record.method.state[0]["dropped"]))


def score(folder: RunFolder) -> str:
    (found,) = (score for score in folder.record().scores if score.metric == METRIC)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def change(a: RunFolder, b: RunFolder, *, p: bool = False) -> str:
    """B's score less A's."""
    (found,) = (score.vs_baseline for score in compare(a, b).scores if score.metric == METRIC)
    assert found is not None
    interval = "no interval" if found.low is None else f"[{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.difference:+.3f} {interval}" + (f" | {found.p:.3g}" if p and found.p is not None else "")


def depths(record: RunRecord) -> str:
    """How influence goes with depth."""
    from scipy.stats import spearmanr

    state = record.method.state[0]
    influence, dropped = state["scores"]["block"], [layer for _, layer in state["dropped"]]
    deep = sum(layer >= len(influence) / 2 for layer in dropped)
    correlation = spearmanr(range(len(influence)), influence).statistic
    low, high = correlation_interval(correlation, len(influence))
    return (
        f"Least influence: {deep} of {len(dropped)} blocks in the deeper half; Spearman's correlation of influence and "
        f"depth {correlation:+.2f} [{low:+.2f}, {high:+.2f}] over {len(influence)} blocks"
    )


def correlation_interval(value: float, count: int) -> tuple[float, float]:
    """95 % by Fisher's z, with the standard error of Bonett and Wright (2000) for ranks."""
    from math import atanh, sqrt, tanh

    half = 1.96 * sqrt((1 + value**2 / 2) / (count - 3))
    return tanh(atanh(value) - half), tanh(atanh(value) + half)


if __name__ == "__main__":
    main()
