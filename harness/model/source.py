"""Where a model's files are, and the fingerprint that says which model it is."""

import hashlib
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import harness.tasks
from harness.core.errors import ModelError

BUNDLED_NAME = "pocket"
BUNDLED = Path(harness.tasks.__path__[0]) / "pocket" / "model"
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
_IDENTITY = (*_FILES, "*.bin", "*.pt", "*.pth", "*.tiktoken", "additional_chat_templates/*.jinja")


@dataclass(frozen=True)
class ModelSource:
    """A model's place and identity.

    Attributes:
        pretrained: as the user gave it.
        folder: its files on this machine.
        fingerprint: the hub's commit, or a digest of every file that can change an output.
    """

    pretrained: str
    revision: str | None
    folder: Path
    fingerprint: str

    @property
    def name(self) -> str:
        """A short name for tables and folders."""
        return self.pretrained.rstrip("/").rpartition("/")[2]

    @property
    def loadable(self) -> str:
        """What transformers loads it by."""
        return self.pretrained if self.fingerprint.startswith("hub:") else str(self.folder)


def locate(pretrained: str, revision: str | None = None) -> ModelSource:
    """Find the bundled model, a model folder, or a model in the hub cache; download it where that is allowed.

    Raises:
        ModelError: no such model, with what was searched and the command that would fetch it.
    """
    folder = BUNDLED if pretrained == BUNDLED_NAME else Path(pretrained).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{pretrained} is a folder without a config.json: not a Hugging Face model")
        return ModelSource(pretrained, None, folder, _digest(folder))
    if not _HUB_NAME.fullmatch(pretrained):
        raise ModelError(f"model path {pretrained!r} does not exist{_near(folder)}")
    snapshot = _snapshot(pretrained, revision)
    return ModelSource(pretrained, revision, snapshot, f"hub:{pretrained}@{snapshot.name}")


def _snapshot(pretrained: str, revision: str | None) -> Path:
    """The hub snapshot of a model, named by its commit."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(pretrained, revision=revision, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"model {pretrained!r} is neither a folder here nor a name the hub can have: {reason}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        why = "the network is switched off" if constants.HF_HUB_OFFLINE else "the hub did not give it"
        raise ModelError(
            f"model {pretrained!r} is neither a folder here nor in the hub cache {constants.HF_HUB_CACHE}, and {why}"
            f"{_near(Path(pretrained))}. Fetch it on a machine with a network:\n"
            + (
                f"  hf download {pretrained} --revision {revision}"
                if revision
                else f"  harness fetch --model {pretrained} --pack model.tar.gz\nand then here:\n"
                "  harness fetch --unpack model.tar.gz"
            )
        ) from error


def _near(folder: Path) -> str:
    """Folders of a similar name beside the one that is not there."""
    if not folder.parent.is_dir():
        return ""
    near = get_close_matches(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()], n=1)
    return f". Did you mean {os.fspath(folder.parent / near[0])!r}?" if near else ""


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    files = {path for pattern in _IDENTITY for path in folder.glob(pattern)}
    for path in sorted(files):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def cached_models() -> dict[str, Path]:
    """Models in the hub cache by name, each at one of its snapshots."""
    from huggingface_hub import constants

    found = {}
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        snapshots = sorted(folder.glob("snapshots/*/config.json"))
        if snapshots:
            found[folder.name.removeprefix("models--").replace("--", "/")] = snapshots[-1].parent
    return found
