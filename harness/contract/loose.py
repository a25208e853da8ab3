"""Files of loose methods (``./evict.py:Evict``): what was loaded, to be kept with the runs that it made.

A method's file is small and text, and lies in its run's folder under its own name, so that the command of the run works
there. It is data to everybody but the user who names it: nothing here imports it.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from harness.contract.identity import source_of
from harness.contract.method import Method

MAX_FILE: Final = 256 << 10  # bytes
_NAME: Final = re.compile(r"[A-Za-z_][\w.-]{0,60}\.py", re.ASCII)
_RUN_BY_TOOLS: Final = re.compile(
    r"(conftest|setup|noxfile|sitecustomize|usercustomize|__.*|test_.*|.*_test)\.py", re.IGNORECASE
)
"""Names of files that Python, pytest and others run unasked where they find them."""


@dataclass(frozen=True)
class MethodFile:
    """A loose method's file as it was loaded."""

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the content."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Kept:
    """The files of a run's loose methods.

    Attributes:
        files: those that are kept, by name.
        notes: what is not kept, and why, in sentences.
    """

    files: dict[str, MethodFile]
    notes: list[str]


_LOADED: WeakKeyDictionary[type[Method], MethodFile] = WeakKeyDictionary()


def remember(method: type[Method], file: MethodFile) -> None:
    """Note the file that a class was loaded from."""
    _LOADED[method] = file


def file_of(method: Method) -> MethodFile | None:
    """The file that a method was loaded from, as it was then; None of one that is installed."""
    return _LOADED.get(type(method))


def kept(parts: Sequence[Method]) -> Kept:
    """The files of those parts that are loose, as far as they can be kept."""
    files: dict[str, MethodFile] = {}
    notes = []
    for part in parts:
        file = file_of(part)
        if file is None:
            continue
        problem = problem_of(file.name, file.content)
        if problem is None and files.setdefault(file.name, file).content != file.content:
            problem = "another file of that name is"
        if problem is not None:
            notes.append(f"{part.name}: {ascii(file.name)[1:-1]:.80} is not kept with the run: {problem}")
        elif beside := sorted(_beside(part, file)):
            names = ", ".join(ascii(name)[1:-1] for name in beside[:5])
            notes.append(
                f"{part.name}: {file.name} is kept with the run, and not what it takes from beside it ({names})"
            )
    return Kept(files, notes)


def is_kept_name(name: str) -> bool:
    """Whether a file of that name can lie beside a run."""
    return bool(_NAME.fullmatch(name)) and not _RUN_BY_TOOLS.fullmatch(name)


def problem_of(name: str, content: bytes) -> str | None:
    """Why a file cannot be kept beside a run: its name, its size, or something in it that is not seen as text."""
    if not _NAME.fullmatch(name):
        return "its name is to be of letters, digits, hyphens and underscores, 64 at most, and end in .py"
    if not is_kept_name(name):
        return "Python or a tool would run a file of that name where it finds it: rename it"
    if len(content) > MAX_FILE:
        return f"it has {len(content):,} bytes, and at most {MAX_FILE:,} are kept"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return "it is no text in UTF-8"
    hidden = next((char for char in text if unicodedata.category(char) in _HIDDEN and char not in "\n\r\t\f"), None)
    return None if hidden is None else f"it has a character that does not show (U+{ord(hidden):04X})"


_HIDDEN: Final = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")  # control, direction, unassigned, private, separators


def _beside(part: Method, file: MethodFile) -> set[str]:
    """What a method's file imports or names of the files that lie beside it."""
    names = source_of(type(part)).files
    return {name for name in names if name != file.name and not name.startswith("harness.")}
