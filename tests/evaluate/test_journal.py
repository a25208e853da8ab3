"""What a killed run had finished is taken up again, to the last bit, and nothing half-written is."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from harness.core.errors import DiskError, HarnessError
from harness.evaluate.batches import request_keys
from harness.evaluate.journal import PADDING, Journal, Request, Served
from harness.measure.segment import Segment

SEGMENT = Segment("score", 5, 1, 5, 1, 2, (5, 0, 5), (5, 5, 5), 1, (0.5, 0.0, 0.5), (0.5, 0.5, 1 / 3), 0.5)


def row(document: int, *answers: Any) -> Served:
    requests = tuple(Request("task", document, part, 0, "loglikelihood") for part in range(len(answers)))
    return Served(requests, answers, 5, 0, (SEGMENT,))


FIRST = [row(0, (-0.1 - 0.2, True), (float("-inf"), False)), row(1, "née\n\r\u2028\x00 {}")]
SECOND = [row(2, (-1e-300, False))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of two batches."""
    path = tmp_path / "run" / "journal.jsonl"
    with Journal(path) as journal:
        journal.write(FIRST)
        journal.write(SECOND)
    return path


def read(path: Path) -> list[Served]:
    with Journal(path) as journal:
        return journal.served


def test_batches_come_back_as_they_were(path: Path) -> None:
    assert read(path) == FIRST + SECOND


def test_answers_are_found_by_request(path: Path) -> None:
    with Journal(path) as journal:
        assert journal[Request("task", 0, 1, 0, "loglikelihood")] == (float("-inf"), False)
        assert Request("task", 2, 0, 0, "loglikelihood") in journal
        assert Request("task", 2, 0, 1, "loglikelihood") not in journal
        assert Request("other", 2, 0, 0, "loglikelihood") not in journal
        assert len(journal) == 4


def test_answers_are_there_as_soon_as_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(SECOND)
        assert journal[Request("task", 2, 0, 0, "loglikelihood")] == (-1e-300, False)
        assert (tmp_path / "j").read_text().count("\n") == 1


def test_a_resumed_journal_goes_on_where_it_stopped(path: Path) -> None:
    before = path.read_bytes()
    with Journal(path) as journal:
        journal.write([row(3, "more")])
    assert path.read_bytes().startswith(before)
    assert read(path) == [*FIRST, *SECOND, row(3, "more")]


def test_a_torn_last_line_is_as_if_its_batch_had_not_run(path: Path) -> None:
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in (first + 1, first + 40, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert read(path) == FIRST
        assert path.read_bytes() == whole[:first]


def test_a_torn_only_line_leaves_an_empty_journal(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])
    assert read(path) == []
    assert path.read_bytes() == b""


def test_a_batch_written_again_after_a_torn_line_is_whole(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with Journal(path) as journal:
        journal.write(SECOND)
    assert path.read_bytes() == whole


def edited(change: Callable[[dict[str, Any]], Any]) -> bytes:
    plain = json.loads(json.dumps(SECOND[0].to_json()))
    change(plain)
    return json.dumps([plain]).encode() + b"\n"


GARBAGE = {
    "not JSON": b"what is this\n",
    "not text": b"\xff\xfe\x00\n",
    "empty": b"\n",
    "zeros, as after a power cut": b"\0" * 64 + b"\n",
    "null": b"null\n",
    "a number": b"5\n",
    "a text": b'"abc"\n',
    "a list of numbers": b"[1, 2]\n",
    "no requests": edited(lambda row: row.pop("requests")),
    "a short request": edited(lambda row: row["requests"][0].pop()),
    "no answers": edited(lambda row: row.pop("answers")),
    "too few answers": edited(lambda row: row["answers"].clear()),
    "too many answers": edited(lambda row: row["answers"].append(1)),
    "no segments": edited(lambda row: row.pop("segments")),
    "a broken segment": edited(lambda row: row["segments"][0].pop("mlp")),
    "a segment of another version": edited(lambda row: row["segments"][0].update(colour="red")),
    "packed badly": edited(lambda row: row["segments"][0].update(mlp=[1])),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_what_is_taken_up(what: str, path: Path) -> None:
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + GARBAGE[what] + second)
    assert read(path) == FIRST
    assert path.read_bytes() == first


def test_a_journal_in_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        Journal(tmp_path / "a" / "j").__enter__()


class FullFile(StringIO):
    """A file on a full disk, which keeps what it could not write and tries again when it is closed."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.flush()


def test_a_full_disk_is_said_and_keeps_what_is_written(path: Path) -> None:
    def fill() -> None:
        with Journal(path) as journal:
            assert journal._file is not None
            journal._file.close()
            journal._file = FullFile()
            journal.write([row(3, "more")])

    with pytest.raises(
        DiskError, match=r"no space left while writing .*journal.jsonl. What was finished before is kept"
    ):
        fill()
    assert read(path) == FIRST + SECOND


def test_an_answer_that_was_not_written_is_not_remembered(path: Path) -> None:
    journal = Journal(path).__enter__()
    journal._file = FullFile()
    with pytest.raises(DiskError):
        journal.write([row(3, "more")])
    assert Request("task", 3, 0, 0, "loglikelihood") not in journal


@pytest.mark.parametrize(("turns", "padding"), [((PADDING,), True), ((PADDING, 0), False), ((0,), False)])
def test_a_row_that_nobody_asked_for_is_padding(turns: tuple[int, ...], padding: bool) -> None:
    requests = tuple(Request("task", 0, 0, turn, "loglikelihood") for turn in turns)
    assert replace(row(0, "a"), requests=requests).is_padding is padding


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path), pytest.raises(HarnessError, match="another process"), Journal(path):
        pass
    with Journal(path):
        pass


def test_answers_of_another_number_of_processes_are_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for processes, kept in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (1, 0)):
        with Journal(path, processes) as journal:
            assert len(journal) == kept
            if not kept:
                journal.write([row(0, "answer")])


def test_a_fresh_journal_forgets(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write([row(0, "answer")])
    with Journal(path, fresh=True) as journal:
        assert len(journal) == 0
    assert path.read_bytes() == b""


def test_a_document_may_be_asked_in_two_ways():
    """As SQuAD 2 is: an answer is written, and that there is none is scored; lm-eval numbers both from 0."""
    asked = [
        Instance(kind, {}, ("text", "answer"), 0, metadata=("task", 3, 1))
        for kind in ("generate_until", "loglikelihood")
    ]
    keys = [key for instance in asked for key in request_keys([instance])]
    assert len(set(keys)) == 2
    assert [key[:4] for key in keys] == [("task", 3, 0, 0)] * 2


def test_batches_of_other_journals_are_taken_as_they_are_asked_for(path: Path, tmp_path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'[{"requests": [["torn')
    others = (tmp_path / "gone.jsonl", path)
    asked = [[request for row in batch for request in row.requests] for batch in (SECOND, FIRST)]
    with Journal(tmp_path / "j", others=others) as journal:
        assert journal.served == []
        assert journal.answers(asked[0][:1] + asked[1][:1]) is None  # no batch of either
        assert journal.answers(asked[0]) == [(-1e-300, False)]
        assert journal.served == SECOND
        assert journal.answers(asked[1]) == [answer for row in FIRST for answer in row.answers]
        assert journal.row(asked[1][2]) == FIRST[1]
        assert journal.answers([Request("task", 9, 0, 0, "loglikelihood")]) is None
    assert read(tmp_path / "j") == SECOND + FIRST
    with Journal(tmp_path / "fresh", fresh=True, others=others) as journal:
        assert journal.answers(asked[0]) is None
