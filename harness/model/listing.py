"""Which models there are by name and what is known of each, read off files without loading anything."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from harness.core.files import parse_json
from harness.model.conversions import place_of
from harness.model.known import KNOWN
from harness.model.source import BUNDLED, BUNDLED_NAME, cached_models

_DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_DIMENSIONS_OF_MASKS = 4  # such as those of GPT-2, which its files hold beside the weights
_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it


@dataclass(frozen=True)
class ListedModel:
    """A model that can be asked for by name; None is not known.

    Attributes:
        bytes: of its weights on this machine, converted ones too.
        fetch: the command that brings it here, where it is not; ``download`` is what that takes, in bytes.
    """

    name: str
    parameters: int | None
    layers: int | None
    positions: int | None
    licence: str | None
    bytes: int | None
    here: bool
    fetch: str | None = None
    download: int | None = None


def listed_models() -> list[ListedModel]:
    """The models with short names, then the decoders in the hub cache."""
    cached = (_of_folder(name, folder) for name, folder in cached_models().items() if _may_be_decoder(folder))
    return [_of_folder(BUNDLED_NAME, BUNDLED), *_known(), *cached]


def _known() -> Iterator[ListedModel]:
    for name, model in KNOWN.items():
        facts = (name, model.parameters, model.layers, model.positions, model.licence)
        if model.file.is_file():
            files = [model.file, *place_of(f"sha256:{model.sha256}").glob("*.safetensors")]
            yield ListedModel(*facts, bytes=sum(path.stat().st_size for path in files), here=True)
        else:
            command = f"harness fetch --model {name}"
            yield ListedModel(*facts, bytes=None, here=False, fetch=command, download=model.download)


def _of_folder(name: str, folder: Path) -> ListedModel:
    config = _config(folder)
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    files = weights or sorted(folder.glob("*.bin"))
    is_packed = "quantization_config" in config
    return ListedModel(
        name,
        parameters=None if is_packed or not weights else _parameters(weights),
        layers=_number(text, "num_hidden_layers", "n_layer", "num_layers"),
        positions=_number(text, "max_position_embeddings", "n_positions", "max_sequence_length"),
        licence=_licence(folder),
        bytes=sum(path.stat().st_size for path in files if path.exists()),  # links of the hub may lead nowhere
        here=True,
    )


def _config(folder: Path) -> Mapping[str, Any]:
    """A model's configuration; empty where it cannot be read."""
    try:
        config = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, Mapping) else {}


def _may_be_decoder(folder: Path) -> bool:
    """Whether nothing says that a model is something else than a decoder."""
    config = _config(folder)
    classes = config.get("architectures")
    named = [each for each in classes if isinstance(each, str)] if isinstance(classes, list) else []
    return config.get("is_encoder_decoder") is not True and (
        not named or any(each.endswith(_DECODERS) for each in named)
    )


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    return next((value for name in names if type(value := config.get(name)) is int), None)


def _parameters(weights: list[Path]) -> int | None:
    """How many numbers files of safetensors hold, without masks; None where one cannot be read."""
    try:
        shapes = [entry["shape"] for path in weights for name, entry in _header(path) if name != "__metadata__"]
        return sum(int(prod(shape)) for shape in shapes if len(shape) < _DIMENSIONS_OF_MASKS)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error):
        return None


def _header(path: Path) -> list[tuple[str, Any]]:
    """The entries before the data of a file of safetensors."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path.name} is not a file of safetensors")
        return list(parse_json(file.read(length)).items())


def _licence(folder: Path) -> str | None:
    """What the front matter of a model's card says, if the card is here."""
    try:
        front = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
        licence = yaml.safe_load(front)["license"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError):
        return None
    return licence if isinstance(licence, str) else None
