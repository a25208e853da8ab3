"""Checkpoint: another model, beside the dense one."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.contract.method import Method
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.model_source import ModelSource
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Method):
    """Another checkpoint as a row beside the dense model: pruned, distilled, merged or trained elsewhere.

    How: the folder is loaded in place of the model of the run, in the same number format, and answers the same
    questions. What it saves is counted by its own shape against dense's on the same tokens, and measured with the two
    taking turns. It is named in the record's ``model``, with the dense model as ``model.base``. Other methods may stand
    on it: ``checkpoint:path=DIR+int8-dynamic``.

    Parameters:
        path: a folder with a ``config.json``, weights in safetensors and the tokenizer of the dense model.

    Limits: a model of another tokenizer is refused, since per-token numbers would not compare; so are weights that are
    pickled or quantized in a format that is not read here, and code in the folder is not run. Idealized time, which is
    of the dense model's layers, is left out, and so is the peak of memory where both models are loaded.
    """

    name = "checkpoint"
    family = "checkpoint"
    examples = ({"path": "model"},)

    path: Path

    def checkpoint(self, source: "ModelSource") -> "ModelSource":
        """The folder's model."""
        from harness.model.source import locate

        folder = self.path.expanduser()
        if not folder.is_dir():
            raise MethodError(f"checkpoint: path={self.path} is no folder with a model")
        if not any(folder.glob("*.safetensors")):
            raise MethodError(
                f"checkpoint: path={self.path} has no safetensors files, and pickled weights are not read"
            )
        return locate(str(self.path))

    def attach(self, model: "Decoder", prepared: "Prepared") -> nullcontext[None]:
        """Change nothing of it."""
        return nullcontext()
