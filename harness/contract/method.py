"""The contract of an efficiency method: its parameters, what it promises, and how it takes hold of a model.

A method is a frozen dataclass. Its fields are its hyper-parameters, so ``--method_args``, the fingerprint, the
leaderboard column and the documentation all come from one place. Constraints are written as annotations
(``Annotated[int, Ge(1)]``, ``Literal["block", "attention"]``) and are checked here and nowhere else.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

from harness.contract.families import Family
from harness.contract.identity import method_fingerprint
from harness.core.errors import MethodError, UnknownNameError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from harness.contract.calibration import Calibration
    from harness.contract.decoder import Decoder
    from harness.contract.prepared import Prepared


class Savings(StrEnum):
    """Whether the running code does less work (real) or only the arithmetic on paper does (simulated)."""

    NONE = "none"
    REAL = "real"
    SIMULATED = "simulated"


class Phase(StrEnum):
    """The parts of inference that a method changes. Scoring a text is prefill alone."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """What every method declares and does.

    Class attributes say what a reader must know before trusting a row: ``exact`` (greedy output unchanged),
    ``input_dependent`` (the work depends on the input), ``batchable`` (rows of a batch stay independent),
    ``phases``, ``savings``, ``needs_training``, ``stackable`` (may take part in ``a+b``) and ``pools_prompt`` (what
    runs is decided from the whole prompt, so a text that is scored without one is refused). With ``swaps_linears`` the
    savings are those of the linear layers that it puts in place (harness.model.weights.linear), which may depend on the
    machine: ``savings`` is then what they are where its kernel runs, and the record says what they were.

    Two more let ``harness check`` try the method on models of four small layers: ``examples``, parameters that fit
    such a model, from mild to strong, and ``neutral``, parameters that leave the model dense bit for bit, if any do.

    Raises:
        MethodError: a parameter has the wrong type or lies outside its range.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    paper: ClassVar[str | None] = None
    exact: ClassVar[bool] = False
    input_dependent: ClassVar[bool] = False
    batchable: ClassVar[bool] = True
    phases: ClassVar[frozenset[Phase]] = frozenset(Phase)
    savings: ClassVar[Savings] = Savings.REAL
    needs_training: ClassVar[bool] = False
    stackable: ClassVar[bool] = True
    swaps_linears: ClassVar[bool] = False
    pools_prompt: ClassVar[bool] = False
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    neutral: ClassVar[dict[str, Any] | None] = None

    def __post_init__(self) -> None:
        from pydantic import ValidationError

        for name, adapter in _adapters(type(self)).items():
            value = getattr(self, name)
            try:
                checked = adapter.validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise MethodError(f"{self.name}: {name}={value!r} is not valid: {reason}") from None
            object.__setattr__(self, name, checked)
        self.check()

    @classmethod
    def from_args(cls, args: dict[str, Any]) -> Self:
        """Build the method from command-line arguments; values may still be strings.

        Raises:
            UnknownNameError: an argument that the method does not have.
            MethodError: an argument that it cannot do without is missing.
        """
        known = [field.name for field in fields(cls)]
        for name in args:
            if name not in known:
                takes = ", ".join(known) or "no arguments"
                raise UnknownNameError(f"argument of {cls.name}", name, known, see=f"It takes: {takes}.")
        required = [field.name for field in fields(cls) if field.default is field.default_factory is MISSING]
        if missing := [name for name in required if name not in args]:
            raise MethodError(f"{cls.name} needs {', '.join(missing)}: write {cls.name}:{missing[0]}=VALUE")
        return cls(**args)

    def check(self) -> None:  # noqa: B027 - most methods have nothing to add
        """Refuse combinations of parameters that are each valid alone, by raising MethodError."""

    def prepare(self, model: "Decoder", calibration: "Calibration") -> "Prepared":
        """Do the slow, once-only work: calibrate, search or train. Cached on disk by fingerprint."""
        from harness.contract.prepared import Prepared

        return Prepared()

    @abstractmethod
    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[Any]:
        """Apply the method to the model for the length of a ``with`` block and restore everything after it."""

    @property
    def needs_preparation(self) -> bool:
        """Whether ``prepare`` does anything for this method."""
        return type(self).prepare is not Method.prepare

    @property
    def questions_needed(self) -> int:
        """How many of the task's training questions ``prepare`` is to have, beside the calibration text."""
        return 0

    def params(self) -> dict[str, Any]:
        """The hyper-parameters by name, as JSON values."""
        return {name: _plain(adapter, getattr(self, name)) for name, adapter in _adapters(type(self)).items()}

    @property
    def label(self) -> str:
        """The method as it is written on the command line: its name and the parameters that differ from defaults."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        args = ",".join(f"{name}={_written(value)}" for name, value in changed.items())
        return f"{self.name}:{args}" if args else self.name

    @property
    def fingerprint(self) -> str:
        """A digest of everything that can change a result: the parameters, and the source that acts on them."""
        return method_fingerprint(self)


@cache
def _adapters(method: type[Method]) -> "dict[str, TypeAdapter[Any]]":
    """What checks each parameter and writes it as JSON, which has neither infinity nor NaN."""
    from pydantic import ConfigDict, TypeAdapter

    finite = ConfigDict(allow_inf_nan=False)
    hints = get_type_hints(method, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name], config=finite) for field in fields(method)}


def _plain(adapter: "TypeAdapter[Any]", value: Any) -> Any:
    """A checked value as JSON; a set has an order, the same in every process."""
    plain = adapter.dump_python(value, mode="json")
    return sorted(plain) if isinstance(value, set | frozenset) else plain


def _written(value: Any) -> str:
    if isinstance(value, set | frozenset):
        value = sorted(value)
    return "/".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
