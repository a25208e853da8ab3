"""Packing a run for publication: the record, how it was made, and each document's evidence, without folders' names."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.contract.prepared import FACTS, TENSORS
from harness.contract.states import States
from harness.core.errors import SubmitError
from harness.core.files import parse_json, staged_folder
from harness.leaderboard.case import SUBMISSION
from harness.leaderboard.evidence import answer_text
from harness.leaderboard.packing import MAX_STATE, method_file, method_files
from harness.leaderboard.results import PACKED_COSTS, PACKED_SAMPLES, Result, load
from harness.leaderboard.rules import judge
from harness.leaderboard.texts import cleaned
from harness.reports.columns import at
from harness.results.samples import SampleLine
from harness.results.store import MANIFEST, RECORD, Store

_LEFT_OUT = ("prompt_hash", "target_hash", "rows", "filtered")
_LONGEST = 120  # characters of an expected answer
_LONGEST_RESPONSE = 2_000  # characters of one text that a model wrote
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
        MANIFEST: (json.dumps(cleaned(without_folders(manifest)) | {"identity": identity}, indent=1) + "\n").encode(),
        PACKED_SAMPLES: gzip.compress("".join(_lines(result)).encode(), 9, mtime=0),
    }
    if costs := "".join(_cost_lines(result)):
        contents[PACKED_COSTS] = gzip.compress(costs.encode(), 9, mtime=0)
    contents |= learned(result) | {name: method_file(result, name) for name in method_files(result)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    (folder / SUBMISSION).write_text(json.dumps({"id": record["id"], "sha256": digests}, indent=1) + "\n")


def learned(result: Result) -> dict[str, bytes]:
    """The files of what a method learned that can be given what it learned, if they are here and small."""
    method, model = result.record["method"], result.record["model"]
    if len(method["params"]) != 1 or "state" not in method["params"][0]:
        return {}
    given = method["params"][0]["state"]
    folders = [Path(given)] if given else [state.folder for state in States.of_user().all()]
    for folder in folders:
        files = [folder / name for name in (FACTS, TENSORS)]
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = parse_json(files[0].read_bytes())
            is_of_run = (about["key"]["name"], about["key"]["model"]) == (method["name"], model["fingerprint"])
            if is_of_run and [about["facts"]] == method["state"] and sum(f.stat().st_size for f in files) <= MAX_STATE:
                return {path.name: path.read_bytes() for path in files}
    return {}


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
        kept["target"] = target if (target := sample["target"]) is None else cleaned(str(target)[:_LONGEST])
        kept["answer"] = cleaned(answer_text(sample))
        if (responses := _responses(sample)) is not None:
            kept["responses"] = responses
        yield json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n"


def _responses(sample: SampleLine) -> Any:
    """What was answered, so that a run again can be compared with it; None where a text is long, or not to be shown."""
    responses = sample.get("responses")
    texts = [text for response in responses or () for text in response if isinstance(text, str)]
    if not responses or any(len(text) > _LONGEST_RESPONSE or cleaned(text) != text for text in texts):
        return None
    return responses


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
