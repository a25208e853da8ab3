"""Rules of a packed run's files: those that ``harness submit`` writes, all of them, no others, unchanged."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from harness.contract.loose import MAX_FILE, is_kept_name, problem_of
from harness.core.errors import ResultError
from harness.leaderboard import texts
from harness.leaderboard.case import STATES, SUBMISSION, Case, is_packed
from harness.leaderboard.results import PACKED_COSTS, PACKED_SAMPLES, Result, plain_file
from harness.leaderboard.strict_json import decode
from harness.results.store import MANIFEST, RECORD

MAX_FOLDER = 10 << 20  # bytes of a packed run
MAX_STATE = 4 << 20  # bytes of what a method learned
_MAX_SUBMISSION = 10_000  # bytes
_REQUIRED = {RECORD, MANIFEST, PACKED_SAMPLES, SUBMISSION}


def files(case: Case) -> Iterator[str]:
    """A packed run has its few small files, whose digests are those that it was packed with."""
    folder = case.result.folder
    present = {path.name: path for path in folder.iterdir()}
    if any(path.is_symlink() or not path.is_file() for path in present.values()):
        yield "it holds something that is not a plain file"
        return
    if not case.packed:
        return
    known = {*_REQUIRED, PACKED_COSTS, *filter(STATES.fullmatch, present), *method_files(case.result)}
    if extra := sorted(present.keys() - known):
        yield f"unexpected files: {', '.join(ascii(name) for name in extra[:5])}"
    if missing := sorted(_REQUIRED - present.keys()):
        yield f"no {', '.join(missing)}: `harness submit` packs a run with all its files"
    yield from _state(present)
    if SUBMISSION in present:
        yield from _digests(case, {name: present[name] for name in (known & present.keys()) - {SUBMISSION}})


def _state(present: dict[str, Path]) -> Iterator[str]:
    """What a method learned is a pair of small files, JSON and safetensors, and nothing else."""
    learned = {path.suffix: path for name, path in present.items() if STATES.fullmatch(name)}
    if not learned:
        return
    if len(learned) != 2:
        yield "a prepared state is state.json and state.safetensors, both"
        return
    if (size := sum(path.stat().st_size for path in learned.values())) > MAX_STATE:
        yield f"a prepared state of {size:,} bytes; at most {MAX_STATE:,} travel"
        return
    tensors = learned[".safetensors"].read_bytes()
    length = int.from_bytes(tensors[:8], "little")
    try:
        facts = decode(learned[".json"].read_bytes(), "state.json")
        decode(tensors[8 : 8 + length] if length <= len(tensors) - 8 else b"", "the head of state.safetensors")
    except ResultError as error:
        yield str(error)
        return
    yield from (f"state.json: {problem}" for problem in texts.problems(facts))


def method_files(result: Result) -> dict[str, str]:
    """The files that a run keeps of methods that are not installed: SHA-256 by name; no other name is looked at."""
    stated: dict[str, str] = result.record["method"]["files"]
    return {name: digest for name, digest in stated.items() if is_kept_name(name)}


def method_file(result: Result, name: str) -> bytes:
    """One of these files, which is shown and handed on, and never run.

    Raises:
        ResultError: it is not there, is no text of its size, or not the one that ran.
    """
    content = plain_file(result.folder / name, MAX_FILE)
    if problem := problem_of(name, content):
        raise ResultError(f"{name}: {problem}")
    if hashlib.sha256(content).hexdigest() != result.record["method"]["files"][name]:
        raise ResultError(f"{name} is not the file that ran: its sha256 is another than the record's")
    return content


def method(case: Case) -> Iterator[str]:
    """The file of a method that is not installed is the one that ran, and the run's command names it."""
    stated, known = case.record["method"]["files"], method_files(case.result)
    yield from (f"a method's file of the name {ascii(name)[1:-1]:.80}" for name in stated if name not in known)
    if len(stated) > len(case.record["method"]["params"]):
        yield f"{len(stated)} files of {len(case.record['method']['params'])} methods"
    for name in known:
        try:
            method_file(case.result, name)
        except ResultError as error:
            yield str(error)
        if f"./{name}:" not in case.record["command"]:
            yield f"{name} is no file that the run's command names"


def _digests(case: Case, present: dict[str, Path]) -> Iterator[str]:
    path = case.result.folder / SUBMISSION
    if path.stat().st_size > _MAX_SUBMISSION:
        yield f"{SUBMISSION} has {path.stat().st_size:,} bytes; at most {_MAX_SUBMISSION:,} are read"
        return
    try:
        stated = decode(path.read_bytes(), SUBMISSION)
    except ResultError as error:
        yield str(error)
        return
    if not isinstance(stated, dict) or stated.keys() != {"id", "sha256"} or not isinstance(stated["sha256"], dict):
        yield f"{SUBMISSION} does not have the id and the sha256 of each file, and nothing else"
        return
    if stated["id"] != case.record["id"]:
        yield f"{SUBMISSION} is of run {stated['id']!a:.40}"
    for name in sorted({*present, *stated["sha256"]}):
        is_same = name in present and hashlib.sha256(present[name].read_bytes()).hexdigest() == stated["sha256"].get(
            name
        )
        if not is_same:
            yield f"{ascii(name)[1:-1]:.60} is not the file that was packed: its sha256 differs"


def packed_size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.lstat().st_size for path in folder.iterdir() if path.is_file())


def place(case: Case) -> Iterator[str]:
    """A packed run lies in a folder of its id."""
    if case.packed and case.result.folder.name != case.record["id"]:
        yield f"folder {case.result.folder.name} holds run {case.record['id']}"


def strays(root: Path, runs: set[Path]) -> Iterator[tuple[Path, str]]:
    """What lies in a folder of published runs and belongs to none of them, each with what is wrong with it."""
    for path in sorted(root.iterdir()):
        if path.is_symlink() or not path.is_dir():
            yield path, "a file beside the runs: each run has a folder, and nothing else lies there"
        elif path not in runs:
            empty = next(path.iterdir(), None) is None
            yield path, "an empty folder" if empty else f"a folder without {RECORD}: no run lies there"


def is_board(root: Path, folders: list[Path]) -> bool:
    """Whether these are published runs: those of a folder of packed ones."""
    return any(folder.parent == root and is_packed(folder) for folder in folders)
