"""How a model's weights were rounded before they came here: the number formats of the file that they were read from."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_LARGEST_GROUP = 128  # values in a larger block have scales of their own within it


class Format(BaseModel):
    """A number format of weights.

    Attributes:
        share: of the model's parameters, those stored in it, between 0 and 1.
        group: parameters that are rounded together, with a scale of their own; 1 where each stands for itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(ge=0, le=1)
    group: int = Field(ge=1)


class Rounding(BaseModel):
    """The formats of weights that are floats again, and cannot be what they were before.

    Attributes:
        format: the rounded one that most parameters have.
        formats: all by name, those of plain floats too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    formats: dict[str, Format]

    @classmethod
    def of(cls, model: Any) -> "Rounding | None":
        """That of a record's ``model`` section, as JSON; None where weights are as their makers left them."""
        given = model.get("rounding")
        return None if given is None else cls.model_validate(given)

    @property
    def label(self) -> str:
        """What stands behind the model's name."""
        return f"dequantized from {self.format}"

    @property
    def sentence(self) -> str:
        """What a reader of any further rounding must know."""
        rounded = {name: each for name, each in self.formats.items() if each.group > 1}
        largest_first = sorted(rounded, key=lambda name: (-rounded[name].share, name))
        shares = {name: f"{rounded[name].share:.0%}" for name in largest_first}
        names = ", ".join(largest_first if shares.get(self.format) == "100%" else map(" ".join, shares.items()))
        groups = " and ".join(map(_group, sorted({each.group for each in rounded.values()})))
        return f"its weights were rounded once ({names}, {groups})"


def _group(size: int) -> str:
    return f"groups of {size}" if size <= _LARGEST_GROUP else f"super-blocks of {size}"
