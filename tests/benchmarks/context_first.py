"""What scoring context first takes of lm-eval's time: whole processes that score the same documents in turn.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.context_first --pretrained MODEL --task arc_easy --num_fewshot 10 \\
        --limit 50 --batch_size 1 --rounds 1

lm-eval reads the context once for each answer choice, the harness once for all. Prints seconds of the wall clock and of
the processors, and the ratios; on a shared machine the processors' are the ones to compare. Target: at most 0.4 with
10 examples in the prompt and 4 choices, at batch sizes 1 and above.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--task", default="arc_easy")
    parser.add_argument("--num_fewshot", default="10")
    parser.add_argument("--limit", default="50")
    parser.add_argument("--batch_size", default="1")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    common = ["--tasks", args.task, "--num_fewshot", args.num_fewshot, "--limit", args.limit, "--device", "cpu"]
    common += ["--batch_size", args.batch_size, "--model_args", f"pretrained={args.pretrained},dtype=float32"]
    ours = ["harness", "run", "--method", "dense", "--score_mode", "context-first", "--measure", "flops", *common]
    commands = {"lm-eval": ["lm_eval", "run", "--model", "hf", *common], "context-first": ours}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as out:
                seconds[name].append(timed([*command, "--output_path", out]))
            print(f"{name}: {seconds[name][-1][0]:.1f} s by the clock, {seconds[name][-1][1]:.1f} s of processors")
    for what, index in (("clock", 0), ("processors", 1)):
        pairs = zip(seconds["context-first"], seconds["lm-eval"], strict=True)
        print(f"context-first over lm-eval, {what}: {median(own[index] / base[index] for own, base in pairs):.3f}")


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of the clock and of processors that a module's whole process takes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
