"""Made-up runs for tests and for the scale benchmark: consistent with themselves, measured by nobody."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from harness.results.record import RunRecord
from harness.results.stats.paired import difference, wilson

MODELS = ("tiny-a", "tiny-b", "org/tiny-c")
TASKS = ("recall", "arithmetic", "reading")
MACHINES = ("Processor X", "Accelerator Y")
METHODS = (
    ("layer-drop", "pruning", "real", False, "count", (1, 2, 4)),
    ("early-out", "early-exit", "real", False, "threshold", (0.9, 0.7)),
    ("router", "routing", "real", False, "budget", (0.8, 0.6)),
    ("int8", "quantization", "real", False, "group", (32, 128)),
    ("masked", "sparse", "simulated", False, "sparsity", (0.5, 0.75)),
    ("drafted", "early-exit", "real", True, "layer", (3, 5)),
)


@dataclass(frozen=True)
class Group:
    """Runs that share documents: a model, a task, a machine."""

    model: str
    task: str
    machine: str


@dataclass(frozen=True)
class Made:
    """A run's files as they would stand on disk."""

    record: dict[str, Any]
    samples: list[dict[str, Any]]
    manifest: dict[str, Any]

    def write(self, root: Path) -> Path:
        """Write the run as a run leaves it."""
        record = self.record
        folder = root / f"{record['method']['name']}_{record['id']}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in self.samples))
        (folder / "manifest.json").write_text(json.dumps(self.manifest))
        (folder / "costs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self._costs()))
        return folder

    def _costs(self) -> Iterator[dict[str, Any]]:
        """Every document's idealized seconds, around their mean, and a measured request of the first."""
        seconds = self.record["time"]["ideal"]["ref_s"]
        for number, sample in enumerate(self.samples):
            line = {name: sample[name] for name in ("task", "doc_id", "doc_hash")} | {"ideal_s": seconds}
            request = {"prompt_tokens": 4, "new_tokens": 0, "run": {"latency": [seconds]}, "segments": []}
            yield line if number else line | {"requests": [request]}


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def groups(models: int = 2, tasks: int = 2, machines: int = 1) -> list[Group]:
    """As many groups as asked for; beyond the names given, numbered ones."""

    def names(known: tuple[str, ...], count: int) -> list[str]:
        return [known[i] if i < len(known) else f"{known[0]}-{i}" for i in range(count)]

    return [
        Group(model, task, machine)
        for model in names(MODELS, models)
        for task in names(TASKS, tasks)
        for machine in names(MACHINES, machines)
    ]


def runs(group: Group, *, documents: int = 60, settings: int | None = None) -> Iterator[Made]:
    """Dense first, then the methods, up to ``settings`` of them (beyond those named, with further strengths)."""
    rng = random.Random(digest(group))
    right = [float(rng.random() < 0.7) for _ in range(documents)]
    lengths = [rng.randint(8, 90) for _ in range(documents)]
    dense = _run(group, ("dense", "baseline", "none", True, None), None, 0.0, right, lengths, None, rng)
    yield dense
    chosen = [(method, value) for method in METHODS for value in method[5]]
    for number in range(len(chosen) if settings is None else settings):
        method, value = chosen[number % len(chosen)]
        strength = value + 200 * (number // len(chosen))
        hurt = rng.uniform(0.0, 0.25)
        yield _run(group, method[:5], strength, hurt, right, lengths, dense, rng)


def _run(
    group: Group,
    method: tuple[str, str, str, bool, str | None],
    strength: float | None,
    hurt: float,
    right: list[float],
    lengths: list[int],
    dense: Made | None,
    rng: random.Random,
) -> Made:
    name, _, _, exact, parameter = method
    label = name if parameter is None else f"{name}:{parameter}={strength:g}"
    scores = (
        right
        if dense is None or exact
        else [float(rng.random() > hurt) if s else float(rng.random() < 0.08) for s in right]
    )
    share = 1.0 if dense is None else rng.uniform(0.45, 0.95)
    flops = [round(length * 4_000_000 * share) for length in lengths]
    samples = [_sample(group, i, scores[i], lengths[i], flops[i], share) for i in range(len(scores))]
    record = _record(group, label, method, strength, scores, flops, lengths, share, dense)
    manifest = manifest_of(record)
    record["id"] = manifest["id"]
    return Made(RunRecord.model_validate(record).model_dump(mode="json"), samples, manifest)


def _sample(group: Group, number: int, score: float, length: int, flops: int, share: float) -> dict[str, Any]:
    return {
        "task": group.task,
        "doc_id": number,
        "doc_hash": digest(group.task, number),
        "target": number % 4,
        "scores": {"acc,none": score},
        "filtered": {"none": [[-1.0, False], [-1.5 + score, False]]},
        "prompt_tokens": length,
        "output_tokens": 0,
        "pad_tokens": 0,
        "depth": share,
        "flops": flops,
        "dense_flops": length * 4_000_000,
    }


def manifest_of(record: dict[str, Any]) -> dict[str, Any]:
    """How the run was made; the id is the digest of what was asked."""
    identity = {
        "method": record["method"]["fingerprint"],
        "model": record["model"]["fingerprint"],
        "evaluation": record["evaluation"],
        "machine": record["environment"]["device_name"],
    }
    command = f"harness run --method {record['method']['label']} --task {record['evaluation']['task']}"
    run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    git = {"commit": digest("commit"), "changed": False}
    environment = record["environment"]
    return {"id": run_id, "command": command, "identity": identity, "git": git, "environment": environment}


def mean_and_error(scores: list[float]) -> tuple[float, float]:
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return mean, sqrt(variance / len(scores))


def _record(
    group: Group,
    label: str,
    method: tuple[str, str, str, bool, str | None],
    strength: float | None,
    scores: list[float],
    flops: list[int],
    lengths: list[int],
    share: float,
    dense: Made | None,
) -> dict[str, Any]:
    name, family, savings, exact, parameter = method
    mean, error = mean_and_error(scores)
    total = sum(flops)
    weights = round(40_000_000 * (share if savings == "real" else 1))
    return {
        "id": "0" * 12,
        "started": f"2026-03-{1 + int(digest(label)[:4], 16) % 28:02d}T08:00:00Z",
        "duration_s": 12.5,
        "command": f"harness run --method {label} --tasks {group.task} --pretrained {group.model}",
        "method": {
            "label": label,
            "name": name,
            "family": family,
            "params": [{} if parameter is None else {parameter: strength}],
            "fingerprint": digest(label),
            "savings": savings,
            "exact": exact,
        },
        "model": {
            "name": group.model,
            "pretrained": group.model,
            "revision": None,
            "fingerprint": digest(group.model),
            "dtype": "bfloat16",
            "attention": "sdpa",
            "layout": "llama",
            "layers": 12,
            "parameters": 20_000_000,
        },
        "evaluation": {
            "task": group.task,
            "num_fewshot": None,
            "batch_size": 1,
            "limit": None,
            "samples": None,
            "seeds": [0, 1234, 1234, 1234],
            "gen_kwargs": None,
            "apply_chat_template": False,
            "system_instruction": None,
            "fewshot_as_multiturn": False,
            "data": digest(group.task),
            "limited": False,
        },
        "environment": {
            "device": "cpu" if group.machine.startswith("Processor") else "cuda:0",
            "device_name": group.machine,
            "cpu_model": "Processor X",
            "cpus": 4,
            "threads": 2,
            "ram_bytes": 8_000_000_000,
            "os": "Linux",
            "python": "3.11.7",
            "versions": {"lm_eval": "0.4.13", "torch": "2.13.0", "transformers": "5.23.0"},
            "load_average": [0.1, 1.0],
        },
        "scores": [
            {
                "task": group.task,
                "metric": "acc",
                "filter": "none",
                "value": mean,
                "stderr": error,
                "n": len(scores),
                "higher_is_better": True,
                **dict(zip(("low", "high"), wilson(int(sum(scores)), len(scores)), strict=True)),
                "vs_baseline": None
                if dense is None
                else _paired(scores, [s["scores"]["acc,none"] for s in dense.samples]),
            }
        ],
        "trace": {
            "forwards": len(scores),
            "prompt_tokens": sum(lengths),
            "pad_tokens": 0,
            "output_tokens": 0,
            "attention_layer_tokens": round(12 * sum(lengths) * share),
            "mlp_layer_tokens": round(12 * sum(lengths) * share),
            "layer_tokens_total": 12 * sum(lengths),
            "mean_depth_prefill": share,
            "mean_depth_decode": None,
            "head_tokens": sum(lengths),
            "executed": None if dense is None else True,
        },
        "flops": {
            "total": total,
            "useful": total,
            "causal": total,
            "parts": {"attention_linear": total // 4, "mlp": total - total // 4},
            "dense_equivalent": sum(lengths) * 4_000_000,
            "audit_ratio": 1.0,
            "weight_bytes": round(len(scores) * weights),
            "kv_bytes": sum(lengths) * 3_000,
        },
        "memory": {"weights": weights, "kv_peak": 300_000},
        "time": _time(share, savings, lengths, group.machine),
        "energy": _energy(share) if group.machine.startswith("Accelerator") else None,
        "baseline": None if dense is None else _baseline(dense, total, weights, share, scores),
        "missing": {"energy": "no meter on this machine", "memory.peak": "not asked for"},
    }


def _paired(method: list[float], dense: list[float]) -> dict[str, Any]:
    """The paired difference as a run has it."""
    change = difference(np.array(dense), np.array(method))
    p = {"p": change.p, "p_adjusted": change.p, "test": change.test}
    counts = {"n": change.n, "gained": change.gained, "lost": change.lost, "detectable": change.detectable}
    bounds = {"difference": change.value, "low": change.low, "high": change.high, "reason": change.reason}
    return bounds | p | counts | {"margin": 0.01, "noninferior": change.noninferior(0.01)}


def _time(share: float, savings: str, lengths: list[int], machine: str) -> dict[str, Any]:
    seconds = 0.004 * sum(lengths) / len(lengths)
    observed = seconds * (1.1 if savings == "simulated" else 0.2 + 0.9 * share)
    summary = {"n": 24, "min": observed, "median": observed, "mad": observed * 0.02, "relative_iqr": 0.05}
    summary |= {"median_low": observed * 0.98, "median_high": observed * 1.02, "drift": 0.0}
    summary |= dict.fromkeys(("p90", "p95", "p99"))
    quiet = {"threads": 2, "load_before": 0.1, "load_after": 1.0, "others_share": 0.01, "steal_share": 0.0}
    return {
        "latency": {
            "kind": "score",
            "end_to_end": summary,
            "prefill_tokens_per_s": 50 / observed,
            "raw": [[observed] * 3] * 8,
            "conditions": {**quiet, "throttled": None, "governor": None},
            "doubts": ["shared machine: other processes used 23% of its CPU time"] if share > 0.9 and share < 1 else [],
        },
        "ideal": {
            "profile": "p",
            "label": "poor" if 0.85 < share < 0.9 else "good",
            "clock": "thread",
            "fit_error": 0.03,
            "held_out_error": 0.05,
            "ref_s": seconds * share,
            "own_s": None,
            "parts": {"layers": seconds * share * 0.8, "head": seconds * share * 0.2},
        },
        "roofline": {
            "H100": {"seconds": seconds * share / 500, "dtype": "bfloat16", "parts": {}, "peaks_source": "data sheet"}
        },
    }


def _energy(share: float) -> dict[str, Any]:
    part = {"joules": 3.0 * share, "source": "nvml_counter", "provenance": "measured_counter", "scope": "device"}
    return {
        "measured_j": 3.0 * share,
        "estimated_j": None,
        "active_j": 2.0 * share,
        "idle_w": 40.0,
        "parts": {"gpu": part},
        "label": "measured_counter",
        "note": "read from a counter",
        "windows": 4,
        "window_s": 12.0,
        "raw": [3.0 * share] * 4,
    }


def _baseline(dense: Made, total: int, weights: int, share: float, scores: list[float]) -> dict[str, Any]:
    ratios = {"flops": total / dense.record["flops"]["total"], "weights": weights / dense.record["memory"]["weights"]}
    measured = 0.2 + 0.9 * share
    pairs = zip(scores, dense.samples, strict=True)
    changed = sum(score != sample["scores"]["acc,none"] for score, sample in pairs)
    return {
        "run_id": dense.record["id"],
        "documents": len(scores),
        "ratios": {name: {"value": ratio} for name, ratio in ratios.items()}
        | {"ideal_ref": {"value": share}}
        | {"latency": {"value": measured, "low": measured * 0.97, "high": measured * 1.04}},
        "noise": {"latency": {"value": 1.0, "low": 0.98, "high": 1.02}},
        "answers_changed": changed / len(scores),
    }


def write_all(root: Path, made: Iterator[Made] | list[Made]) -> int:
    """Write runs; how many."""
    return sum(1 for run in made if run.write(root))


def library(root: Path, *, models: int = 2, tasks: int = 2, machines: int = 2, documents: int = 60) -> int:
    """A folder of results of several groups, with one run on a part of the documents."""
    count = 0
    for group in groups(models, tasks, machines):
        for made in runs(group, documents=documents):
            count += write_all(root, [made])
            if made.record["method"]["label"] == "router:budget=0.6" and count < 20:
                limited = json.loads(json.dumps(made.record))
                limited["evaluation"] |= {"limit": float(documents), "limited": True}
                manifest = manifest_of(limited)
                limited["id"] = manifest["id"]
                count += write_all(root, [Made(limited, made.samples, manifest)])
    return count
