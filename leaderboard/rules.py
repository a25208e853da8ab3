"""What a result must be to be published. Each rule looks at one thing and says what is wrong in a sentence."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from math import isclose
from pathlib import Path
from statistics import median
from typing import Any, Literal

from harness.core.errors import ResultError
from harness.core.files import parse_json
from harness.leaderboard.aggregates import aggregations, disagreements, idealized_disagreements
from harness.leaderboard.results import PACKED_COSTS, PACKED_SAMPLES, Result
from harness.measure.accelerators import of_device
from harness.measure.energy import ROUNDS as LEAST_WINDOWS
from harness.measure.energy import WINDOW_S
from harness.reports.columns import at
from harness.reports.rows import Row
from harness.results.audit import audit_doubt
from harness.results.cost_lines import CostLine
from harness.results.costs import typical
from harness.results.record import UNSAID
from harness.results.samples import SampleLine
from harness.results.store import MANIFEST, RECORD

SUBMISSION = "submission.json"
MAX_FOLDER = 10 << 20  # bytes of a packed run
_FASTEST = 1e19  # FLOP/s of no machine
_MOST_WATTS = 20_000.0  # of no single machine
_DEEPEST = 64.0  # mean depth of no method: guesses that are thrown away count in what ran
_MOST = 5  # findings of a rule that are worth reading

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """What a rule says of a result: an error keeps it out, a warning is for the reviewer."""

    folder: Path
    severity: Severity
    rule: str
    text: str


@dataclass(frozen=True)
class Case:
    """A result with its files read."""

    result: Result
    manifest: Mapping[str, Any]
    samples: Sequence[SampleLine]
    costs: Sequence[CostLine]

    @property
    def record(self) -> Mapping[str, Any]:
        """The run's record."""
        return self.result.record

    @property
    def packed(self) -> bool:
        """Whether ``harness submit`` packed it."""
        return (self.result.folder / SUBMISSION).is_file()


Rule = Callable[[Case], Iterator[str]]


def judge(result: Result) -> Iterator[Finding]:
    """All findings about one result."""
    try:
        case = Case(result, result.manifest(), list(result.samples()), list(result.costs()))
    except ResultError as error:
        yield Finding(result.folder, "error", "files", str(error))
        return
    for rule in ERRORS:
        yield from _findings(case, rule, "error")
    for rule in WARNINGS:
        yield from _findings(case, rule, "warning")


def _findings(case: Case, rule: Rule, severity: Severity) -> list[Finding]:
    """The first findings of one rule; a rule that cannot read the files is an error of them, whatever it looks for."""
    try:
        texts = list(islice(rule(case), _MOST))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        severity = "error"
        texts = [f"the files do not have the form that a run leaves: {type(error).__name__}: {error}"]
    return [Finding(case.result.folder, severity, rule.__name__, text) for text in texts]


def files(case: Case) -> Iterator[str]:
    """A packed run has four small files, five with its costs, whose digests are those that it was packed with."""
    folder = case.result.folder
    present = {path.name: path for path in folder.iterdir()}
    if any(path.is_symlink() or not path.is_file() for path in present.values()):
        yield "it holds something that is not a plain file"
    if not case.packed:
        return
    expected = {RECORD, MANIFEST, PACKED_SAMPLES, PACKED_COSTS, SUBMISSION}
    if extra := sorted(present.keys() - expected):
        yield f"unexpected files: {', '.join(extra[:5])}"
    if (size := sum(path.stat().st_size for path in present.values())) > MAX_FOLDER:
        yield f"{size:,} bytes; a packed run has at most {MAX_FOLDER:,}"
    stated = parse_json((folder / SUBMISSION).read_bytes())["sha256"]
    for name in sorted(expected - {SUBMISSION}):
        if name in present and hashlib.sha256(present[name].read_bytes()).hexdigest() != stated.get(name):
            yield f"{name} is not the file that was packed: its sha256 differs"


def place(case: Case) -> Iterator[str]:
    """A packed run lies in a folder of its id."""
    if case.packed and case.result.folder.name != case.record["id"]:
        yield f"folder {case.result.folder.name} holds run {case.record['id']}"


def identity(case: Case) -> Iterator[str]:
    """The id is the digest of everything that determines the result, and that is what the record says."""
    manifest, record = case.manifest, case.record
    text = json.dumps(manifest["identity"], sort_keys=True, default=str)
    if manifest["id"] != record["id"] or hashlib.sha256(text.encode()).hexdigest()[:12] != record["id"]:
        yield "the id is not the digest of what the manifest says was asked"
    stated = manifest["identity"]
    pairs = {
        "method": (stated["method"], record["method"]["fingerprint"]),
        "model": (stated["model"], record["model"]["fingerprint"]),
        # an older manifest does not say how texts were scored
        "evaluation": ({**UNSAID, **stated["evaluation"]}, record["evaluation"]),
    }
    yield from (f"manifest and record differ in the {name}" for name, (asked, ran) in pairs.items() if asked != ran)


def whole(case: Case) -> Iterator[str]:
    """Published runs score all documents of their task."""
    if case.record["evaluation"]["limited"]:
        yield "a part of the task's documents (--limit or --samples): for trying out, not for publishing"


def documents(case: Case) -> Iterator[str]:
    """Each document is listed once."""
    keys = [(sample["task"], sample["doc_id"]) for sample in case.samples]
    if not keys:
        yield "no documents"
    if len(set(keys)) < len(keys):
        yield f"{len(keys) - len(set(keys))} documents are listed twice"


def recomputed(case: Case) -> Iterator[str]:
    """Scores, standard errors, tokens, FLOPs and idealized seconds are those of the documents."""
    of_documents = disagreements(case.record, case.samples, aggregations(case.manifest))
    for each in chain(of_documents, idealized_disagreements(case.record, case.costs)):
        yield f"{each.quantity}: the record says {each.claimed}, the documents say {each.computed}"


def work(case: Case) -> Iterator[str]:
    """FLOPs, tokens and layers agree with each other and with the model's shape."""
    record, flops, trace, model = case.record, case.record["flops"], case.record["trace"], case.record["model"]
    if flops is None:
        yield from () if at(record, "missing").get("flops") else ("no FLOPs, and no reason why",)
        return
    if sum(flops["parts"].values()) != flops["total"]:
        yield f"the parts of the FLOPs sum to {sum(flops['parts'].values())}, not to {flops['total']}"
    if not 0 <= flops["useful"] <= flops["total"] or not 0 <= flops["causal"] <= flops["total"]:
        yield "useful or causal FLOPs exceed the total"
    if record["method"]["family"] == "baseline" and flops["total"] != flops["dense_equivalent"]:
        yield "dense did not do dense's work"
    if None in (trace["layer_tokens_total"], trace["attention_layer_tokens"], trace["mlp_layer_tokens"]):
        yield "FLOPs are stated, and not how many tokens ran the layers"
        return
    tokens = trace["layer_tokens_total"] / model["layers"]
    executions = max(trace["attention_layer_tokens"], trace["mlp_layer_tokens"], 1)
    if not tokens.is_integer() or trace["forwards"] > max(tokens, executions):  # drafts are no tokens of dense
        yield "layer tokens do not fit the model's layers, or there are more forwards than tokens"
    linear = flops["parts"].get("attention_linear", 0) + flops["parts"].get("mlp", 0)
    if linear > 2 * model["parameters"] / model["layers"] * executions:
        yield "more FLOPs in the layers than their parameters allow"
    if flops["total"] <= 0 or flops["total"] / max(record["duration_s"], 1e-3) > _FASTEST:
        yield f"{flops['total']:.3g} FLOPs in {record['duration_s']} s: faster than any machine"
    for name in ("mean_depth_prefill", "mean_depth_decode"):
        if trace[name] is not None and not 0 <= trace[name] <= _DEEPEST:
            yield f"{name} of {trace[name]}"


def audit(case: Case) -> Iterator[str]:
    """PyTorch's counter saw the FLOPs that are stated."""
    if doubt := audit_doubt(at(case.record, "flops/audit_ratio")):
        yield doubt


def numbers(case: Case) -> Iterator[str]:
    """Scores have sensible errors, and nothing that counts is negative."""
    for score in case.record["scores"]:
        share = score["metric"].startswith(("acc", "exact_match", "f1")) and score["value"] is not None
        if share and not 0 <= score["value"] <= 1:
            yield f"{score['metric']} of {score['value']} is no share"
        if score["stderr"] is not None and score["stderr"] < 0:
            yield f"{score['metric']} has a negative standard error"
    counts = [*(case.record["flops"] or {}).items(), *case.record["memory"].items(), *case.record["trace"].items()]
    yield from (f"{name} is negative" for name, value in counts if isinstance(value, int | float) and value < 0)
    if case.record["memory"]["weights"] > 16 * max(case.record["model"]["parameters"], 1) + (1 << 20):
        yield "weights take more than 16 bytes a parameter"


def measured(case: Case) -> Iterator[str]:
    """Times are those of their raw measurements; energy was read in steady state, at a power that the machine has."""
    latency = at(case.record, "time/latency")
    if latency is not None:
        raw = [seconds for rounds in latency["raw"] for seconds in rounds]
        summary = latency["end_to_end"]
        if not raw or min(raw) <= 0 or len(raw) != summary["n"]:
            yield f"{summary['n']} latencies are stated and {len(raw)} are recorded, or some are not positive"
        elif not isclose(median(raw), summary["median"], rel_tol=1e-3):
            yield f"the median latency is {summary['median']}, that of its measurements is {median(raw)}"
        elif not isclose(typical(latency["raw"]), latency["typical_s"], rel_tol=1e-3):
            yield f"the typical latency is {latency['typical_s']}, that of its requests is {typical(latency['raw'])}"
    energy = case.record.get("energy")
    if energy is None or energy["measured_j"] is None:
        return
    if energy["windows"] < LEAST_WINDOWS or energy["window_s"] < WINDOW_S:
        yield f"energy of {energy['windows']} windows of {energy['window_s']:.1f} s: no steady state"
    most = _most_watts(case.record["environment"]["device_name"])
    if energy.get("busy_w") is not None and energy["busy_w"] > most:
        yield f"{energy['busy_w']:.0f} W are more than the {most:.0f} W that such a machine takes"


def _most_watts(device: str) -> float:
    """A fifth over the stated power of the accelerator that has this name, else more than any machine takes."""
    stated = [entry.tdp for entry in of_device(device) if entry.tdp is not None]
    return 1.2 * max(stated) if stated else _MOST_WATTS


def date(case: Case) -> Iterator[str]:
    """A run started in the past."""
    started = datetime.fromisoformat(case.record["started"])
    started = started if started.tzinfo else started.replace(tzinfo=UTC)
    if started > datetime.now(UTC) + timedelta(days=1):
        yield f"started in the future, {case.record['started']}"


def text(case: Case) -> Iterator[str]:
    """Names are of a length that people write, printable, and without markup."""
    method, model, asked = case.record["method"], case.record["model"], case.record["evaluation"]
    names = [method["label"], method["name"], method["family"], model["name"], model["pretrained"], asked["task"]]
    for name in (*names, case.record["environment"]["device_name"]):
        if len(name) > 300:
            yield f"a name of {len(name)} characters"
        elif not name.isprintable() or any(char in name for char in "<>"):
            yield f"the name contains markup or unprintable characters: {name!r:.80}"


def ranking(case: Case) -> Iterator[str]:
    """Why the row will be shown apart and not ranked."""
    yield from Row(case.record, None).apart


def code(case: Case) -> Iterator[str]:
    """A run from changed or unknown sources is hard to reproduce."""
    git = case.manifest.get("git")
    if git is None:
        yield "made by an installed package: no commit is known"
    elif at(case.manifest, "git/changed"):
        yield "made by a checkout with changes"


ERRORS: tuple[Rule, ...] = (
    files,
    place,
    identity,
    whole,
    documents,
    recomputed,
    work,
    audit,
    numbers,
    measured,
    date,
    text,
)
WARNINGS: tuple[Rule, ...] = (ranking, code)
