"""What the harness costs over lm-eval: whole processes, interleaved, and the time until the model first runs.

    python -m tests.benchmarks.harness_overhead --pretrained MODEL --task TASK --limit 200 --batch_size 1 --rounds 5

Both evaluate the same documents with the same model. The harness runs dense alone, keeps its answers and counts
its work; lm-eval scores. Targets: median of the ratios of whole processes at most 1.05 at 200 documents, time to
the first forward at most 0.6 of lm-eval's.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

# Runs a module as a program and writes down when the first module of a model is about to run.
PROBE = """
import os, runpy, sys, time
from importlib.abc import MetaPathFinder

class Hook(MetaPathFinder):
    # transformers comes after torch; hooking torch while it is still being imported would be too early
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.modeling_utils":
            sys.meta_path.remove(self)
            from torch.nn.modules.module import register_module_forward_pre_hook

            def first(module, args):
                handle.remove()
                with open(os.environ["FIRST_FORWARD"], "w") as file:
                    file.write(repr(time.time()))

            handle = register_module_forward_pre_hook(first)
        return None

sys.meta_path.insert(0, Hook())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--model_args", default="dtype=float32")
    parser.add_argument("--task", default="arc_easy")
    parser.add_argument("--include_path")
    parser.add_argument("--limit", default="200")
    parser.add_argument("--batch_size", default="1")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    common = ["--tasks", args.task, "--limit", args.limit, "--batch_size", args.batch_size, "--device", "cpu"]
    common += ["--model_args", f"pretrained={args.pretrained},{args.model_args}"]
    common += ["--include_path", args.include_path] if args.include_path else []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        harness = ["harness", "run", "--method", "dense", "--no_baseline", *common, "--output_path"]
        lm_eval = ["lm_eval", "run", "--model", "hf", *common, "--log_samples", "--output_path"]
        timed([*harness, str(out / "warm-up")], out)  # the harness caches the names of lm-eval's tasks
        rounds = []
        for number in range(args.rounds):
            first, second = ((harness, "h"), (lm_eval, "l")) if number % 2 == 0 else ((lm_eval, "l"), (harness, "h"))
            found = {which: timed([*command, str(out / f"{which}{number}")], out) for command, which in (first, second)}
            rounds.append((found["h"], found["l"]))
            report(f"round {number + 1}", *rounds[-1])
    whole = median(ours[0] / theirs[0] for ours, theirs in rounds)
    start = median(ours[1] / theirs[1] for ours, theirs in rounds)
    print(f"median ratio harness/lm-eval: whole process {whole:.3f}, start to first forward {start:.3f}")


def timed(command: list[str], scratch: Path) -> tuple[float, float]:
    """Seconds of a whole process, and until its first forward."""
    mark = scratch / "first_forward"
    mark.unlink(missing_ok=True)
    environment = {**os.environ, "FIRST_FORWARD": str(mark)}
    began = time.time()
    done = subprocess.run([sys.executable, "-c", PROBE, *command], env=environment, capture_output=True, text=True)
    whole = time.time() - began
    if done.returncode:
        sys.exit(done.stderr)
    return whole, float(mark.read_text()) - began


def report(title: str, ours: tuple[float, float], theirs: tuple[float, float]) -> None:
    print(
        f"{title}: whole {ours[0]:.2f} s against {theirs[0]:.2f} s, "
        f"first forward {ours[1]:.2f} s against {theirs[1]:.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
