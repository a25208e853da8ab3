"""Checkpoints in the layout of compressed-tensors, as floats: what each linear layer's codes stand for.

transformers reads them by a package of its own; here the codes are read as they are written, by ``layout``.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.core.errors import ModelError
from harness.core.files import parse_json, saving_tensors
from harness.core.rounding import Format, Rounding
from harness.model.conversions import Say, made_once, place_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.model.checkpoints.layout import Scheme
    from harness.model.weights.formats import Quantized

_METHOD: Final = "compressed-tensors"
_ANCHORS: Final = (".weight_packed", ".weight_scale")
_PARTS: Final = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight")
_MADE: Final = "export.json"
_TOGETHER: Final = 16
"""Linear layers that are in memory as floats at a time."""


def packed_config(folder: Path) -> dict[str, Any] | None:
    """What a folder's configuration says of packed weights; None where it has none in this layout."""
    try:
        stated = parse_json((folder / "config.json").read_bytes()).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # whoever loads the model says so
    return stated if isinstance(stated, dict) and stated.get("quant_method") == _METHOD else None


def rounded_before(folder: Path) -> Rounding | None:
    """How the weights were rounded of the model that a folder was exported from, as far as it says so."""
    try:
        return Rounding.model_validate(parse_json((folder / _MADE).read_bytes())["rounding"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def as_floats(folder: Path, fingerprint: str, name: str, say: Say) -> tuple[Path, Rounding | None]:
    """A packed checkpoint as a folder of floats, made at its first use, and how its weights are rounded.

    Args:
        fingerprint: of the folder.
        name: the model's, for messages.

    Raises:
        ModelError: its layout is not read here, or it is damaged.
        DiskError: the cache has no room, or cannot be written.
    """
    stated = packed_config(folder)
    assert stated is not None
    target = place_of(f"packed {fingerprint}")

    def make(staging: Path) -> Rounding | None:
        say(f"reading the packed weights of {name} as floats, once, into {target}")
        return _convert(folder, stated, staging, name)

    rounding = made_once(target, make)
    if rounding is not None:
        rounded = [key for key, each in rounding.formats.items() if each.group > 1]
        say(f"{name} is a checkpoint in {', '.join(rounded)} ({stated.get('format')}): its weights run as floats")
    if any((group or {}).get("input_activations") for group in _groups(stated, name)):
        say(f"{name} was made for rounded activations, and here they stay as they are: give its method for that")
    return target, rounding


def quantized(folder: Path) -> "Iterator[tuple[str, Quantized]]":
    """The linear layers of a packed checkpoint in their codes, by name.

    Raises:
        ModelError: its layout is not read here, or it is damaged.
    """
    stated = packed_config(folder)
    assert stated is not None
    with _Files(folder) as files:
        yield from _weights(files, stated, folder.name)


class _Files:
    """The tensors of a folder's files of weights, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._stack = ExitStack()
        self.of: dict[str, Any] = {}
        self.names: dict[str, list[str]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = self._stack.enter_context(safe_open(path, "pt"))
            except SafetensorError as error:
                raise ModelError(f"{path} is damaged: {error}") from error
            self.names[path.name] = list(file.keys())
            self.of |= dict.fromkeys(self.names[path.name], file)
        if not self.of:
            raise ModelError(f"{folder} has no safetensors files, and pickled weights are not read")

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> "Tensor":
        tensor: Tensor = self.of[name].get_tensor(name)
        return tensor


def _weights(files: _Files, stated: Mapping[str, Any], model: str) -> "Iterator[tuple[str, Quantized]]":
    from harness.model.checkpoints.layout import weight_of

    for name in _layers(files.of):
        scheme = _scheme(name, stated, model)
        parts = {part: files.read(full) for part in _PARTS if (full := f"{name}.{part}") in files.of}
        if f"{name}.weight_g_idx" in files.of:
            raise ModelError(
                f"{model}: {name} has groups of inputs that are no neighbours (weight_g_idx), not read here"
            )
        try:
            yield name, weight_of(parts, scheme)
        except ModelError as error:
            raise ModelError(f"{model} is damaged: of {name}, {error}") from error


def _layers(names: Iterable[str]) -> list[str]:
    """The linear layers that are packed, by name."""
    return list(dict.fromkeys(name.removesuffix(end) for name in names for end in _ANCHORS if name.endswith(end)))


def _groups(stated: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    groups = stated.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(each, dict) for each in groups.values()):
        raise ModelError(f"{model}: its quantization_config says of no linear layer how it is packed (config_groups)")
    return list(groups.values())


def _scheme(name: str, stated: Mapping[str, Any], model: str) -> "Scheme":
    """How a linear layer is packed: by its own name, a pattern, or as all of its class."""
    from harness.model.checkpoints.layout import FORMATS, Scheme

    def fits(target: str) -> bool:
        return target == name or (target.startswith("re:") and re.match(target[3:], name) is not None)

    groups = _groups(stated, model)
    own = [group for group in groups if any(fits(str(target)) for target in group.get("targets", ()))]
    every = [group for group in groups if "Linear" in group.get("targets", ())]
    if not (chosen := [*own, *every]):
        raise ModelError(f"{model}: its quantization_config does not say how {name} is packed")
    layout = chosen[0].get("format") or stated.get("format")
    if layout not in FORMATS:
        raise ModelError(
            f"{model}: {name} is stored as {layout} of compressed-tensors, of which {', '.join(FORMATS)} are read here"
        )
    try:
        return Scheme.of(chosen[0])
    except (ModelError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{model}: {name} cannot be read: {error}") from error


class _Shards:
    """Files of weights that are being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, str] = {}  # of tensors, by name

    def save(self, content: dict[str, "Tensor"]) -> None:
        from safetensors.torch import save_file

        file = f"model-{len(set(self._places.values())) + 1:05}.safetensors"
        with saving_tensors():
            save_file(content, self._folder / file, metadata={"format": "pt"})
        self._places |= dict.fromkeys(content, file)

    def close(self) -> None:
        index = {"metadata": {}, "weight_map": self._places}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _convert(folder: Path, stated: Mapping[str, Any], target: Path, model: str) -> Rounding | None:
    """Write a checkpoint of floats; how they were rounded."""
    config = parse_json((folder / "config.json").read_bytes())
    del config["quantization_config"]
    dtype = _dtype(config, model)
    counts: Counter[str] = Counter()
    groups: dict[str, int] = {}
    shards = _Shards(target)
    with _Files(folder) as files:
        inside = {f"{name}.{part}" for name in _layers(files.of) for part in _PARTS}
        content = {name: files.read(name) for name in sorted(files.of.keys() - inside)}
        for tensor in content.values():
            label = str(tensor.dtype).removeprefix("torch.")
            counts[label] += tensor.numel()
            groups[label] = 1
        for name, weight in _weights(files, stated, model):
            content[f"{name}.weight"] = weight.dequantized().to(dtype)
            counts[weight.format.label] += weight.codes.numel()
            groups[weight.format.label] = weight.codes.shape[1] // weight.scale.shape[1]
            if len(content) >= _TOGETHER:
                shards.save(content)
                content = {}
        if content:
            shards.save(content)
    shards.close()
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in folder.iterdir():
        beside = path.suffix in (".json", ".model", ".txt", ".jinja", ".md") and not path.name.endswith(".index.json")
        if path.is_file() and beside and path.name not in ("config.json", _MADE):
            shutil.copyfile(path, target / path.name)
    rounded = [name for name, size in groups.items() if size > 1]
    formats = {name: Format(share=count / counts.total(), group=groups[name]) for name, count in counts.most_common()}
    return Rounding(format=max(rounded, key=counts.__getitem__), formats=formats) if rounded else None


def _dtype(config: Mapping[str, Any], model: str) -> "torch.dtype":
    import torch

    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(named), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"{model}: its config.json names no type of floats (dtype={named!r})")
    return dtype
