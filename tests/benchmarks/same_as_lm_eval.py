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
    common = ["--tasks", args.tasks, "--limit", args.limit, "--batch_size", args.batch_size, "--device", "cpu"]
    common += ["--model_args", f"pretrained={args.pretrained},dtype=float32"]
    with tempfile.TemporaryDirectory() as folder:
        runs = of_harness(common, Path(folder) / "harness")
        references = of_lm_eval(common, Path(folder) / "lm-eval")
    print("| task | documents | score | harness | lm-eval | same answers |\n|---|---|---|---|---|---|")
    equal = runs.keys() == references.keys()
    for task, (scores, answers) in runs.items():
        reference_scores, reference_answers = references[task]
        count = len(reference_answers)
        alike = sum(answers.get(document) == answer for document, answer in reference_answers.items())
        for name, value in scores.items():
            print(f"| `{task}` | {count} | {name} | {value!r} | {reference_scores[name]!r} | {alike} of {count} |")
            equal &= value == reference_scores[name] and alike == count == len(answers)
    sys.exit(not equal)


def of_harness(common: list[str], folder: Path) -> dict[str, tuple[dict[str, Any], dict[int, Any]]]:
    """By task: scores by metric and filter, and each document's responses."""
    _module("harness", "run", "--method", "dense", "--measure", "flops", *common, "--output_path", str(folder))
    runs = {}
    for run in Store(folder).folders():
        record = run.record()
        scores = {f"{score.metric},{score.filter}": score.value for score in record.scores}
        runs[record.evaluation.task] = scores, {line["doc_id"]: _texts(line["responses"]) for line in run.samples()}
    return runs


def of_lm_eval(common: list[str], folder: Path) -> dict[str, tuple[dict[str, Any], dict[int, Any]]]:
    """The same of lm-eval's own files."""
    _module("lm_eval", "run", "--model", "hf", *common, "--log_samples", "--output_path", str(folder))
    (results,) = folder.rglob("results_*.json")
    runs = {}
    for task, scores in json.loads(results.read_text(encoding="utf-8"))["results"].items():
        (samples,) = folder.rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        runs[task] = scores, {line["doc_id"]: _texts(line["resps"]) for line in lines}
    return runs


def _texts(value: Any) -> Any:
    """Nested responses with every number in all of its digits, as lm-eval writes them."""
    return [_texts(each) for each in value] if isinstance(value, list) else str(value)


def _module(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


if __name__ == "__main__":
    main()
