"""Types of parameters that several methods take, read as the command line writes them: ``3/4/7``, ``*.mlp.*``."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt, MinLen
from pydantic import BeforeValidator


def _parts(value: Any) -> Any:
    """The parts between slashes; a single number may arrive as one."""
    return [part for part in str(value).split("/") if part] if isinstance(value, str | int | float) else value


Indices = Annotated[tuple[Annotated[int, Ge(0)], ...], BeforeValidator(_parts)]
"""Layer indices, counted from 0."""

Patterns = Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1), BeforeValidator(_parts)]
"""Patterns of module names, with the wildcards of a shell."""

Texts = Annotated[tuple[Annotated[str, MinLen(1)], ...], BeforeValidator(_parts)]
"""Texts, perhaps none."""


def _whole(value: Any) -> Any:
    """A whole number may arrive as text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Bits = Annotated[Literal[2, 4, 8], BeforeValidator(_whole)]
"""Bits of a number, of which whole ones fill a byte."""

Pattern = Literal["unstructured", "2:4", "4x1", "16x1", "64x1"]
"""What shape the zeros of a pruned weight come in, outputs x inputs (harness.model.weights.pruning)."""

Sparsity = Annotated[tuple[Annotated[float, Ge(0), Lt(1)], ...], MinLen(1), BeforeValidator(_parts)]
"""The share of weights that go: one for all layers, or one for each (``0.5/0.6/0.7``)."""
