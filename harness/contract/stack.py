"""The methods of one run, in the order they are applied: usually one, several when the user stacks ``a+b``."""

import hashlib
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contract import registry
from harness.contract.decoder import Manner
from harness.contract.facts import Facts, Phase, fold
from harness.contract.families import Family, refusal
from harness.contract.method import Method
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.study import Needs
from harness.core.errors import MethodError, UnknownNameError, UnsupportedModelError
from harness.core.strangers import text_of

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.model_source import ModelSource

_LOOSE = re.compile(r"(?P<path>.+\.py):(?P<cls>[A-Za-z_]\w*)(?::(?P<args>.*))?$")
_PLUS = re.compile(r"(?<!\d[eE])\+|\+(?!\d)")  # not the plus of a number such as 1e+16


@dataclass(frozen=True)
class Stack(Facts):
    """One or more methods applied together; it declares what they declare together (harness.contract.facts).

    Raises:
        MethodError: a method that may not be stacked is asked to be, or has a family that is none.
    """

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if reason := refusal(part.name, getattr(part, "family", None)):
                raise MethodError(reason)
        alone = [part.name for part in self.parts if not part.stackable]
        if len(self.parts) > 1 and alone:
            raise MethodError(f"{alone[0]} cannot be stacked with another method: run it alone")
        vars(self).update(fold(self.acting))

    def check_order(self) -> None:
        """Refuse what cannot be stacked so, before the parts below are prepared for nothing.

        Raises:
            MethodError: with the order that can be, where there is one.
        """
        for index, part in enumerate(self.parts):
            if index and type(part).checkpoint is not Method.checkpoint:
                raise MethodError(f"{part.name} is another model, which comes first: write {part.name}+...")
            _check_below(part, self.parts[:index])

    def checkpoint(self, source: "ModelSource") -> "ModelSource":
        """The model that the stack runs on, given that of the run.

        Raises:
            MethodError: a method gives something else than a model, or refuses to.
        """
        from harness.contract.model_source import ModelSource

        for part in self.parts:
            with _naming(part):
                given: Any = part.checkpoint(source)
            if not isinstance(given, ModelSource):
                what = f"{type(part).__name__}.checkpoint must return a ModelSource"
                raise MethodError(f"{what}, and returned a {type(given).__name__}")
            source = given
        return source

    def check_model(self, outline: Callable[[], "Decoder"]) -> None:
        """Refuse what cannot be on this model, before anything is prepared.

        Args:
            outline: gives the model without its weights, which is built where a method looks at it.

        Raises:
            MethodError: with what would be right.
            UnsupportedModelError: a model that runs as dense alone.
        """
        for index, part in enumerate(self.parts):
            if type(part).check_model is not Method.check_model:
                model = outline()
                self._refuse_opaque(model)
                with _naming(part):
                    part.check_model(model, self.parts[:index])

    def _refuse_opaque(self, model: "Decoder") -> None:
        reason = getattr(getattr(model, "anatomy", None), "opaque", None)  # a stand-in for a model may have no parts
        if reason is not None and not self.is_dense:
            raise UnsupportedModelError(f"{self.name}: {model.kind} runs as dense alone, because {reason}")

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
    def needs(self) -> Needs:
        """What the parts that are prepared need together."""
        return Needs.of_all(part.needs for part in self.parts if part.needs_preparation)

    @property
    def acting(self) -> tuple[Method, ...]:
        """The parts that run: all of them, or where one is a control, that one and those above it."""
        controls = [index for index, part in enumerate(self.parts) if part.is_control]
        return self.parts[max(controls, default=0) :]

    @property
    def notes(self) -> list[str]:
        """What a reader of its results must know, in sentences."""
        off = self.parts[: len(self.parts) - len(self.acting)]
        if not self.acting[0].is_control:
            return []
        below = f", and {'+'.join(part.label for part in off)} below it is off" if off else ""
        return [f"{self.acting[0].name} runs as a control here: the same training on the dense model{below}"]

    @property
    def only_decodes(self) -> bool:
        """Whether a part changes answers, but nothing while a text is read: scoring in one forward does not show it."""
        return any(Phase.PREFILL not in part.phases and not part.exact for part in self.acting)

    @property
    def manner(self) -> Manner:
        """How a text is scored context first: token by token where a part decides or acts at each token written."""
        at_tokens = (
            part.input_dependent and Phase.DECODE in part.phases and part.family != Family.ROUTING
            for part in self.acting
        )
        return Manner(
            whole=self.directs_layers or self.pools_prompt,
            stepwise=self.only_decodes or any(at_tokens),
            alone=not self.batchable,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the parts in their order, as their sources were when it was first asked for."""
        return hashlib.sha256("+".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    @contextmanager
    def applied(
        self, model: "Decoder", preparation: Preparation, kernels: Mapping[str, str] | None = None
    ) -> Iterator[list[Prepared]]:
        """Prepare and attach each part in turn; on exit everything is restored, in the reverse order.

        A part is prepared on the model as the parts before it left it.

        Args:
            kernels: see ``Decoder.kernels``.

        Raises:
            UnsupportedModelError: a model that runs as dense alone.
        """
        self._refuse_opaque(model)
        below = [tuple(part.fingerprint for part in self.parts[:index]) for index in range(len(self.parts))]
        if self.needs.teacher:
            preparation = preparation.beside(model)

        def state(index: int) -> Prepared:
            return preparation.state(self.parts[index], model, below[index])

        with model.computed_by(kernels) if kernels else nullcontext(), self.attached(model, state) as states:
            yield states

    @contextmanager
    def attached(self, model: "Decoder", state: Callable[[int], Prepared]) -> Iterator[list[Prepared]]:
        """Attach each part in turn; what is below a control is taken off again once the control is prepared.

        Args:
            state: gives the state of the part at an index, on the model as the parts before it left it.

        Raises:
            UnsupportedModelError: a model that runs as dense alone.
        """
        self._refuse_opaque(model)
        manner = self.manner
        with nullcontext() if manner == Manner() else model.scored(manner), ExitStack() as below:
            states = []
            for index, part in enumerate(self.parts):
                with _naming(part):
                    states.append(state(index))
                if part.is_control:
                    below.close()
                below.enter_context(_attached(part, model, states[-1]))
            with _naming(self):
                yield states


@contextmanager
def _attached(part: Method, model: "Decoder", state: Prepared) -> Iterator[None]:
    """What a method's ``attach`` gives, entered.

    Raises:
        MethodError: it is none that can be, or is left otherwise than once; or an engine refuses what it is given.
    """
    what = f"{type(part).__name__}.attach must be a context manager: decorated with @contextmanager, and with one yield"
    with _naming(part):
        context = part.attach(model, state)
    made = vars(context).get("gen", context) if isinstance(context, AbstractContextManager) else None
    if not isinstance(made, AbstractContextManager | Generator):
        raise MethodError(what)
    try:
        with ExitStack() as attached:
            with _naming(part):
                attached.enter_context(context)
            yield
    except RuntimeError as error:
        if text_of(error).startswith("generator didn't "):  # contextlib's "yield" and "stop"
            raise MethodError(what) from error
        raise


@contextmanager
def _naming(part: Method | Stack) -> Iterator[None]:
    """Begin what is refused in the ``with`` block with the method's name: an engine does not know who called it."""
    names = [method.name for method in part.parts] if isinstance(part, Stack) else [part.name]
    try:
        yield
    except (MethodError, UnknownNameError) as error:
        if not any(name in text_of(error) for name in names):
            sentence = text_of(error)
            error.args = (f"{part.name}: {sentence}",)
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
    for drafting, method in ((a, b) for a, b in permutations((*below, part), 2) if a.drafts and not b.takes_back):
        raise MethodError(
            f"{drafting.name} takes guesses that are rejected out of the cache again, and {method.name} gives none "
            "back as it was: run them apart"
        )
    removed = part.removes & {"layers", "attentions"}
    if directing is not None and directing.family != Family.ROUTING and removed:  # paths are of the dense layers
        advice = f"write {part.name}+{directing.name}"
        try:
            directing.check_below((part,))
        except MethodError:
            advice = "run them apart"
        raise MethodError(
            f"{directing.name} lets tokens skip the layers that it finds, and {part.label} above it takes "
            f"{' and '.join(sorted(removed))} out: {advice}"
        )
    part.check_below(below)


def parse(text: str, extra_args: dict[str, Any] | None = None) -> Stack:
    """A stack from ``name``, ``name:key=value,...``, ``./file.py:Class`` or several of them joined by ``+``.

    Raises:
        UnknownNameError: unknown method or argument.
        MethodError: a value that the method refuses.
    """
    # in a list: tuple() would take a StopIteration of a method's own check for the end
    return Stack(tuple([_parse_one(part, extra_args or {}) for part in written_parts(text)]))


def written_parts(text: str) -> list[str]:
    """The methods of a stack, each as it is written."""
    return [part.strip() for part in _PLUS.split(text)]


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
