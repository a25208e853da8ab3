"""The methods of one run, in the order they are applied: usually one, several when the user stacks ``a+b``."""

import hashlib
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contract import registry
from harness.contract.facts import Facts, fold
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.core.strangers import text_of

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

_LOOSE = re.compile(r"(?P<path>.+\.py):(?P<cls>[A-Za-z_]\w*)(?::(?P<args>.*))?$")
_PLUS = re.compile(r"(?<!\d[eE])\+|\+(?!\d)")  # not the plus of a number such as 1e+16


@dataclass(frozen=True)
class Stack(Facts):
    """One or more methods applied together; it declares what they declare together (harness.contract.facts).

    Raises:
        MethodError: a method that may not be stacked is asked to be.
    """

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        alone = [part.name for part in self.parts if not part.stackable]
        if len(self.parts) > 1 and alone:
            raise MethodError(f"{alone[0]} cannot be stacked with another method: run it alone")
        vars(self).update(fold(self.parts))

    def check_order(self) -> None:
        """Refuse what cannot be stacked so, before the parts below are prepared for nothing.

        Raises:
            MethodError: with the order that can be, where there is one.
        """
        for index, part in enumerate(self.parts):
            _check_below(part, self.parts[:index])

    def check_model(self, outline: Callable[[], "Decoder"]) -> None:
        """Refuse what cannot be on this model, before anything is prepared.

        Args:
            outline: gives the model without its weights, which is built where a method looks at it.

        Raises:
            MethodError: with what would be right.
        """
        for index, part in enumerate(self.parts):
            if type(part).check_model is not Method.check_model:
                part.check_model(outline(), self.parts[:index])

    @property
    def label(self) -> str:
        """As written on the command line."""
        return "+".join(part.label for part in self.parts)

    @property
    def name(self) -> str:
        """The methods' names without their parameters."""
        return "+".join(part.name for part in self.parts)

    @property
    def family(self) -> str:
        """The families of the parts, each once."""
        return "+".join(dict.fromkeys(str(part.family) for part in self.parts))

    @property
    def is_dense(self) -> bool:
        """Whether this is the unchanged model; the registry lets no outside method claim to be."""
        return all(part.family == Family.BASELINE for part in self.parts)

    @property
    def needs_preparation(self) -> bool:
        """Whether any part calibrates, searches or trains first."""
        return any(part.needs_preparation for part in self.parts)

    @property
    def questions_needed(self) -> int:
        """How many training questions the part that needs most is to have."""
        return max(part.questions_needed for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """Digest of the parts in their order."""
        return hashlib.sha256("+".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    @contextmanager
    def applied(
        self, model: "Decoder", preparation: Preparation, kernels: Mapping[str, str] | None = None
    ) -> Iterator[list[Prepared]]:
        """Prepare and attach each part in turn; on exit everything is restored, in the reverse order.

        A part is prepared on the model as the parts before it left it.

        Args:
            kernels: see ``Decoder.kernels``.
        """
        with ExitStack() as attached:
            states = []
            if kernels:
                attached.enter_context(model.computed_by(kernels))
            for index, part in enumerate(self.parts):
                below = tuple(method.fingerprint for method in self.parts[:index])
                state = preparation.state(part, model, below)
                attached.enter_context(_attached(part, model, state))
                states.append(state)
            yield states


@contextmanager
def _attached(part: Method, model: "Decoder", state: Prepared) -> Iterator[None]:
    """What a method's ``attach`` gives, entered.

    Raises:
        MethodError: it is none that can be, or is left otherwise than once.
    """
    what = f"{type(part).__name__}.attach must be a context manager: decorated with @contextmanager, and with one yield"
    context = part.attach(model, state)
    made = vars(context).get("gen", context) if isinstance(context, AbstractContextManager) else None
    if not isinstance(made, AbstractContextManager | Generator):
        raise MethodError(what)
    try:
        with context:
            yield
    except RuntimeError as error:
        if text_of(error).startswith("generator didn't "):  # contextlib's "yield" and "stop"
            raise MethodError(what) from error
        raise


def _check_below(part: Method, below: tuple[Method, ...]) -> None:
    directing = next((method for method in below if method.directs_layers), None)
    if directing is not None and part.directs_layers:
        raise MethodError(f"{directing.name} and {part.name} both decide which layers run: run them apart")
    choosing = next((method for method in below if method.chooses_keys), None)
    if choosing is not None and part.chooses_keys:
        raise MethodError(f"{choosing.name} and {part.name} both decide which keys a token meets: run them apart")
    mixed = choosing if part.directs_layers else directing if part.chooses_keys else None
    if mixed is not None:
        raise MethodError(
            f"{mixed.name} and {part.name} cannot be stacked, as one decides which layers run and the other which keys "
            "a token meets: run them apart"
        )
    if directing is not None and part.calibrates_layers and part.needs_preparation:
        raise MethodError(
            f"{part.name} is prepared on the layers one after the other, and {directing.name} directs them: "
            f"write {part.name}+{directing.name}"
        )
    part.check_below(below)


def parse(text: str, extra_args: dict[str, Any] | None = None) -> Stack:
    """A stack from ``name``, ``name:key=value,...``, ``./file.py:Class`` or several of them joined by ``+``.

    Raises:
        UnknownNameError: unknown method or argument.
        MethodError: a value that the method refuses.
    """
    # in a list: tuple() would take a StopIteration of a method's own check for the end
    return Stack(tuple([_parse_one(part.strip(), extra_args or {}) for part in _PLUS.split(text)]))


def _parse_one(text: str, extra_args: dict[str, Any]) -> Method:
    if loose := _LOOSE.match(text):
        cls = registry.from_file(Path(loose["path"]), loose["cls"])
        args = loose["args"] or ""
    elif text.endswith(".py"):
        raise MethodError(f"which class of {text}? A loose method is written ./file.py:Class")
    else:
        name, _, args = text.partition(":")
        cls = registry.get(name)
    return cls.from_args({**_arguments(args), **extra_args})


def _arguments(text: str) -> dict[str, Any]:
    """``key=value,...`` as a dictionary of strings; the method converts them to its types."""
    parsed: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise MethodError(f"method argument {item!r} is not of the form key=value")
        parsed[key.strip()] = value.strip()
    return parsed
