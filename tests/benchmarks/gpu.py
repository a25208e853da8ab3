"""What compression saves on a GPU, in at most 8 minutes on one card: a table, and a JSON file after every row.

    python -m tests.benchmarks.gpu --out build/gpu/benchmark.json
    python -m tests.benchmarks.gpu --small --device cpu     # the same script on tiny shapes

Every step is a process with a limit of its own, in the order of its value; what a step measured before its limit, or
before it failed, is kept, and so is everything when this is stopped.

    7B          210 s   Llama 2's shape, random weights made on the card, bfloat16, batch 1, in CUDA graphs: tokens per
                        second of dense, int4, int8 and fp8, and bytes per second of each matrix-vector product
    layer-drop   80 s   the 1.1B model without half of its layers, in a run: memory, energy by the card's counter
    prefill      70 s   64 prompts of 128 tokens through four layers of the 7B shape: 2:4 and block-sparse
    routing      40 s   the 1.1B model scores with routers that skip half of its layers
    1.1B         80 s   as the first step, on a smaller model
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the steps, or with ``--step`` one of them, whose rows go to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu/benchmark.json"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=8.0, help="no step goes on after so many")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the script itself")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        for row in measured(args.step, args.device, args.small):
            print(json.dumps(row), flush=True)
        return
    from tests.benchmarks.gpu_steps import STEPS

    args.out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    result: dict[str, Any] = {"machine": machine(args.device), "small": args.small, "steps": {}}
    try:
        for name, limit, _ in STEPS:
            step = result["steps"][name] = {"outcome": "stopped", "seconds": 0.0, "rows": []}
            left = min(600 if args.small else limit, end - time.monotonic())
            if left < 10:
                step["outcome"] = "no time left"
            else:
                words = ["--step", name, "--device", args.device, *["--small"] * args.small]
                command = [sys.executable, "-m", "tests.benchmarks.gpu", *words]
                run_step(command, left, step, lambda: write(args.out, result))
            write(args.out, result)
    except KeyboardInterrupt:
        print("stopped; what was measured is kept")
    show(result)
    print(args.out)


def measured(step: str, device: str, small: bool) -> Iterator[dict[str, Any]]:
    """The rows of one step, made in this process."""
    import torch

    from harness.run.loading import require_device
    from tests.benchmarks.gpu_models import LARGE, SMALL
    from tests.benchmarks.gpu_steps import STEPS

    place = torch.device(require_device(device))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    steps = {name: rows for name, _, rows in STEPS}
    return steps[step](SMALL if small else LARGE, place)


def machine(device: str) -> dict[str, Any]:
    """What a reader must know of where this ran."""
    import torch
    import transformers

    about = {"torch": torch.__version__, "transformers": transformers.__version__, "cuda": torch.version.cuda}
    if device.startswith("cuda") and torch.cuda.is_available():
        about["card"] = torch.cuda.get_device_name(device)
    return about | {"device": device, "date": time.strftime("%Y-%m-%d")}


def run_step(command: list[str], limit: float, step: dict[str, Any], keep: Any) -> None:
    """Run a process for so many seconds at most; its lines are rows, kept as they come."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    stderr = process.stderr
    reader = threading.Thread(target=lambda: said.extend(stderr), daemon=True)
    reader.start()
    timer = threading.Timer(limit, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            step["rows"].append(json.loads(line))
            step["seconds"] = round(time.monotonic() - began, 1)
            keep()
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    reader.join()
    step["seconds"] = round(time.monotonic() - began, 1)
    step["outcome"] = "done" if code == 0 else "stopped at its limit" if code < 0 else "failed"
    if code > 0:
        step["why"] = "".join(said).strip().splitlines()[-1:] or [f"exit code {code}"]


def write(path: Path, result: dict[str, Any]) -> None:
    """The whole result, beside and then in place."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)


def show(result: dict[str, Any]) -> None:
    """A table of every step."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=160)
    console.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    for name, step in result["steps"].items():
        outcome = " ".join([f"{step['outcome']}, {step['seconds']:.0f} s", *step.get("why", [])])
        table = Table("what", "method", "", title=f"{name}: {outcome}", title_justify="left")
        for row in step["rows"]:
            rest = {key: value for key, value in row.items() if key not in ("what", "method") and value is not None}
            table.add_row(row["what"], row.get("method", ""), "; ".join(f"{key} {short(rest[key])}" for key in rest))
        console.print(table)


def short(value: Any) -> str:
    """A number in three digits, anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
