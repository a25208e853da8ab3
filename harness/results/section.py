"""What the sections of a record have in common: they refuse what they do not know."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
