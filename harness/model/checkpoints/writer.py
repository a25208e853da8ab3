"""Writing a model as a folder that transformers loads: floats as they are, and linear layers of few bits packed."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.core.files import parse_json, saving_tensors
from harness.model.checkpoints.fitting import fitting_config
from harness.model.checkpoints.layout import Scheme, tensors
from harness.model.weights.linear import computed_by
from harness.model.weights.stored import Stored

INDEX: Final = "model.safetensors.index.json"
_METHOD: Final = "compressed-tensors"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        layout: of the linear layers that are packed, as compressed-tensors calls it; None where all are floats.
        numbers: their number formats, with how many have each.
        nbytes: of the files of weights.
    """

    layout: str | None
    numbers: dict[str, int]
    nbytes: int


def write_model(model: Decoder, folder: Path, label: str) -> Written:
    """Write weights and configuration of a model as its methods left it, a decoder layer at a time.

    Args:
        folder: an empty one.
        label: the methods, for what is refused.

    Raises:
        MethodError: what the methods left cannot be expressed by a checkpoint.
    """
    layers = _stored_layers(model, label)
    schemes = {name: Scheme(layer.number, layer.activations) for name, layer in layers.items()}
    layout = _layout(schemes, label)
    state = model.module.state_dict()
    state |= {f"{name}.bias": layer.bias for name, layer in layers.items() if layer.bias is not None}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = fitting_config(model, shapes | {f"{name}.weight": layer.shape for name, layer in layers.items()}, label)
    shards = list(_shards(model, [*_once(state), *layers]))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        content: dict[str, torch.Tensor] = {}
        for name in names:
            if name in layers:
                content |= tensors(name, layers[name].quantized(), schemes[name])
            else:
                content[name] = state[name].detach().cpu().contiguous()
        with saving_tensors():
            save_file(content, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(content, file)
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    _write_config(model, config, schemes, layout, folder)
    return Written(layout, dict(Counter(scheme.number.label for scheme in schemes.values())), nbytes)


def _layout(schemes: dict[str, Scheme], label: str) -> str | None:
    """The layout of all layers together.

    Raises:
        MethodError: there is none for one of them.
    """
    try:
        layouts = {scheme.format for scheme in schemes.values()}
    except MethodError as error:
        raise MethodError(f"{label} cannot be exported: {error}") from error
    return "mixed-precision" if len(layouts) > 1 else next(iter(layouts), None)


def _stored_layers(model: Decoder, label: str) -> dict[str, Stored]:
    """The linear layers in number formats, by their names in the model as it stands.

    Raises:
        MethodError: a linear layer is computed in a way that no file holds.
    """
    layers = {}
    for name, module in model.module.named_modules():
        replacement = computed_by(module)
        if replacement is None:
            continue
        if not isinstance(replacement, Stored):
            raise MethodError(
                f"{label} computes {name} by {replacement.kernel}, which no layout of a checkpoint holds: it cannot be "
                "exported. Zeros that a method leaves for the dense product can"
            )
        if isinstance(module, Conv1D):
            raise MethodError(
                f"{label}: {name} keeps its weight transposed (Conv1D), which the layout of compressed-tensors does "
                "not have: it cannot be exported"
            )
        layers[name] = replacement
    return layers


def _once(state: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors, the first one of those that share their numbers."""
    names: dict[object, str] = {}
    for name, tensor in state.items():
        names.setdefault((tensor.data_ptr(), tensor.shape, tensor.dtype) if tensor.numel() else name, name)
    return list(names.values())


def _shards(model: Decoder, names: list[str]) -> Iterator[list[str]]:
    """Names that lie in a file together: those outside of the decoder layers, then those of each layer."""
    modules = {module: name for name, module in model.module.named_modules()}
    prefixes = [f"{modules[block.module]}." for block in model.live]
    inside = {prefix: [name for name in names if name.startswith(prefix)] for prefix in prefixes}
    every = {name for each in inside.values() for name in each}
    yield [name for name in names if name not in every]
    yield from inside.values()


def _write_config(model: Decoder, config: Any, schemes: dict[str, Scheme], layout: str | None, folder: Path) -> None:
    """Write the configuration, with what says how linear layers are packed."""
    module, head = model.module, model.anatomy.head
    config.tie_word_embeddings = getattr(head, "weight", None) is model.anatomy.embedding.weight
    config.architectures = [type(module).__name__]
    config.dtype = module.dtype
    config.save_pretrained(folder)
    if module.can_generate():
        (folder / "generation_config.json").write_text(module.generation_config.to_json_string())
    if layout is None:
        return
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    named: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        named.setdefault(scheme, []).append(name)
    groups = {
        f"group_{index}": scheme.group(["Linear"] if len(named) == 1 else names)
        for index, (scheme, names) in enumerate(named.items())
    }
    stated = {
        "quant_method": _METHOD,
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in linears if name not in schemes],
    }
    path = folder / "config.json"
    path.write_text(json.dumps(parse_json(path.read_bytes()) | {"quantization_config": stated}, indent=2) + "\n")
