"""What a training keeps on disk, so that one that was killed goes on: tensors as safetensors; nothing is pickled."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from harness.contract.identity import digest
from harness.core.files import parse_json, write_atomic

_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter."""


@dataclass(frozen=True)
class TrainingState:
    """The state of one training.

    Attributes:
        file: None where nothing is kept.
    """

    file: Path | None

    @classmethod
    def of(
        cls,
        folder: Path | None,
        depends: Sequence[Any],
        start: Mapping[str, torch.Tensor],
        batches: Sequence[torch.Tensor],
    ) -> "TrainingState":
        """The state in this folder, under a name that says everything that the training depends on.

        Args:
            depends: JSON values that it depends on beside its start and its batches.
        """
        if folder is None:
            return cls(None)
        contents = [[name, _contents(tensor)] for name, tensor in start.items()]
        name = digest([*depends, contents, [_contents(batch) for batch in batches]])
        return cls(folder / f"training-{name[:16]}.safetensors")

    def restored(self, trained: dict[str, torch.Tensor], optimizer: torch.optim.Adam) -> list[float]:
        """Set what is trained, and the optimizer, to the state that was kept, and give the losses up to there.

        There are none where nothing is kept, or it cannot be read.
        """
        if self.file is None or not self.file.is_file():
            return []
        try:
            with safe_open(self.file, "pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                losses = [float(value) for value in parse_json(stored.metadata()["losses"])]
            moments = [{kind: tensors.get(f"{name}/{kind}") for kind in _MOMENTS} for name in trained]
            values = [tensors[f"{name}/value"].to(tensor) for name, tensor in trained.items()]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return []
        with torch.no_grad():
            for tensor, value in zip(trained.values(), values, strict=True):
                tensor.copy_(value)
        optimizer.state.update(zip(trained.values(), moments, strict=True))
        return losses

    def write(
        self, trained: Mapping[str, torch.Tensor], optimizer: torch.optim.Adam | None, losses: list[float]
    ) -> None:
        """Keep a state; one that needs no optimizer any more is finished."""
        if self.file is None:
            return
        tensors = {f"{name}/value": tensor.detach() for name, tensor in trained.items()}
        if optimizer is not None:
            for name, tensor in trained.items():
                tensors |= {f"{name}/{kind}": optimizer.state[tensor][kind] for kind in _MOMENTS}
        plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_atomic(self.file, save(plain, {"losses": json.dumps(losses)}))


def _contents(tensor: torch.Tensor) -> str:
    values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)  # its bytes, whatever its type
    return hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode() + values.numpy().tobytes()).hexdigest()
