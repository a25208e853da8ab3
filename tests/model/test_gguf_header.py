"""What is not GGUF, or not whole, or not known, is refused in a sentence before anything is believed."""

import struct
from pathlib import Path

import pytest

from harness.core.errors import ModelError
from harness.model.gguf_header import read_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*, version: int = 3, tensors: bytes = b"", count: int = 0, entries: tuple[bytes, ...] = ()) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, len(entries)) + b"".join(entries) + tensors


def tensor(name: str = "a.weight", shape: tuple[int, ...] = (32, 2), kind: int = 3, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
TOKENS = text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
NUMBERS = text("numbers") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3)
NESTED = text("nested") + struct.pack("<IIQIQHIQ", 9, 9, 2, 2, 1, 7, 2, 0)
WHOLE = header(entries=(ARCHITECTURE, TOKENS, NUMBERS, NESTED), tensors=tensor(), count=1)


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_a_header_says_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(WHOLE)
    read = read_header(path)
    assert read.metadata == {"general.architecture": "llama", "tokens": 2, "numbers": 3, "nested": 2}
    assert read.architecture == "llama"
    assert read.tensors == (("a.weight", 64, 32, 3, 0),)
    assert (read.data % 32, read.size) == (0, len(WHOLE))
    assert 0 <= read.data - read.size < 32


def test_a_header_that_ends_anywhere_is_truncated(tmp_path: Path) -> None:
    for length in range(4, len(WHOLE)):
        assert "is truncated: it ends within its header" in refusal(tmp_path / "m.gguf", WHOLE[:length])


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04", b"GGML" + bytes(100), bytes(100)])
def test_another_file_is_none(content: bytes, tmp_path: Path) -> None:
    assert "is not a GGUF file" in refusal(tmp_path / "m.gguf", content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(version=1), "version 1 "),
        (header(version=4), "version 4 "),
        (header(version=3 << 24), "another byte order"),
        (header(entries=(text("x") + struct.pack("<I", 13),)), "'x' is of type 13"),
        (header(entries=(text("x") + struct.pack("<IIQ", 9, 99, 1),)), "'x' is of type 99"),
        (header(entries=(text("x") + struct.pack("<IIQ", 9, 9, 1) * 9,)), "truncated"),
        (header(entries=(text("general.alignment") + struct.pack("<II", 4, 0),)), "general.alignment is 0"),
        (header(entries=(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<I", 0),)), "cannot be read as GGUF"),
        (header(entries=(ARCHITECTURE, ARCHITECTURE)), "two entries 'general.architecture'"),
        (header(count=2, tensors=tensor() * 2), "two tensors 'a.weight'"),
        (header(count=1, tensors=tensor(offset=33)), "does not begin at a multiple of 32 bytes"),
        (header(count=1, tensors=tensor(shape=(1,) * 5)), "has 5 dimensions"),
        # counts that no file could hold cost neither time nor memory
        (header(count=2**63), "truncated"),
        (header(entries=(text("x") + struct.pack("<IIQ", 9, 8, 2**63),)), "truncated"),
        (header(entries=(text("x") + struct.pack("<IIQ", 9, 4, 2**63),)), "truncated"),
        (header(entries=(struct.pack("<Q", 2**63),)), "truncated"),
        (header(count=1, tensors=text("a") + struct.pack("<I", 2**32 - 1)), "truncated"),
    ],
)
def test_what_makes_no_sense_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(tmp_path / "m.gguf", content)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_header(tmp_path / "absent.gguf")
