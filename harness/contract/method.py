"""The contract of an efficiency method: its parameters, what it promises, and how it takes hold of a model.

A method is a frozen dataclass. Its fields are its hyper-parameters, so ``--method_args``, the fingerprint, the
leaderboard column and the documentation all come from one place. Constraints are written as annotations
(``Annotated[int, Ge(1)]``, ``Literal["block", "attention"]``) and are checked here and nowhere else.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

from harness.contract.facts import Facts
from harness.contract.families import Family
from harness.contract.identity import method_fingerprint
from harness.contract.study import Needs
from harness.core.errors import MethodError, UnknownNameError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from harness.contract.decoder import Decoder
    from harness.contract.model_source import ModelSource
    from harness.contract.prepared import Prepared
    from harness.contract.study import Study


@dataclass(frozen=True, kw_only=True)
class Method(Facts, ABC):
    """What every method declares (``Facts`` and the attributes below) and does.

    A mixin adds parameters that several methods share. It is declared as ``class OnText(Method, mixin=True)``, and its
    parameters are listed after those of the methods that take it.

    Raises:
        MethodError: a parameter has the wrong type or lies outside its range.
    """

    name: ClassVar[str]
    """What the command line calls it: lower-case words joined by hyphens."""

    family: ClassVar[Family | str]
    """What readers compare it with: a known family, or one of the author's in the same form as ``name``."""

    paper: ClassVar[str | None] = None
    """Where the method comes from, as ``arXiv:...``, ``doi:...`` or an address."""

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Parameters that fit a model of four small layers, from mild to strong, for ``harness check``."""

    neutral: ClassVar[dict[str, Any] | None] = None
    """Parameters that leave the model dense bit for bit, if any do."""

    calibrates_layers: ClassVar[bool] = False
    """``prepare`` runs the model's layers one after the other, so that none may be directed by a method below."""

    spans_devices: ClassVar[bool] = False
    """It can be on a model whose layers are on several devices: what it adds or changes stays where its layer is."""

    drafts: ClassVar[bool] = False
    """It writes tokens that were guessed, and takes those that are rejected out of the cache again."""

    _mixin: ClassVar[bool] = False

    def __init_subclass__(cls, *, mixin: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._mixin = mixin

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
        taken = parameters(cls)
        known = [field.name for field in taken]
        for name in args:
            if name not in known:
                takes = ", ".join(known) or "no arguments"
                raise UnknownNameError(f"argument of {cls.name}", name, known, see=f"It takes: {takes}.")
        required = [field.name for field in taken if field.default is field.default_factory is MISSING]
        if missing := [name for name in required if name not in args]:
            raise MethodError(f"{cls.name} needs {', '.join(missing)}: write {cls.name}:{missing[0]}=VALUE")
        return cls(**args)

    def check(self) -> None:
        """Refuse combinations of parameters that are each valid alone, by raising MethodError."""

    def check_below(self, below: tuple["Method", ...]) -> None:
        """Refuse methods on which this one cannot be stacked, by raising MethodError, before anything is prepared."""

    def check_model(self, model: "Decoder", below: tuple["Method", ...] = ()) -> None:
        """Refuse what cannot be on this model, by raising MethodError, before anything is prepared.

        Args:
            model: the dense model without its weights: it can be looked at, and not be run.
            below: the methods that are attached before this one.
        """

    def checkpoint(self, source: "ModelSource") -> "ModelSource":
        """The model that is loaded for this method: ``source``, the run's own, or another checkpoint beside it.

        Another one is compared with dense as any method is: pruned, distilled or merged elsewhere, with the same
        tokenizer. Methods above it in a stack work on what it is. It is loaded in dense's number format, from
        safetensors, and no code in its folder is run.
        """
        return source

    def prepare(self, model: "Decoder", study: "Study") -> "Prepared":
        """Do the slow, once-only work: calibrate, search or train. Cached on disk by fingerprint."""
        from harness.contract.prepared import Prepared

        return Prepared()

    @abstractmethod
    def attach(self, model: "Decoder", prepared: "Prepared") -> AbstractContextManager[Any]:
        """Apply the method to the model for the length of a ``with`` block and restore everything after it."""

    def controls(self, share: float, layers: int) -> tuple[str, ...]:
        """Methods, as written on the command line, that this one must beat where it ran that share of the layers.

        Args:
            share: layers that ran over all of them, as observed.
            layers: how many the model has.
        """
        return ()

    @property
    def needs_preparation(self) -> bool:
        """Whether ``prepare`` does anything for this method."""
        return type(self).prepare is not Method.prepare

    @property
    def removes(self) -> frozenset[str]:
        """What the model lacks while the method is attached: "layers", "attentions" or "MLPs"."""
        return frozenset()

    @property
    def takes_back(self) -> bool:
        """Whether the last tokens can leave the cache again, as if they had never been read."""
        return True

    @property
    def needs(self) -> Needs:
        """What ``prepare`` is to have beside the model: how much text, and whether questions and the dense model."""
        return Needs()

    @property
    def is_control(self) -> bool:
        """Whether this is a control: the same preparation, and the methods below it in a stack are off."""
        return False

    def params(self) -> dict[str, Any]:
        """The hyper-parameters by name, as JSON values."""
        return {name: _plain(adapter, getattr(self, name)) for name, adapter in _adapters(type(self)).items()}

    @property
    def label(self) -> str:
        """The method as it is written on the command line: its name and the parameters that differ from defaults."""
        values = [(field, getattr(self, field.name)) for field in parameters(type(self))]
        args = ",".join(f"{field.name}={written(value)}" for field, value in values if value != field.default)
        return f"{self.name}:{args}" if args else self.name

    @property
    def fingerprint(self) -> str:
        """A digest of everything that can change a result: the parameters, and the source that acts on them."""
        return method_fingerprint(self)


@cache
def parameters(method: type[Method]) -> "tuple[Field[Any], ...]":
    """A method's parameters in the order in which they are listed: its own before those of its mixins."""
    by_name = {field.name: field for field in fields(method)}
    return tuple(by_name[name] for name in dict.fromkeys(_names(method)) if name in by_name)


def _names(method: type[Method]) -> Iterator[str]:
    bases = [base for base in method.__bases__ if issubclass(base, Method)]
    mixins = [name for base in bases if base._mixin for name in _names(base)]
    yield from (name for base in bases if not base._mixin for name in _names(base))
    yield from mixins if method._mixin else ()
    yield from vars(method).get("__annotations__", ())
    yield from mixins


@cache
def _adapters(method: type[Method]) -> "dict[str, TypeAdapter[Any]]":
    """What checks each parameter and writes it as JSON, which has neither infinity nor NaN."""
    from pydantic import ConfigDict, TypeAdapter

    finite = ConfigDict(allow_inf_nan=False)
    hints = get_type_hints(method, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name], config=finite) for field in parameters(method)}


def _plain(adapter: "TypeAdapter[Any]", value: Any) -> Any:
    """A checked value as JSON; a set has an order, the same in every process."""
    plain = adapter.dump_python(value, mode="json")
    return sorted(plain) if isinstance(value, set | frozenset) else plain


def written(value: Any) -> str:
    """A value as the command line writes it."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, set | frozenset):
        value = sorted(value)
    return "/".join(map(written, value)) if isinstance(value, tuple | list) else str(value)
