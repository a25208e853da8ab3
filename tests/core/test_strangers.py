"""Whose code raised is decided by the innermost frame that is a stranger's or this project's."""

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import jinja2
import pytest

from harness.core.errors import HarnessError
from harness.core.strangers import explained, message_of, raising_module, refusal_of, stranger_of

Calls = Callable[[Callable[[], Any]], Any]


def _call_in(name: str, file: str = "<made up>") -> Calls:
    """A function that calls another one, in a module of this name and file."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile("def call(function): return function()", file, "exec"), names)
    calls: Calls = names["call"]
    return calls


FACTORY = _call_in("lm_eval.tasks._factory", "/lib/site-packages/lm_eval/tasks/_factory.py")
EDITABLE = _call_in("lm_eval.tasks._factory", "/somewhere/lm_eval/tasks/_factory.py")
CYTHON = [
    _call_in("numpy.random.bit_generator", "numpy/random/bit_generator.pyx"),
    _call_in("pandas._libs.algos", "pandas/_libs/algos.pxi"),
    _call_in("yaml._yaml", "yaml/_yaml.pyx"),
    _call_in("own", "/somewhere/elsewhere/lib.pxd"),
]
OURS = _call_in("harness.run.session", "/anywhere/harness/run/session.py")
LIBRARY = _call_in("torch.nn", "/lib/site-packages/torch/nn.py")
TASK = _call_in("lm_eval.tasks.own.utils", "/lib/site-packages/lm_eval/tasks/own/utils.py")
THEIRS = _call_in("own", "/somewhere/own.py")


BROKEN = partial(json.loads, "{")
"""Raises in the standard library."""


def _raised(*calls: Calls) -> BaseException:
    """What comes of these modules calling each other, the last of which has the standard library raise."""
    function: Callable[[], Any] = BROKEN
    for call in reversed(calls):
        function = partial(call, function)
    with pytest.raises(ValueError, match="Expecting") as caught:
        function()
    return caught.value


@pytest.mark.parametrize(
    ("calls", "place"),
    [
        ([OURS], None),
        ([OURS, LIBRARY], None),
        ([OURS, LIBRARY, THEIRS], "own.py"),
        ([OURS, LIBRARY, THEIRS, LIBRARY], "own.py"),
        ([OURS, TASK, LIBRARY], "utils.py"),
        ([OURS, THEIRS, OURS], None),
        ([OURS, THEIRS, LIBRARY, OURS, LIBRARY], None),
        ([OURS, THEIRS, OURS, THEIRS], "own.py"),
        ([OURS, FACTORY], None),
        ([OURS, EDITABLE, LIBRARY], None),
        ([OURS, FACTORY, TASK], "utils.py"),
        *(([OURS, compiled], None) for compiled in CYTHON),
        *(([OURS, THEIRS, compiled], "own.py") for compiled in CYTHON),
    ],
)
def test_the_innermost_owner_raised(calls: list[Calls], place: str | None) -> None:
    error = _raised(*calls)
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # a test's own frame is a stranger's
    assert str(stranger_of(error)).endswith(f"{place}:1 (call)" if place else "None")


def test_what_a_library_wraps_is_the_strangers() -> None:
    error = RuntimeError("generating the data set failed")
    error.__cause__ = _raised(OURS, THEIRS)
    assert "own.py" in str(stranger_of(error))
    ours = _raised(OURS)
    ours.__cause__ = HarnessError("a sentence already")
    assert stranger_of(ours) is None


class OwnError(BaseException):
    pass


@pytest.mark.parametrize(
    "raised",
    [
        GeneratorExit(),
        asyncio.CancelledError(),
        OwnError("strange"),
        SystemExit(3),
        StopIteration(),
        BaseExceptionGroup("two", [OwnError(), GeneratorExit()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_its_type(raised: BaseException) -> None:
    def fail() -> None:
        raise raised

    with pytest.raises(HarnessError, match=rf"own.py:1 \(call\) raised {type(raised).__name__}"), explained():
        THEIRS(_in_no_file(fail))


@pytest.mark.parametrize(
    "raised",
    [KeyboardInterrupt(), BaseExceptionGroup("two", [OwnError(), BaseExceptionGroup("", [KeyboardInterrupt()])])],
)
def test_an_interrupt_stays_one(raised: BaseException) -> None:
    def fail() -> None:
        raise raised

    with pytest.raises(type(raised)), explained():
        THEIRS(fail)


def test_the_end_of_an_iterator_in_a_generator() -> None:
    numbers: Any = (THEIRS(partial(next, iter(()))) for _ in range(2))
    with pytest.raises(HarnessError, match=r"own.py:1 \(call\) raised"), explained():
        OURS(partial(list, numbers))


def _in_no_file(function: Callable[[], None]) -> Callable[[], None]:
    """The function as if it were made by exec, which is no one's file."""
    return FunctionType(function.__code__.replace(co_filename="<made up>"), globals(), closure=function.__closure__)


def test_a_template_is_a_strangers() -> None:
    template = jinja2.Environment().from_string("\n{{ 1 // 0 }}")
    with pytest.raises(ZeroDivisionError) as caught:
        OURS(template.render)
    assert (refusal_of(caught.value) or "").startswith("line 2 of a template raised ZeroDivisionError")


def test_a_context_makes_it_a_sentence() -> None:
    with pytest.raises(HarnessError, match=r"own.py:1 \(call\) raised JSONDecodeError: ") as caught, explained():
        THEIRS(BROKEN)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(KeyboardInterrupt), explained():
        raise KeyboardInterrupt
    with pytest.raises(HarnessError, match="as it is"), explained():
        raise HarnessError("as it is")
    with pytest.raises(HarnessError, match="raised SystemExit"), explained():
        THEIRS(sys.exit)
    with pytest.raises(SystemExit), explained():
        OURS(sys.exit)


class OddError(Exception):
    def __str__(self) -> str:
        raise TypeError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("a"), "KeyError: 'a'"),
        (KeyError(), "KeyError"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (ValueError("x" * 1000), f"ValueError: {'x' * 300}..."),
        (OddError(), "OddError"),
    ],
)
def test_any_exception_can_be_written(error: Exception, message: str) -> None:
    assert message_of(error) == message


def test_who_was_in_charge() -> None:
    helper = _call_in("jinja2.runtime", "/lib/site-packages/jinja2/runtime.py")
    assert raising_module(_raised(OURS, TASK, helper)) == "lm_eval.tasks.own.utils"
    assert raising_module(_raised(OURS, LIBRARY)) == "torch.nn"
    assert raising_module(_raised(TASK, OURS)) == "harness.run.session"
    assert raising_module(ValueError()) == ""
