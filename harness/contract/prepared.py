"""What a method's preparation leaves behind: tensors as safetensors, everything else as JSON; nothing is pickled."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import MethodError
from harness.core.files import parse_json, saving_tensors, staged_folder, write_atomic

if TYPE_CHECKING:
    import torch

TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Prepared:
    """The state of a prepared method.

    Attributes:
        tensors: named tensors, such as router weights or masks.
        facts: JSON values, such as chosen layers and their scores.
    """

    tensors: dict[str, "torch.Tensor"] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, key: dict[str, Any], label: str = "") -> None:
        """Write the state in the bits that it needs, and what it belongs to; the folder appears whole or not at all.

        Args:
            key: everything that the state depends on.
            label: what people know it by.

        Raises:
            DiskError: the disk is full, or the place cannot be written.
        """
        from safetensors.torch import save_file

        from harness.contract.packing import packed

        stored = {name: packed(tensor.detach()) for name, tensor in self.tensors.items()}
        unpack = {name: how for name, (_, how) in stored.items() if how}
        about = {"key": key, "facts": self.facts} | ({"unpack": unpack} if unpack else {})
        with staged_folder(folder) as staging:
            with saving_tensors():
                save_file({name: tensor.contiguous() for name, (tensor, _) in stored.items()}, staging / TENSORS)
            write_atomic(staging / FACTS, json.dumps(about | ({"label": label} if label else {}), indent=2))

    @classmethod
    def load(cls, folder: Path, key: dict[str, Any]) -> "Prepared":
        """Read a state back, and refuse one that was made for something else.

        Raises:
            MethodError: unreadable, or prepared for another method, model or calibration text.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from harness.contract.packing import unpacked

        try:
            stored = parse_json((folder / FACTS).read_bytes())
            made_for, facts, unpack = dict(stored["key"]), dict(stored["facts"]), dict(stored.get("unpack", {}))
            tensors = {name: unpacked(tensor, unpack.get(name)) for name, tensor in load_file(folder / TENSORS).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise MethodError(f"prepared state in {folder} cannot be read: {_reason(folder, error)}") from error
        differing = [name for name in key if made_for.get(name) != key[name]]
        if differing:
            what = "; ".join(f"{name} ({made_for.get(name)}, not {key[name]})" for name in differing)
            raise MethodError(f"prepared state in {folder} was made for another {what}")
        return cls(tensors, facts)


def _reason(folder: Path, error: Exception) -> str:
    if folder.is_dir() or not folder.parent.is_dir():
        return repr(error)
    if any(folder.parent.glob(f".{folder.name}.????????")):
        return "another process is still writing it"
    return "there is no such folder; `harness prepare -o` writes one"
