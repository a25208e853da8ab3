"""What is checked: a method, or several stacked, at given settings, and the tiny models it is tried on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.contract.facts import Phase, Savings
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.contract.stack import Stack, parse
from harness.contract.study import Study
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.weights.kernel_plan import first_kernels
from harness.model.weights.savings import savings
from harness.testing.outcome import Failed, Skipped

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

FAMILIES = ("llama", "qwen3", "gpt2", "opt", "gpt_neox")
"""Grouped and full attention, rotary and learned positions, transposed weights, no MLP module, parallel branches."""

TEXT = Study(("The keeper of the light wrote down every ship that passed, and its flag. " * 8,), "the checks")

Checked = str | Method | type[Method] | Stack


@dataclass
class Subject:
    """A method under check. Every model it hands out is fresh: a check may break it.

    Attributes:
        stack: the method, or those stacked, at the settings that are checked.
        families: the families of decoders, as ``harness.testing.tiny`` names them.
        device: where the models are, such as "cuda:0".
    """

    stack: Stack
    families: Sequence[str] = FAMILIES
    device: str = "cpu"
    _states: dict[Any, Prepared] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, method: Checked, families: Sequence[str] = FAMILIES, device: str = "cpu") -> "Subject":
        """What is to be checked, as the command line writes it, as a class, or built.

        A class, or a method without parameters of its own, is checked at the last and strongest of its examples:
        defaults are meant for real models.
        """
        if isinstance(method, type):
            return cls(Stack((method.from_args(method.examples[-1]),)), families, device)
        if isinstance(method, Method):
            return cls(Stack((method,)), families, device)
        stack = parse(method) if isinstance(method, str) else method
        stack.check_order()
        return cls(Stack(tuple(_strongest(part) for part in stack.parts)), families, device)

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods, usually one."""
        return self.stack.parts

    @property
    def examples(self) -> list[Stack]:
        """The method at each of its examples, from mild to strong.

        Raises:
            Skipped: several methods are stacked, whose strengths have no common order.
        """
        if len(self.parts) > 1:
            raise Skipped("several methods are stacked; the check is for each of them alone")
        method = type(self.parts[0])
        return [Stack((method.from_args(example),)) for example in method.examples]

    @property
    def drafts(self) -> bool:
        """Whether it writes dense's text in other steps than dense: what it saves depends on what is written."""
        return self.stack.exact and Phase.PREFILL not in self.stack.phases

    @property
    def steps(self) -> int:
        """Tokens of a generation: those of drafts are enough for random weights to repeat themselves."""
        from harness.testing.serve import STEPS

        return 10 * STEPS if self.drafts else STEPS

    @cached_property
    def attempts(self) -> dict[str, Exception | None]:
        """Every family, with the exception that the method raised on it, if any."""
        return {family: self.attempt(family) for family in self.families}

    @property
    def working(self) -> list[str]:
        """The families that the method works on; the others are for the check of supported models alone.

        Raises:
            Skipped: there is none.
        """
        if any(type(part).checkpoint is not Method.checkpoint for part in self.parts):
            raise Skipped("its model is another checkpoint, which a run loads and these checks do not")
        working = [family for family, error in self.attempts.items() if error is None]
        if not working:
            raise Skipped("the method works on none of the models; see supported-models")
        return working

    @cached_property
    def savings(self) -> Savings:
        """What is saved on this machine, by the first of the models that the method works on."""
        decoder = self.decoder(self.working[0])
        with self.attached(decoder):
            return savings(self.stack, decoder)

    def attempt(self, family: str) -> Exception | None:
        """The exception that scoring a text on a model of the family raises, if any."""
        from harness.testing.serve import TEXTS, score

        decoder = self.decoder(family)
        try:
            with self.attached(decoder):
                score(decoder, TEXTS[:1])
        except Exception as error:  # its kind matters to the check of supported models
            return error
        return None

    def decoder(self, family: str, **config: Any) -> "Decoder":
        """A fresh tiny model of the family."""
        from harness.testing.tiny import tiny_decoder

        return tiny_decoder(family, device=self.device, **config)

    @contextmanager
    def attached(self, decoder: "Decoder", stack: Stack | None = None) -> Iterator[None]:
        """The methods prepared and attached in turn, as a run does it; each is prepared once for each model.

        Linear layers are computed by the first kernel that runs here: on models this small none would be chosen.
        """
        stack = self.stack if stack is None else stack
        study = study_of(stack.parts, decoder)

        def state(index: int) -> Prepared:
            key = repr(stack.parts[: index + 1]), decoder.fingerprint  # cheaper than a method's fingerprint
            if key not in self._states:
                self._states[key] = stack.parts[index].prepare(decoder, study)
            return self._states[key]

        with decoder.computed_by(first_kernels(stack.acting, decoder)), stack.attached(decoder, state):
            yield

    def each(self) -> Iterator[tuple[str, "Decoder"]]:
        """A fresh model of every family that the method works on."""
        for family in self.working:
            yield family, self.decoder(family)


def study_of(parts: Sequence[Method], decoder: "Decoder") -> Study:
    """What these methods are prepared on, before anything is attached to the model."""
    return TEXT.beside(decoder) if any(part.needs.teacher for part in parts) else TEXT


@contextmanager
def on(family: str) -> Iterator[None]:
    """Name the family in a failure inside the ``with`` block."""
    try:
        yield
    except Failed as failed:
        raise Failed(f"{family}: {failed}") from None


def refusal(error: Exception | None) -> bool:
    """Whether an exception is a refusal in words."""
    return isinstance(error, MethodError | UnsupportedModelError)


def _strongest(part: Method) -> Method:
    try:
        plain = type(part)()
    except TypeError:  # a parameter without a default: it was given
        return part
    return part if part != plain else type(part).from_args(type(part).examples[-1])
