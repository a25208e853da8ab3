"""Whose code raised: a stranger's file that is to be named in a sentence, or this project, whose traceback stays.

Strangers are the files that the harness runs and does not ship: a task's Python, prompt and chat templates, a model
repository's code, loose methods and plugins. The innermost frame that belongs to a stranger or to this project decides;
libraries in between (lm-eval, transformers, torch) do what they are called for.
"""

import os
import re
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType

from harness.core.errors import HarnessError

METHODS = "harness.methods"
"""The group of entry points under which plugins declare their methods."""

_LONGEST = 300  # characters of a stranger's own message
_TEMPLATES = ("<template>", "<unknown>")  # what jinja2 calls the file of a template that came as text
_IN_CHARGE = ("harness", "lm_eval", "tokenizers", "torch", "transformers")
_TASKS = re.compile(
    r"[/\\]lm_eval[/\\]tasks[/\\].+[/\\]"
)  # a folder in that of tasks, which holds lm-eval's loader too
_COMPILED = (".pyx", ".pxi", ".pxd")  # what the frames of a library's Cython name, relative to its source


@contextmanager
def explained() -> Iterator[None]:
    """Turn whatever a stranger's file raises inside the ``with`` block into a sentence that names file and line.

    Raises:
        HarnessError: a stranger's file raised, or ended the process. Everything else passes through as it is.
    """
    try:
        yield
    except HarnessError:
        raise
    except BaseException as error:
        if not is_interrupt(error) and (sentence := refusal_of(error)):
            raise HarnessError(sentence) from error
        raise


def is_interrupt(error: BaseException) -> bool:
    """Whether the user ended it, by itself or among others: that is no one's mistake."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_interrupt, error.exceptions))
    return isinstance(error, KeyboardInterrupt)


def refusal_of(error: BaseException) -> str | None:
    """What a stranger's file raised, and where; None where this project or a library alone raised it."""
    place = stranger_of(error)
    return place and f"{place} raised {message_of(error)}"


def stranger_of(error: BaseException) -> str | None:
    """Where in a stranger's file the exception came from; None where this project or a library alone raised it.

    A library may wrap what a stranger's file raised in an exception of its own; then the cause is looked at.
    """
    frames = list(_frames(error))
    owned = [(frame, line) for frame, line in frames if _is_ours(frame) or _is_strangers(frame)]
    if owned and not _is_ours(owned[-1][0]):
        return _place(*owned[-1])
    cause = error.__cause__ or error.__context__
    if isinstance(error, RuntimeError) and isinstance(cause, StopIteration):  # what Python makes of it in a generator
        return stranger_of(cause)
    if cause is None or isinstance(cause, HarnessError) or (frames and _is_ours(frames[-1][0])):
        return None
    return stranger_of(cause)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was raised from, the first of all last."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def message_of(error: BaseException) -> str:
    """The exception's type and message in one line; its message may be empty, endless, or raise itself."""
    text = " ".join(text_of(error).split())
    text = f"{text[:_LONGEST]}..." if len(text) > _LONGEST else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def text_of(error: BaseException) -> str:
    """What the exception says; nothing where a stranger's exception raises when it is written."""
    try:
        return str(error)
    except BaseException as another:
        if is_interrupt(another):
            raise
        return ""


def raising_module(error: BaseException) -> str:
    """The module in charge where the exception was raised, by its dotted name: this project's, or a library's below.

    Of the libraries, those count that do work of their own; what they use (jinja2, numpy, metrics) acts for them.
    """
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in _frames(error)]
    return next((name for name in reversed(names) if name.partition(".")[0] in _IN_CHARGE), "")


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """The frames from where the exception is handled to where it was raised, each with its line."""
    entry = error.__traceback__
    while entry is not None:
        yield entry.tb_frame, entry.tb_lineno
        entry = entry.tb_next


def _is_ours(frame: FrameType) -> bool:
    return f"{frame.f_globals.get('__name__')}.".startswith("harness.")


def _is_strangers(frame: FrameType) -> bool:
    file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__", ""))
    if file in _TEMPLATES or module.partition(".")[0] in _plugins():
        return True
    if not Path(file).is_absolute() or file.endswith(_COMPILED):  # made by exec, frozen or compiled
        return False
    if _TASKS.search(file):
        return True
    library = "site-packages" in file or "dist-packages" in file or module.partition(".")[0] in _IN_CHARGE
    return not (library or _is_within(file, _standard_library()))


def _is_within(file: str, folders: frozenset[str]) -> bool:
    return any(file.startswith(folder) for folder in folders) and "-packages" not in file


@cache
def _standard_library() -> frozenset[str]:
    paths = sysconfig.get_paths()
    return frozenset(os.path.join(paths[name], "") for name in ("stdlib", "platstdlib"))  # noqa: PTH118


@cache
def _plugins() -> frozenset[str]:
    """The packages that declare methods, wherever they are installed."""
    names: set[str] = set()
    with suppress(TypeError, ValueError):  # a distribution whose entry points cannot be read
        names = {point.module.partition(".")[0] for point in entry_points(group=METHODS)}
    return frozenset(names - {"harness"})


def _place(frame: FrameType, line: int) -> str:
    """File, line and function, as a person looks them up; a template has no file."""
    code = frame.f_code
    if code.co_filename in _TEMPLATES:
        return f"line {line} of a template"
    path = Path(code.co_filename)
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{near}:{line} ({code.co_name})"
