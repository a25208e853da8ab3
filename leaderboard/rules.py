"""What a result must be to be published. Each rule looks at one thing and says what is wrong in a sentence."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.errors import ResultError
from harness.leaderboard import quantities, texts
from harness.leaderboard.aggregates import aggregations, disagreements, idealized_disagreements
from harness.leaderboard.captured import graph
from harness.leaderboard.case import Case, Finding, Rule, Severity, is_packed
from harness.leaderboard.packing import MAX_FOLDER, files, method, packed_size, place
from harness.leaderboard.pairs import own_intervals
from harness.leaderboard.physics import energy, latency, speed, throughput
from harness.leaderboard.results import Result
from harness.leaderboard.stated import complete, named, summaries, totals
from harness.leaderboard.work import audit, by_shape, depth, modelled, work
from harness.reports.columns import at
from harness.reports.rows import Row
from harness.results.record import UNSAID

_LONGEST = 900  # characters of a finding
_MOST = 5  # findings of a rule that are worth reading


def read(result: Result, *, published: bool = False, renewed: bool = False) -> Case:
    """The case of a result.

    Raises:
        ResultError: a file is absent, too large, or no JSON of its kind.
    """
    if (published or is_packed(result.folder)) and (size := packed_size(result.folder)) > MAX_FOLDER:
        raise ResultError(f"{size:,} bytes; a packed run has at most {MAX_FOLDER:,}")
    return Case(result, result.manifest(), list(result.samples()), list(result.costs()), published, renewed)


def judge(result: Result) -> Iterator[Finding]:
    """All findings about one result."""
    try:
        case = read(result)
    except ResultError as error:
        yield Finding(result.folder, "error", "files", str(error))
        return
    yield from judged(case)


def judged(case: Case) -> Iterator[Finding]:
    """All findings about one result whose files were read."""
    for rule in ERRORS:
        yield from findings(case.result.folder, rule.__name__, "error", partial(rule, case))
    for rule in WARNINGS:
        yield from findings(case.result.folder, rule.__name__, "warning", partial(rule, case))


def findings(folder: Path, name: str, severity: Severity, rule: Callable[[], Iterator[str]]) -> Iterator[Finding]:
    """The first findings of one rule; one that cannot read the files is an error of them, whatever it looks for."""
    texts_ = list[str]()
    try:
        with np.errstate(all="ignore"):  # of hostile numbers
            for text in islice(rule(), _MOST):
                texts_.append(text)
    except Exception as error:
        yield Finding(folder, "error", name, _unreadable(error))
    yield from (Finding(folder, severity, name, text[:_LONGEST]) for text in texts_)


def _unreadable(error: Exception) -> str:
    return f"the files do not have the form that a run leaves: {type(error).__name__}: {str(error)!a:.200}"


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
    yield from _machine(manifest, record)


def _machine(manifest: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """The machine and the software of the record are those that the manifest and the id name."""
    ran, known = record["environment"], manifest.get("environment")
    pairs = {name: (known.get(name), ran[name]) for name in ran if name != "load_average"} if known else {}
    asked = manifest["identity"].get("environment") or {}
    if asked:
        pairs |= {f"{name} of the id": (asked[name], ran.get(name)) for name in ("versions",) if name in asked}
        pairs["device of the id"] = (asked.get("device"), ran["device_name"])
        if asked.get("python") is not None:
            pairs["python of the id"] = (asked["python"], ran["python"].rpartition(".")[0])
        if asked.get("instructions") is not None:
            pairs["instructions of the id"] = (asked["instructions"], ran["instructions"])
    for name, (stated, claimed) in pairs.items():
        if _bare(stated) != _bare(claimed):
            yield f"manifest and record differ in the {name}: {stated!a:.60} and {claimed!a:.60}"


def _bare(value: Any) -> Any:
    """Versions without the harness's own, which a run's id does not depend on."""
    return {name: v for name, v in value.items() if name != "efficiency-harness"} if isinstance(value, dict) else value


def dense(case: Case) -> Iterator[str]:
    """Dense is called dense, is the reference, and has nothing set; nothing else is called so."""
    method = case.record["method"]
    names = {"".join(filter(str.isalnum, method[part].casefold())) for part in ("name", "label")}
    is_reference = method["family"] == "baseline"
    if is_reference != ("dense" in names) or (is_reference and names != {"dense"}):
        yield f"a run of family {method['family']} is called {method['label']!r}: only the unchanged model is dense"
    if is_reference and (case.record["baseline"] is not None or any(method["params"]) or method["savings"] != "none"):
        yield "dense has a setting, a saving, or a dense run beside it"
    if is_reference and case.record["trace"]["executed"] is False:
        yield "dense is said not to have run"


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


def numbers(case: Case) -> Iterator[str]:
    """Numbers are in the range of their unit, shares between 0 and 1, and weights fit the parameters."""
    yield from quantities.problems(case.record)
    yield from (f"manifest: {problem}" for problem in quantities.problems(case.manifest))
    # scores and answers of a document are finite as they are read, and of any size
    plain = ({name: value for name, value in line.items() if type(value) in (int, float)} for line in case.samples)
    for line in chain(plain, case.costs):
        yield from (f"document {line['doc_id']}: {problem}" for problem in quantities.problems(line))
    for score in case.record["scores"]:
        share = score["metric"].startswith(("acc", "exact_match", "f1")) and score["value"] is not None
        if share and not 0 <= score["value"] <= 1:
            yield f"{score['metric']} of {score['value']} is no share"
    if case.record["memory"]["weights"] > 16 * max(case.record["model"]["parameters"], 1) + (1 << 20):
        yield "weights take more than 16 bytes a parameter"


def date(case: Case) -> Iterator[str]:
    """A run started in the past."""
    started = datetime.fromisoformat(case.record["started"])
    started = started if started.tzinfo else started.replace(tzinfo=UTC)
    if started > datetime.now(UTC) + timedelta(days=1):
        yield f"started in the future, {case.record['started']}"


def text(case: Case) -> Iterator[str]:
    """What is read is what is written: see ``harness.leaderboard.texts``."""
    yield from texts.problems(case.record)
    yield from texts.problems(case.manifest)
    if case.packed:  # packing cleans what models and data sets wrote
        for line in chain(case.samples, case.costs):
            yield from (f"document {line['doc_id']}: {problem}" for problem in texts.problems(line, free=True))


def ranking(case: Case) -> Iterator[str]:
    """Why the row will be shown apart and not ranked."""
    yield from Row(case.record, None).apart


def commit(case: Case) -> Iterator[str]:
    """A commit is named by its digest."""
    name = at(case.manifest, "git/commit")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[0-9a-f]{7,64}", name)):
        yield f"the commit {name!a:.40} is no digest"


def code(case: Case) -> Iterator[str]:
    """A run from changed or unknown sources is hard to reproduce."""
    git = case.manifest.get("git")
    if git is None:
        yield "made by an installed package: no commit is known"
    elif at(case.manifest, "git/changed"):
        yield "made by a checkout with changes"


ERRORS: tuple[Rule, ...] = (
    files,
    method,
    place,
    identity,
    dense,
    named,
    whole,
    documents,
    complete,
    recomputed,
    own_intervals,
    work,
    by_shape,
    depth,
    modelled,
    audit,
    totals,
    numbers,
    latency,
    summaries,
    speed,
    throughput,
    graph,
    energy,
    date,
    text,
    commit,
)
WARNINGS: tuple[Rule, ...] = (ranking, code)
