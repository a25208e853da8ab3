"""Strangers' text cannot steer what shows it."""

import io
import sys

import pytest

from harness.core.text import printable, write_what_can_be


def test_what_cannot_be_printed_is_replaced() -> None:
    assert printable("\x1b[31mred\u202e\x9b\ud800") == "�[31mred���"
    assert printable("one\ntwo\n", keep="\n") == "one\ntwo\n"
    assert printable("one\r\ntwo", keep="\n") == "one�\ntwo"
    assert printable("µ × – 語 [red]") == "µ × – 語 [red]"
    assert printable(3) == "3"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_replaces_what_its_encoding_lacks(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    write_what_can_be()
    print("a · 日 \udcd0")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == {"ascii": "a ? ? ?\n", "latin-1": "a · ? ?\n"}.get(
        encoding, "a · 日 ?\n"
    )


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_output_that_is_no_file_stays(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    write_what_can_be()
    assert sys.stdout is stream
