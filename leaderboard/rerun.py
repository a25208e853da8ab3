"""Running a random sample of a submission's documents again: what no lie that only holds together can pass.

The command is built here from checked fields of the record, never taken from it; it runs offline, with methods, tasks
and models that are at hand, and without anybody's own code.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any, Final

from harness.leaderboard.case import STATES, Case
from harness.leaderboard.evidence import answer_text
from harness.leaderboard.results import load_all
from harness.leaderboard.texts import cleaned
from harness.reports.columns import at
from harness.results.samples import SampleLine

LIKELIHOOD: Final = 1e-3
"""How far a log-likelihood may be off in float32; ``ROUNDED`` in 16 bits and where integers compute."""
ROUNDED: Final = 0.1
DEPTH: Final = 0.02
WORK: Final = 0.05  # of the FLOPs of a document
MAY_PART: Final = 1 / 20
"""Share of the documents whose text, choice of layers or rounded likelihood may part at a near tie."""
_LONGEST: Final = 1800  # seconds of one run again
_SHOWN: Final = 120  # characters of a target or an answer
_ARGS: Final = {"dtype", "attn_implementation", "max_length", "add_bos_token", "prefix_token_id", "revision"}


@dataclass(frozen=True)
class Rerun:
    """What came of it: findings that refuse, or the reason why there was no run again."""

    folder: Path
    documents: int
    problems: tuple[str, ...] = ()
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not rerun: {self.reason}"
        return f"rerun: {self.documents} documents{', and they disagree' if self.problems else ' agree'}"


def rerun(case: Case, count: int) -> Rerun:
    """Run ``count`` random documents of a case again and compare them with what it says of them."""
    folder = case.result.folder
    if reason := _why_not(case):
        return Rerun(folder, 0, reason=reason)
    chosen = random.SystemRandom().sample(list(case.samples), min(count, len(case.samples)))
    with TemporaryDirectory() as work:
        problem = _run(case, chosen, Path(work))
        if problem is not None:
            return Rerun(folder, 0, reason=problem)
        results = load_all(Path(work) / "runs")[0]
        if len(results) != 1:
            return Rerun(folder, 0, reason="it left no result")
        again = {(line["task"], line["doc_id"]): line for line in results[0].samples()}
        problems = list(compared(case.record, chosen, again))
        if problems and results[0].record["model"]["fingerprint"] != case.record["model"]["fingerprint"]:
            problems.append("the model of this name has another fingerprint here")
        return Rerun(folder, len(chosen), tuple(problems))


def _why_not(case: Case) -> str | None:
    record = case.record
    model, asked = record["model"], record["evaluation"]
    if not record["environment"]["device"].startswith("cpu"):
        return f"it ran on {ascii(record['environment']['device'])[1:-1]:.20}, and here are processors alone"
    if model.get("base") is not None:
        return "it ran on another checkpoint"
    if unknown := sorted(model["args"].keys() - _ARGS):
        return f"model arguments {', '.join(map(ascii, unknown[:3]))} are not taken from strangers"
    tasks = case.manifest.get("tasks")
    shots = [at(case.manifest, f"tasks/{name}/num_fewshot") for name in tasks] if isinstance(tasks, dict) else []
    if any(shots) or asked["num_fewshot"]:
        return "its examples are drawn anew for each document, in the order of all of them"
    if record["method"]["files"]:
        return "its method is a file of the submitter's, which is shown and never run"
    if asked_text(record) is None:
        return "its calibration text is none of the task's, nor the bundled one"
    if "state" in _parameters(case) and not _state(case):
        return "what it learned did not travel with it"
    if any(name.startswith(("-", ".", "/", "~")) or "\\" in name for name in (model["pretrained"], asked["task"])):
        return "its model or task is a path"
    if Path(model["pretrained"]).exists() or ".py" in record["method"]["label"]:
        return "its model or method is a file"
    return None


def _parameters(case: Case) -> Mapping[str, Any]:
    parts = case.record["method"]["params"]
    return parts[0] if len(parts) == 1 else {}


def _state(case: Case) -> list[Path]:
    """The files of what the method learned."""
    return [path for path in case.result.folder.iterdir() if STATES.fullmatch(path.name)]


def _run(case: Case, chosen: Sequence[SampleLine], work: Path) -> str | None:
    """Run the documents in a process of its own; why it could not be done, or None."""
    label = case.record["method"]["label"]
    if files := _state(case) if "state" in _parameters(case) else []:
        (work / "state").mkdir()
        for path in files:
            copyfile(path, work / "state" / path.name)
        label += f"{',' if ':' in label else ':'}state={work / 'state'}"
    command = [sys.executable, "-m", "harness", *arguments(case.record, label, chosen), "-o", str(work / "runs")]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=_LONGEST, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"it took longer than {_LONGEST} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return f"it cannot be run here: {ascii(lines[-1] if lines else 'no message')[1:-1]:.200}"
    return None


def asked_text(record: Mapping[str, Any]) -> str | None:
    """What ``--calibration`` gives the text that a method was prepared on; None where it came from elsewhere."""
    text = record["method"]["calibration"]
    if text is None or text.startswith(f"the training split of {record['evaluation']['task']}, "):
        return "task"
    return "bundled" if text.startswith("the bundled text, ") else None


def arguments(record: Mapping[str, Any], label: str, chosen: Sequence[SampleLine]) -> list[str]:
    """The arguments that run documents of a record again, from fields of known meaning alone."""
    asked, model = record["evaluation"], record["model"]
    samples: dict[str, list[int]] = {}
    for line in chosen:
        samples.setdefault(line["task"], []).append(line["doc_id"])
    values = {
        "--method": label,
        "--tasks": asked["task"],
        "--pretrained": model["pretrained"],
        "--model_args": json.dumps(model["args"]) if model["args"] else None,
        "--batch_size": asked["batch_size"],
        "--num_fewshot": asked["num_fewshot"],
        "--gen_kwargs": json.dumps(asked["gen_kwargs"]) if asked["gen_kwargs"] else None,
        "--system_instruction": asked["system_instruction"],
        "--apply_chat_template": asked["apply_chat_template"] or None,
        "--seed": ",".join(map(str, asked["seeds"])),
        "--score_mode": asked["score_mode"] if asked["score_mode"] != "lm-eval" else None,
        "--score_suffix": asked["score_suffix"],
        "--calibration": asked_text(record),
        "--kernel": record["method"]["kernel_asked"],
        "--samples": json.dumps({task: sorted(ids) for task, ids in samples.items()}),
        "--measure": "flops",
        "--device": "cpu",
    }
    given = [f"{flag}={value}" for flag, value in values.items() if value is not None]
    return ["run", *given, "--no_baseline", "--offline"]


def compared(
    record: Mapping[str, Any], chosen: Sequence[SampleLine], again: Mapping[tuple[str, int], SampleLine]
) -> Iterator[str]:
    """Where documents that were run again are not what was said of them."""
    parted: dict[str, list[int]] = {"answer": [], "log-likelihood": [], "depth": [], "score": [], "work": []}
    is_rounded = record["model"]["dtype"] not in ("float32", "float64") or bool(record["method"]["kernels"])
    for line in chosen:
        name, new = line["doc_id"], again.get((line["task"], line["doc_id"]))
        if new is None:
            yield f"document {name} is none of the task's"
            continue
        if (
            new["doc_hash"][:16] != line["doc_hash"][:16]
            or cleaned(str(new["target"]))[:120] != str(line["target"])[:120]
        ):
            yield f"document {name} is not that of the task: its contents or its target differ"
            continue
        if new["prompt_tokens"] != line["prompt_tokens"]:
            yield f"document {name}: {line['prompt_tokens']} prompt tokens are stated, {new['prompt_tokens']} were read"
        distance = _distance(line, new)
        if distance is not None and distance > (ROUNDED if is_rounded else LIKELIHOOD):
            parted["log-likelihood"].append(name)
        elif _shown(answer_text(new)) != _shown(answer_text(line)) or _parts(line, new, is_scored=distance is None):
            parted["answer"].append(name)
        elif distance is None and _differ(line["scores"], new["scores"]):
            parted["score"].append(name)  # the same text has the same score
        elif abs((new["depth"] or 0.0) - (line["depth"] or 0.0)) > DEPTH:
            parted["depth"].append(name)
        elif _is_other_work(line, new):
            parted["work"].append(name)
    most = ceil(MAY_PART * len(chosen))
    for what, names in parted.items():
        is_exact = what == "score" or (what == "log-likelihood" and not is_rounded)
        if len(names) > (0 if is_exact else most):
            yield f"{len(names)} of {len(chosen)} documents have another {what} when they are run again: {names[:10]}"


def _shown(value: Any) -> str:
    """A text as packing keeps it."""
    return str(cleaned(str(value)[:_SHOWN]))


def _distance(line: SampleLine, new: SampleLine) -> float | None:
    """The largest distance of two runs' log-likelihoods of a document; None where either has none."""
    before, after = (_likelihoods(each.get("responses")) for each in (line, new))
    if not before or not after:
        return None
    if len(before) != len(after):
        return float("inf")
    return max(abs(old - fresh) for old, fresh in zip(before, after, strict=True))


def _likelihoods(responses: Any) -> list[float]:
    """The log-likelihoods in a document's responses, which stand before whether they are greedy."""
    values = list[float]()
    stack = [responses]
    while stack:
        each = stack.pop()
        if isinstance(each, list):
            stack.extend(reversed(each))
        elif isinstance(each, float | int) and not isinstance(each, bool) and isfinite(each):
            values.append(float(each))
    return values


def _parts(line: SampleLine, new: SampleLine, *, is_scored: bool) -> bool:
    """Whether a document's texts or scores part; scores that are likelihoods are compared as such."""
    if "responses" in line and is_scored:
        return bool(cleaned(new.get("responses")) != line["responses"])
    return _differ(line["scores"], new["scores"])


def _differ(scores: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a right answer was wrong, or a wrong one right; scores that are likelihoods are compared as such."""
    return any(value != new.get(name) for name, value in scores.items() if value in (0.0, 1.0))


def _is_other_work(line: SampleLine, new: SampleLine) -> bool:
    """Whether the same tokens took other FLOPs; padding goes by the other documents of a batch."""
    same = all(line.get(name) == new.get(name) for name in ("prompt_tokens", "output_tokens"))
    ours, theirs = line.get("flops"), new.get("flops")
    if not same or line.get("pad_tokens") or new.get("pad_tokens") or ours is None or theirs is None:
        return False
    return abs(ours - theirs) > WORK * theirs
