"""What a method declares: the facts that a reader must know before trusting a row, in one table.

Everything that reads declarations iterates over ``FACTS``: a stack folds them over its methods, the documentation
answers them in sentences, ``harness check`` holds each value against its type. A new declaration is one attribute of
``Facts``.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, get_args, get_type_hints

from annotated_types import MinLen


class Savings(StrEnum):
    """Whether the running code does less work (real) or only the arithmetic on paper does (simulated)."""

    NONE = "none"
    REAL = "real"
    SIMULATED = "simulated"


class Phase(StrEnum):
    """The parts of inference that a method changes. Scoring a text is prefill alone."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Fact:
    """How one declaration is read.

    Attributes:
        question: what documentation calls it.
        fold: what a stack declares, given what its methods declare.
        answer: a declared value as a sentence.
    """

    question: str
    fold: Callable[[Iterable[Any]], Any]
    answer: Callable[[Any], str]


def _flag(question: str, fold: Callable[[Iterable[Any]], Any], yes: str, no: str = "no") -> Fact:
    return Fact(question, fold, lambda holds: yes if holds else no)


def _union(phases: Iterable[frozenset[Phase]]) -> frozenset[Phase]:
    return frozenset().union(*phases)


def _in_order(phases: frozenset[Phase]) -> str:
    return " and ".join(phase for phase in Phase if phase in phases)


def worst(savings: Iterable[Savings]) -> Savings:
    """What several parts save together: simulated as soon as one part's savings are, none where nothing saves."""
    return max(savings, key=list(Savings).index, default=Savings.NONE)


_SAVINGS = {
    Savings.NONE: "none: it runs what dense runs",
    Savings.REAL: "real: the running code does less work",
    Savings.SIMULATED: "simulated: the arithmetic on paper does less, the running code does not",
}


class Facts:
    """The declarations as class attributes, with their defaults."""

    savings: ClassVar[Annotated[Savings, Fact("saving", worst, _SAVINGS.__getitem__)]] = Savings.REAL
    """Whether the running code does less work; of a method on linear layers, where its kernels run. The record has what
    was saved on this machine."""

    exact: ClassVar[
        Annotated[bool, _flag("exact", all, "yes: greedy output is that of dense", "no: answers can differ from dense")]
    ] = False
    """Greedy output is unchanged."""

    input_dependent: ClassVar[
        Annotated[bool, _flag("input-dependent", any, "yes: the work depends on the input", "no: inputs cost alike")]
    ] = False
    """The work depends on the input."""

    batchable: ClassVar[
        Annotated[
            bool, _flag("batchable", all, "yes: rows of a batch stay independent", "no: run it with --batch_size 1")
        ]
    ] = True
    """Rows of a batch stay independent."""

    phases: ClassVar[Annotated[frozenset[Phase], MinLen(1), Fact("phases", _union, _in_order)]] = frozenset(Phase)
    """The parts of inference that the method changes. It binds: where the prefill is left out, texts are scored context
    first."""

    pools_prompt: ClassVar[
        Annotated[
            bool, _flag("needs a prompt", any, "yes: it decides from all of the prompt; a text without is refused")
        ]
    ] = False
    """What runs is decided from the whole prompt, so a text that is scored without one is refused."""

    needs_training: ClassVar[Annotated[bool, _flag("training", any, "yes: part of the preparation", "none")]] = False
    """The preparation trains something."""

    directs_layers: ClassVar[
        Annotated[bool, _flag("directs layers", any, "yes: a stack has one method that decides which layers run")]
    ] = False
    """Which layers run is decided by the method in their place; a stack has one such method."""

    chooses_keys: ClassVar[
        Annotated[bool, _flag("chooses keys", any, "yes: a stack has one method that decides on keys tokens meet")]
    ] = False
    """Which keys a token meets, or in what form, is decided by the method, in the cache or in attention; a stack has
    one such method, and none beside it that directs layers."""

    stackable: ClassVar[Annotated[bool, _flag("stackable", all, "yes: may be combined as a+b", "no: runs alone")]] = (
        True
    )
    """The method may take part in ``a+b``."""


def _hints() -> dict[str, Any]:
    """The declarations' types by name, with their constraints."""
    return {name: get_args(hint)[0] for name, hint in get_type_hints(Facts, include_extras=True).items()}


FACTS: Final[dict[str, Fact]] = {
    name: next(extra for extra in get_args(hint) if isinstance(extra, Fact)) for name, hint in _hints().items()
}
"""Every declaration by the name of its attribute."""


def fold(parts: Iterable[Facts]) -> dict[str, Any]:
    """What several methods declare together, by the name of the attribute."""
    parts, folded = list(parts), {}
    for name, fact in FACTS.items():
        with suppress(TypeError, ValueError):  # a value of a wrong type is for ``mistyped`` to report
            folded[name] = fact.fold([getattr(part, name) for part in parts])
    return folded


def mistyped(facts: type[Facts]) -> list[str]:
    """The declarations that have a wrong type, each as a sentence."""
    from pydantic import TypeAdapter, ValidationError

    wrong = []
    for name, hint in _hints().items():
        try:
            TypeAdapter(hint).validate_python(value := getattr(facts, name), strict=True)
        except ValidationError as error:
            wrong.append(f"{name}={value!r} is not valid: {error.errors()[0]['msg']}")
    return wrong
