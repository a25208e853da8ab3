"""Dense against `lm-eval run`, whole processes on the same documents: every score and every document's answers.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m tests.benchmarks.same_as_lm_eval --pretrained MODEL \\
        --tasks arc_easy,arc_challenge,hellaswag,piqa,lambada_openai --limit 40 --batch_size 1

Prints a Markdown row for each score: both values to their last digit, how many documents answered alike to the last
digit of every log-likelihood or to the letter, and exits with 1 unless all do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.results.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--limit", default="40")
    parser.add_argument("--batch_size", default="1")
    args = parser.parse_args()
    print("| task | documents | score | harness | lm-eval | same answers |\n|---|---|---|---|---|---|")
    equal = True
    for task in args.tasks.split(","):
        common = ["--tasks", task, "--limit", args.limit, "--batch_size", args.batch_size, "--device", "cpu"]
        common += ["--model_args", f"pretrained={args.pretrained},dtype=float32"]
        with tempfile.TemporaryDirectory() as folder:
            scores, answers = of_harness(common, Path(folder) / "harness")
            reference_scores, reference_answers = of_lm_eval(common, Path(folder) / "lm-eval", task)
        alike = sum(answers.get(document) == answer for document, answer in reference_answers.items())
        for name, value in scores.items():
            reference = reference_scores[name]
            count = len(reference_answers)
            print(f"| `{task}` | {count} | {name} | {value!r} | {reference!r} | {alike} of {count} |", flush=True)
            equal &= value == reference and alike == count == len(answers)
    sys.exit(not equal)


def of_harness(common: list[str], folder: Path) -> tuple[dict[str, Any], dict[int, Any]]:
    """Scores by metric and filter, and each document's responses."""
    _module("harness", "run", "--method", "dense", "--measure", "flops", *common, "--output_path", str(folder))
    (run,) = Store(folder).folders()
    scores = {f"{score.metric},{score.filter}": score.value for score in run.record().scores}
    return scores, {line["doc_id"]: _texts(line["responses"]) for line in run.samples()}


def of_lm_eval(common: list[str], folder: Path, task: str) -> tuple[dict[str, Any], dict[int, Any]]:
    """The same of lm-eval's own files."""
    _module("lm_eval", "run", "--model", "hf", *common, "--log_samples", "--output_path", str(folder))
    (results,) = folder.rglob("results_*.json")
    (samples,) = folder.rglob(f"samples_{task}_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    answers = {line["doc_id"]: _texts(line["resps"]) for line in lines}
    return json.loads(results.read_text(encoding="utf-8"))["results"][task], answers


def _texts(value: Any) -> Any:
    """Nested responses with every number in all of its digits, as lm-eval writes them."""
    return [_texts(each) for each in value] if isinstance(value, list) else str(value)


def _module(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


if __name__ == "__main__":
    main()
