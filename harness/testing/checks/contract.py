"""What a method says of itself: documentation, class attributes, parameters. No model is needed."""

import json
import re
from typing import Any

from harness.contract.facts import mistyped
from harness.contract.method import Method, parameters
from harness.core.errors import HarnessError, UnknownNameError
from harness.testing.outcome import Failed
from harness.testing.subject import Subject

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def declares_itself(subject: Subject) -> None:
    """The class has a docstring, a name, and every class attribute in its type."""
    for part in subject.parts:
        method = type(part)
        wrong = list(_wrong_declarations(method))
        if wrong:
            raise Failed(f"{method.__name__}: {'; '.join(wrong)}")


def _wrong_declarations(method: type[Method]) -> list[str]:
    doc = vars(method).get("__doc__") or ""
    rules = {
        "it has no docstring": bool(doc) and not doc.startswith(f"{method.__name__}("),  # dataclass writes that one
        f"name={method.name!r} is not words of lower-case letters and digits joined by hyphens": (
            isinstance(method.name, str) and _NAME.fullmatch(method.name)
        ),
        f"paper={method.paper!r} is neither a string nor None": isinstance(method.paper, str | None),
        "it lacks the decorator @dataclass(frozen=True, kw_only=True)": (
            "__dataclass_fields__" in vars(method) and vars(method)["__dataclass_params__"].frozen
        ),
        "examples is not a tuple of at least one dictionary of parameters": (
            isinstance(method.examples, tuple)
            and method.examples
            and all(isinstance(example, dict) for example in method.examples)
        ),
        "neutral is neither a dictionary of parameters nor None": isinstance(method.neutral, dict | None),
    }
    wrong = [rule for rule, holds in rules.items() if not holds] + mistyped(method)
    return wrong or _wrong_settings(method)


def _wrong_settings(method: type[Method]) -> list[str]:
    wrong = []
    for settings in (*method.examples, *([method.neutral] if method.neutral is not None else [])):
        try:
            method.from_args(settings)
        except HarnessError as error:
            wrong.append(f"its own settings {settings} are refused: {error}")
    return wrong


def parameters_round_trip(subject: Subject) -> None:
    """Parameters round-trip through JSON and through the label, as the command line writes it."""
    for part in subject.parts:
        for method in (part, *(type(part).from_args(example) for example in part.examples)):
            _require_round_trip(method)


def _require_round_trip(method: Method) -> None:
    cls, params = type(method), method.params()
    if json.loads(json.dumps(params)) != params:
        raise Failed(f"the parameters of {method!r} do not survive JSON: {params}")
    name, _, written = method.label.partition(":")
    strings = dict(item.split("=", 1) for item in written.split(",")) if written else {}
    copies = {"params()": cls.from_args(params), f"the label {method.label!r}": cls.from_args(strings)}
    for source, copy in copies.items():
        if copy != method or copy.params() != params:
            raise Failed(f"{method!r} comes back from {source} as {copy!r}")
    if name != cls.name:
        raise Failed(f"the label {method.label!r} does not start with the name {cls.name!r}")


def refuses_unknown_parameters(subject: Subject) -> None:
    """A parameter that the method does not have is refused by its name."""
    for part in subject.parts:
        known = [field.name for field in parameters(type(part))]
        wrong = "no_such_parameter" if not known else f"{known[0]}_"
        args: dict[str, Any] = {**part.params(), wrong: 1}
        try:
            type(part).from_args(args)
        except UnknownNameError as error:
            if wrong not in str(error):
                raise Failed(f"the refusal of {wrong!r} does not name it: {error}") from None
        else:
            raise Failed(f"from_args takes {wrong}=1, a parameter that {part.name} does not have")
