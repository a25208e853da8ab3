"""Finding a model's files on this machine, and digesting what can change its answers."""

import os
import re
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import harness.tasks
from harness.contract.model_source import ModelSource
from harness.core.contents import digest_of_files, with_contents
from harness.core.errors import ModelError
from harness.core.files import parse_json
from harness.model.checkpoints.reader import as_floats, packed_config, rounded_before
from harness.model.conversions import Say
from harness.model.gguf import BESIDE, converted, fingerprint_of
from harness.model.gguf_header import is_gguf
from harness.model.known import KNOWN

BUNDLED_NAME = "pocket"
BUNDLED = Path(harness.tasks.__path__[0]) / "pocket" / "model"
SHORT_NAMES = (BUNDLED_NAME, *KNOWN)
GGUF = ".gguf"
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "README.md")
_TOKENIZER = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py", "additional_chat_templates/*.jinja")
_IDENTITY = (*_TOKENIZER, "*.safetensors", "*.bin", "*.pt", "*.pth")
_ELSEWHERE = {"revision", "subfolder", "gguf_file", "offload_folder", "cache_dir"}  # in the fingerprint, or mere places


def locate(
    pretrained: str, revision: str | None = None, subfolder: str = "", gguf_file: str = "", say: Say = lambda _: None
) -> ModelSource:
    """Find a model: a folder, a GGUF file, one with a short name, or one of the hub, downloaded where that is allowed.

    Args:
        subfolder: where in the folder, or in the hub's repository, the model is.
        gguf_file: the GGUF file in the folder or the repository that is the model.
        say: is told what takes a while, and which of two models of one name is taken.

    Raises:
        ModelError: no such model, with what was searched and the command that would fetch it.
    """
    if not pretrained.isascii() and any("\ud800" <= char <= "\udfff" for char in pretrained):
        raise ModelError(f"model path {pretrained!r} has letters that this locale cannot name: set PYTHONUTF8=1")
    if not pretrained:
        raise ModelError("which model? The name given is empty: see `harness ls models`")
    if gguf_file:
        file = _file_in(pretrained, revision, subfolder, gguf_file)
        return _of_file(file, pretrained, revision, file.stem, say)
    place = _path(pretrained)
    if pretrained in SHORT_NAMES and (place / "config.json").is_file():
        say(f"{pretrained} is the folder of that name here, and not the model that has this short name")
    elif pretrained == BUNDLED_NAME:
        place = BUNDLED
    elif pretrained in KNOWN:
        return of_known(pretrained, say)
    if place.is_dir():
        if not (place / subfolder / "config.json").is_file():
            raise ModelError(_no_model(pretrained, place, subfolder))
        return _of_folder(ModelSource(pretrained, None, place, _digest(place, subfolder)), subfolder, say)
    if place.is_file() and (place.suffix or is_gguf(place)):
        return _of_file(place, pretrained, None, place.stem, say)
    if place.suffix == GGUF or not _HUB_NAME.fullmatch(pretrained):
        raise ModelError(f"model path {pretrained!r} does not exist{near(place)}")
    snapshot = _snapshot(pretrained, revision, subfolder)
    within = f"/{subfolder}" if subfolder else ""
    source = ModelSource(pretrained, revision, snapshot, f"hub:{pretrained}@{snapshot.name}{within}")
    return _of_folder(source, subfolder, say)


def of_known(name: str, say: Say) -> ModelSource:
    """A known model, whatever folder of its name is here.

    Raises:
        ModelError: it has not been fetched, or its file has been changed.
    """
    model = KNOWN[name]
    if not model.file.is_file():
        raise ModelError(f"model {name!r} is not here yet. Fetch it: harness fetch --model {name}")
    if fingerprint_of(model.file) != f"sha256:{model.sha256}":
        raise ModelError(f"{model.file} is not the file that {name} is known by: remove it and fetch the model again")
    return _of_file(model.file, name, None, model.title, say)


def _path(text: str) -> Path:
    """The path that a user gave.

    Raises:
        ModelError: there can be none: it is too long, or in the home of a user that is not there.
    """
    try:
        place = Path(text).expanduser()
        place.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"model path {text!r} cannot be looked up: {reason}") from error
    return place


def _of_folder(source: ModelSource, subfolder: str, say: Say) -> ModelSource:
    """The model in a folder: where its weights are packed, the same as floats."""
    if packed_config(source.folder / subfolder) is None:
        return replace(source, rounding=rounded_before(source.folder / subfolder))
    if subfolder:
        raise ModelError(f"--model_args subfolder={subfolder}: its weights are packed: give the folder itself")
    folder, rounding = as_floats(source.folder, source.fingerprint, source.name, say)
    sizes = [path.stat().st_size for path in source.folder.glob("*.safetensors")]
    fingerprint = f"packed {source.fingerprint}"
    return replace(source, folder=folder, fingerprint=fingerprint, rounding=rounding, disk=sum(sizes))


def _of_file(file: Path, pretrained: str, revision: str | None, title: str, say: Say) -> ModelSource:
    model = converted(file, say)
    return ModelSource(pretrained, revision, model.folder, model.fingerprint, title, model.rounding)


def _file_in(pretrained: str, revision: str | None, subfolder: str, name: str) -> Path:
    """A GGUF file of a folder or of a repository of the hub."""
    folder = _path(pretrained)
    if not folder.is_dir():
        if pretrained in SHORT_NAMES:
            raise ModelError(f"--model_args gguf_file={name}: {pretrained} is a whole model: leave gguf_file out")
        if folder.exists() or not _HUB_NAME.fullmatch(pretrained):
            raise ModelError(
                f"--model_args gguf_file={name}: pretrained={pretrained} is not a folder, of which that would be a file"
            )
        folder = _snapshot(pretrained, revision, subfolder, (name, *BESIDE))
    file = _path(os.fspath(folder / subfolder / name))
    if not file.is_file():
        raise ModelError(f"--model_args gguf_file={name}: {pretrained} has no such file{near(file)}")
    return file


def identified(model_args: dict[str, Any]) -> dict[str, Any]:
    """Model arguments as they identify a result: a folder by its contents, a tokenizer of the hub by its commit.

    The model's fingerprint tells the revision and the subfolder.

    Raises:
        ModelError: the tokenizer is not there.
    """
    kept = with_contents({name: value for name, value in model_args.items() if name not in _ELSEWHERE})
    if isinstance(tokenizer := model_args.get("tokenizer"), str):
        kept["tokenizer"] = _tokenizer(tokenizer, model_args.get("revision"))
    return kept


def _tokenizer(name: str, revision: str | None) -> str:
    folder = _path(name)
    if folder.is_dir():
        return digest_of_files(folder, _matching(folder, _TOKENIZER))
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"--model_args tokenizer={name}: no such folder{near(folder)}")
    return f"hub:{name}@{_snapshot(name, revision, patterns=_TOKENIZER).name}"


def _no_model(pretrained: str, folder: Path, subfolder: str) -> str:
    """Why a folder is no model, and where in it one is, if one is."""
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    where = f"; give --model_args subfolder={inner[0]}" if inner else ""
    within = f" in its subfolder {subfolder}" if subfolder else ""
    return f"{pretrained} is a folder without a config.json{within}: not a Hugging Face model{where}"


def _snapshot(pretrained: str, revision: str | None, subfolder: str = "", patterns: tuple[str, ...] = _FILES) -> Path:
    """The hub snapshot of a model, named by its commit."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    within = [f"{subfolder}/{pattern}" for pattern in patterns] if subfolder else []
    try:
        return Path(snapshot_download(pretrained, revision=revision, allow_patterns=[*patterns, *within]))
    except HFValidationError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"model {pretrained!r} is neither a folder here nor a name the hub can have: {reason}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        why = "the network is switched off" if constants.HF_HUB_OFFLINE else "the hub did not give it"
        raise ModelError(
            f"model {pretrained!r} is neither a folder here nor in the hub cache {constants.HF_HUB_CACHE}, and {why}"
            f"{near(Path(pretrained)) or '.'} Fetch it on a machine with a network:\n"
            + (
                f"  hf download {pretrained} --revision {revision}"
                if revision
                else f"  harness fetch --model {pretrained} --pack model.tar.gz\nand then here:\n"
                "  harness fetch --unpack model.tar.gz"
            )
        ) from error


def near(place: Path) -> str:
    """A folder or GGUF file beside the one that is not there, or a short name, that is written alike."""
    beside = place.parent.iterdir() if place.parent.is_dir() else ()
    names = [path.name for path in beside if path.name != place.name and (path.suffix == GGUF or path.is_dir())]
    alike = get_close_matches(place.name, [*names, *(SHORT_NAMES if place.parent == Path() else ())], n=1)
    return f". Did you mean {os.fspath(place.parent / alike[0])!r}?" if alike else ""


def _digest(folder: Path, subfolder: str = "") -> str:
    """Of every file that can change an output: the folder's own, its subfolder's, and of what an adapter builds on."""
    files = _matching(folder, _IDENTITY) | (_matching(folder / subfolder, _IDENTITY) if subfolder else set())
    digest = digest_of_files(folder, files)
    adapter = folder / subfolder / "adapter_config.json"
    if adapter.is_file() and (base := _base_of(adapter)) is not None:
        return f"{digest}+{_digest(base)}"
    return digest


def _base_of(adapter: Path) -> Path | None:
    """The folder of the model that an adapter is for, if it names one that is here."""
    try:
        base = Path(parse_json(adapter.read_bytes())["base_model_name_or_path"]).expanduser()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if base.is_dir() and base.resolve() != adapter.parent.resolve() else None


def _matching(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def cached_models() -> dict[str, Path]:
    """Models in the hub cache by name, each at one of its snapshots."""
    from huggingface_hub import constants

    found = {}
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        snapshots = sorted(folder.glob("snapshots/*/config.json"))
        if snapshots:
            found[folder.name.removeprefix("models--").replace("--", "/")] = snapshots[-1].parent
    return found
