"""Packing a run for publication: the record, how it was made, and each document's evidence, without folders' names."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import SubmitError
from harness.core.files import staged_folder
from harness.leaderboard.case import SUBMISSION
from harness.leaderboard.evidence import answer_text
from harness.leaderboard.results import PACKED_COSTS, PACKED_SAMPLES, Result, load
from harness.leaderboard.rules import judge
from harness.reports.columns import at
from harness.results.store import MANIFEST, RECORD, Store

_LEFT_OUT = ("prompt_hash", "target_hash")
_LONGEST = 120  # characters of an expected answer
_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+([\w.@+-]*)")


def submit(name: str, store: Store, board: Path) -> list[Path]:
    """Pack a run, and the dense run that it is compared with unless it is packed already, under a folder of results.

    Returns the new folders.

    Raises:
        SubmitError: the run would be refused; the message has the reasons.
        StoreError: no such run, or no dense run beside it.
    """
    result = load(store.find(name).path)
    wanted = [result]
    dense_id = at(result.record, "baseline/run_id")
    if dense_id is not None and not (board / dense_id).exists():
        wanted.insert(0, load(store.find(dense_id).path))
    reasons = [f"{each.record['id']}: {text}" for each in wanted for text in _reasons(each)]
    if reasons:
        raise SubmitError("\n  ".join(["this would be refused:", *reasons]))
    packed = []
    for each in wanted:
        folder = board / each.record["id"]
        if folder.exists():
            raise SubmitError(f"{folder} exists already; a published run stays as it is")
        with staged_folder(folder) as staging:
            _pack(each, staging)
        packed.append(folder)
    return packed


def _reasons(result: Result) -> list[str]:
    return [finding.text for finding in judge(result) if finding.severity == "error"]


def _pack(result: Result, folder: Path) -> None:
    """Write the files of a packed run; the same run gives the same bytes."""
    record = dict(result.record)
    model = record["model"]
    places = ("pretrained", "args", "base")
    record["model"] = model | {name: without_folders(part) for name, part in model.items() if name in places}
    record["command"] = without_folders(record["command"])
    manifest = result.manifest()
    identity = manifest.pop("identity", None)  # the id is its digest
    contents = {
        RECORD: (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode(),
        MANIFEST: (json.dumps(without_folders(manifest) | {"identity": identity}, indent=1) + "\n").encode(),
        PACKED_SAMPLES: gzip.compress("".join(_lines(result)).encode(), 9, mtime=0),
    }
    if costs := "".join(_cost_lines(result)):
        contents[PACKED_COSTS] = gzip.compress(costs.encode(), 9, mtime=0)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    (folder / SUBMISSION).write_text(json.dumps({"id": record["id"], "sha256": digests}, indent=1) + "\n")


def _lines(result: Result) -> Iterator[str]:
    """Each document with what proves the scores and the work; not its responses and its trace, which are large."""
    for sample in result.samples():
        kept: dict[str, Any] = {
            name: value
            for name, value in sample.items()
            if name not in _LEFT_OUT and (value is None or isinstance(value, int | float | str))
        }
        kept["doc_hash"] = sample["doc_hash"][:16]
        kept["scores"] = sample["scores"]
        kept["target"] = target if (target := sample["target"]) is None else str(target)[:_LONGEST]
        kept["answer"] = answer_text(sample)
        yield json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n"


def _cost_lines(result: Result) -> Iterator[str]:
    """What each document cost; not the traces of its requests, which are large."""
    for line in result.costs():
        kept: dict[str, Any] = {**line, "doc_hash": line["doc_hash"][:16]}
        if "requests" in line:
            kept["requests"] = [
                {name: value for name, value in request.items() if name != "segments"} for request in line["requests"]
            ]
        yield json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n"


def without_folders(value: Any) -> Any:
    """A value whose texts name no folder of the machine: of an absolute path, the last part is left."""
    if isinstance(value, str):
        return _PATH.sub(lambda match: match[1], value)
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    if isinstance(value, Mapping):
        return {key: without_folders(each) for key, each in value.items()}
    return value
