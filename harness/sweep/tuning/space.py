"""What is searched: for every method which of its settings, in all layers alike or in each layer by itself."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from typing import Any, Final

from harness.contract.method import Method, written
from harness.contract.stack import parse, written_parts
from harness.core.errors import HarnessError, SpecError
from harness.sweep import ranges
from harness.sweep.tuning import strengths
from harness.sweep.tuning.predictor import Candidate

_BY_LAYER: Final = "@layer"
_WRITTEN: Final = re.compile(r"(?P<name>.+\.py:\w+|[^:]*)(?::(?P<arguments>.*))?")
_LISTED: Final = 20_000
"""Candidates of a space that is small enough to be listed."""


@dataclass(frozen=True)
class Part:
    """A method of the stack.

    Attributes:
        choices: its settings as the command line writes them; the first, empty, is the model without it.
        by_layer: each layer has a choice of its own.
    """

    choices: tuple[str, ...]
    by_layer: bool = False


@dataclass(frozen=True)
class Space:
    """All candidates: a choice for every setting, part by part, and layer by layer where a part is by layer.

    Attributes:
        layers: of the model.
    """

    parts: tuple[Part, ...]
    layers: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many choices each setting has."""
        return tuple(len(part.choices) for part in self.parts for _ in range(self.layers if part.by_layer else 1))

    @property
    def count(self) -> int:
        """How many candidates there are, without the dense model."""
        return prod(self.sizes) - 1

    def text(self, candidate: Candidate) -> str:
        """A candidate as a stack of methods; empty for the dense model."""
        texts, place = list[str](), 0
        for part in self.parts:
            width = self.layers if part.by_layer else 1
            chosen = candidate[place : place + width]
            place += width
            for number, choice in enumerate(part.choices[1:], 1):
                layers = [layer for layer, each in enumerate(chosen) if each == number]
                if layers and part.by_layer:
                    texts.append(_in_layers(choice, layers))
                elif layers:
                    texts.append(choice)
        return "+".join(texts)

    def draws(self, seed: int) -> Iterator[Candidate]:
        """All candidates at random, each once, without the dense model."""
        rng = random.Random(seed)
        if self.count < _LISTED:
            every = [candidate for candidate in product(*map(range, self.sizes)) if any(candidate)]
            rng.shuffle(every)
            yield from every
            return
        drawn: set[Candidate] = {(0,) * len(self.sizes)}
        while len(drawn) <= self.count:
            candidate = tuple(rng.randrange(size) for size in self.sizes)
            if candidate not in drawn:
                drawn.add(candidate)
                yield candidate

    def uniform(self, most: int) -> list[Candidate]:
        """Candidates that treat all layers alike, at most so many, evenly spread over all of them."""
        widths = [self.layers if part.by_layer else 1 for part in self.parts]
        alike = [
            tuple(choice for choice, width in zip(chosen, widths, strict=True) for _ in range(width))
            for chosen in product(*(range(len(part.choices)) for part in self.parts))
            if any(chosen)
        ]
        number = min(most, len(alike))
        return [alike[int((place + 0.5) * len(alike) / number)] for place in range(number)]


def space(given: Any, layers: int) -> Space:
    """The space that a text such as ``layer-drop,int4-weight-only:bits=3|4|8`` stands for, or a list of such texts.

    A method by its name alone has the strengths between nothing and its default; ``name:key`` those of that parameter.
    ``@layer`` after a method gives each layer a choice of its own. In a list, a method may be a mapping of ``method``,
    its parameters and ``each: layer``. Each method may also be left out.

    Args:
        layers: of the model.

    Raises:
        HarnessError: a method, a parameter or a value that there is not, or nothing to choose.
    """
    items = [item for each in (given if isinstance(given, list) else [given]) for item in _items(each)]
    parts = tuple(map(_part, items))
    if not parts:
        raise SpecError("--space: expected methods, such as layer-drop:count=1..4,int4-weight-only:bits=3|4|8")
    return Space(parts, layers)


def _items(given: Any) -> Iterable[str]:
    """Methods with their settings, each as one text."""
    if isinstance(given, dict):
        if not isinstance(given.get("method"), str) or given.get("each", "layer") != "layer":
            raise SpecError(f"--space: expected method: NAME with its parameters and perhaps each: layer, got {given}")
        settings = {key: value for key, value in given.items() if key not in ("method", "each")}
        texts = [f"{key}={'|'.join(map(written, _list(value)))}" for key, value in settings.items()]
        return [":".join([given["method"], *filter(None, [",".join(texts)])]) + (_BY_LAYER if "each" in given else "")]
    items = list[str]()
    for item in str(given).split(","):
        name, equals, _ = item.partition("=")
        if items and equals and ":" not in name and not items[-1].endswith(_BY_LAYER):
            items[-1] += f",{item.strip()}"
        elif item.strip():
            items.append(item.strip())
    return items


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _part(item: str) -> Part:
    """One method's part of the space."""
    text = item.removesuffix(_BY_LAYER)
    by_layer = text != item
    texts = ranges.methods(_with_values(text, by_layer=by_layer))
    stacks = {each: parse(each) for each in texts}
    if by_layer:
        for each, stack in stacks.items():
            _check_layers(each, stack.parts)
    choices: dict[str, str] = {}
    for each, stack in stacks.items():
        if not all(map(strengths.is_neutral, stack.parts)):
            choices.setdefault(stack.fingerprint, each)
    if not choices:
        raise SpecError(f"--space {item}: all of its settings leave the model as it is: give others")
    return Part(("", *choices.values()), by_layer)


def _with_values(text: str, *, by_layer: bool) -> str:
    """A method with values for the parameters that are named without any, or for its strength if none is named."""
    if len(written_parts(text)) > 1:
        return text
    match = _WRITTEN.fullmatch(text)
    assert match is not None
    name, arguments = match["name"], [item for item in (match["arguments"] or "").split(",") if item]
    if all("=" in item for item in arguments) and arguments:
        return text
    (part,) = parse(name).parts
    if arguments:
        filled = [
            item if "=" in item else f"{item}={'|'.join(strengths.values(type(part), item))}" for item in arguments
        ]
        return f"{name}:{','.join(filled)}"
    parameter = strengths.strength(type(part))
    # a parameter that says how many layers says nothing of one layer
    if parameter is None or (by_layer and not _takes_layers(type(part), parameter)):
        return name
    try:
        return f"{name}:{parameter}={'|'.join(strengths.values(type(part), parameter))}"
    except SpecError:
        return name


def _takes_layers(method: type[Method], parameter: str) -> bool:
    """Whether a method takes its weakest setting in any number of layers."""
    try:
        weakest = {parameter: strengths.values(method, parameter)[0]}
        return bool([method.from_args({**weakest, "layers": layers}) for layers in ("0", "0/1", "0/1/2")])
    except HarnessError:
        return False


def _in_layers(choice: str, layers: Sequence[int]) -> str:
    return f"{choice}{',' if '=' in choice else ':'}layers={'/'.join(map(str, layers))}"


def _check_layers(choice: str, parts: Sequence[Method]) -> None:
    """Refuse a choice that a layer cannot take by itself."""
    if len(parts) > 1 or not any(field.name == "layers" for field in fields(parts[0])):
        raise SpecError(f"--space {choice}{_BY_LAYER}: it has no parameter layers, and is the same in all of them")
    if getattr(parts[0], "layers"):  # noqa: B009 - a parameter of some methods
        raise SpecError(f"--space {choice}{_BY_LAYER}: which layers is what is searched: leave layers out")
    for layers in ((0,), (0, 1)):
        parse(_in_layers(choice, layers))
