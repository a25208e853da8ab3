"""A GGUF file's header: which model it holds and where its tensors lie, read without the tensors.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. No length is believed before the file has been
seen to be that long, so a damaged file costs neither time nor memory.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from harness.core.errors import ModelError

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEEPEST: Final = 4  # arrays of arrays
_DIMENSIONS: Final = 4  # at most, in ggml


class Tensor(NamedTuple):
    """A tensor as the header describes it.

    Attributes:
        row: parameters that follow each other in a row, which formats divide into groups.
        format: the format's number in ggml.
        offset: bytes from the start of the data.
    """

    name: str
    parameters: int
    row: int
    format: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a file says of its model.

    Attributes:
        metadata: single values by key; of an array, how many it has.
        data: where the tensors' data starts, in bytes from the start of the file.
        size: bytes of the file.
    """

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data: int
    size: int

    @property
    def architecture(self) -> str:
        """The model's, by llama.cpp's name."""
        return str(self.metadata.get("general.architecture", ""))


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        ModelError: it is no GGUF file, or of another version, or ends before its header does, or is damaged.
    """
    if not is_gguf(path):
        raise ModelError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Reader(content).header()
        except struct.error:
            raise ModelError(f"{path} is truncated: it ends within its header, after {len(content)} bytes") from None
        except ValueError as error:
            raise ModelError(f"{path} cannot be read as GGUF: {error}") from None


class _Reader:
    """Reads values one after the other; struct.error where the file ends, ValueError where it makes no sense."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.position = content, len(MAGIC)

    def header(self) -> Header:
        version = self.scalar("I")
        if version not in _VERSIONS:
            order = ", or of another byte order," if version & 0xFFFF == 0 else ""
            raise ValueError(f"it is of version {version}{order} and versions 2 and 3 are read")
        tensors, entries = self.scalar("Q"), self.scalar("Q")
        metadata = {}
        for _ in range(entries):
            key = self.text()
            if key in metadata:
                raise ValueError(f"it has two entries {key!r}")
            metadata[key] = self.value(self.scalar("I"), key)
        described = tuple(self.tensor() for _ in range(tensors))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its general.alignment is {alignment!r}")
        names = set()
        for tensor in described:
            if tensor.name in names:
                raise ValueError(f"it has two tensors {tensor.name!r}")
            if tensor.offset % alignment:
                raise ValueError(f"the data of {tensor.name!r} does not begin at a multiple of {alignment} bytes")
            names.add(tensor.name)
        return Header(metadata, described, -(-self.position // alignment) * alignment, len(self.content))

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.position)
        self.position += struct.calcsize(code)
        return value

    def skip(self, count: int) -> None:
        if count > len(self.content) - self.position:
            raise struct.error
        self.position += count

    def text(self) -> str:
        start = self.position + 8
        self.skip(self.scalar("Q"))
        return self.content[start : self.position].decode()

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth == _DEEPEST:
            raise ValueError(f"its entry {key!r} is of type {kind}, which GGUF does not have")
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self.skip(self.scalar("Q"))
        else:
            for _ in range(count):
                self.value(kind, key, depth + 1)
        return count

    def tensor(self) -> Tensor:
        name = self.text()
        count = self.scalar("I")
        start = self.position
        self.skip(8 * count)
        if count > _DIMENSIONS:
            raise ValueError(f"{name!r} has {count} dimensions, and at most {_DIMENSIONS} are possible")
        dimensions = struct.unpack_from(f"<{count}Q", self.content, start)  # the fastest-moving first
        return Tensor(name, prod(dimensions), (dimensions or (1,))[0], self.scalar("I"), self.scalar("Q"))
