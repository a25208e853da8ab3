"""What a method's preparation leaves behind, and the cache that spares doing it twice.

Tensors are stored as safetensors, everything else as JSON; nothing is pickled. A state is keyed by everything it
depends on: the method, the methods applied before it, the model, the calibration text and the library versions.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import MethodError
from harness.core.files import staged_folder, write_atomic

if TYPE_CHECKING:
    import torch


_TENSORS, _FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Prepared:
    """The state of a prepared method.

    Attributes:
        tensors: named tensors, such as router weights or masks.
        facts: JSON values, such as chosen layers and their scores.
    """

    tensors: dict[str, "torch.Tensor"] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, key: dict[str, Any]) -> None:
        """Write the state and what it belongs to; the folder appears whole or not at all."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().contiguous() for name, tensor in self.tensors.items()}
        with staged_folder(folder) as staging:
            try:
                save_file(tensors, staging / _TENSORS)
            except SafetensorError as error:  # its way of saying that the disk is full
                raise OSError(f"{error}") from error
            write_atomic(staging / _FACTS, json.dumps({"key": key, "facts": self.facts}, indent=2))

    @classmethod
    def load(cls, folder: Path, key: dict[str, Any]) -> "Prepared":
        """Read a state back, and refuse one that was made for something else.

        Raises:
            MethodError: unreadable, or prepared for another method, model or calibration text.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            stored = json.loads((folder / _FACTS).read_text())
            made_for, facts = dict(stored["key"]), dict(stored["facts"])
            tensors = load_file(folder / _TENSORS)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise MethodError(f"prepared state in {folder} cannot be read: {error!r}") from error
        differing = [name for name in key if made_for.get(name) != key[name]]
        if differing:
            what = "; ".join(f"{name} ({made_for.get(name)}, not {key[name]})" for name in differing)
            raise MethodError(f"prepared state in {folder} was made for another {what}")
        return cls(tensors, facts)
