"""Other values in place of a model's parameters, for the duration of a ``with`` block.

A module keeps its place, its type and its hooks, and the parameter its name; it only holds another tensor meanwhile. So
traces, kernels and other engines see the model that they know. What a method saves by it is for the method to say.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, NoReturn, cast

import torch
from torch import nn

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.contract.parameters import Pattern
from harness.core.errors import MethodError, UnknownNameError
from harness.model.surgery import put


class Place(NamedTuple):
    """Where a parameter is: a module, and the name that it has there."""

    module: nn.Module
    attribute: str

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that is there now."""
        return cast("nn.Parameter", self.module._parameters[self.attribute])


@contextmanager
def replaced(model: Decoder, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give parameters of the model other values, cast to each parameter's type and moved to its device.

    Of tied parameters, such as embedding and head, the one that is named gets a tensor of its own and the other keeps
    the one it has; named both, with equal values, they stay tied.

    Args:
        tensors: values by the parameter's name in the dense model, whatever other methods have taken out.

    Raises:
        UnknownNameError: the model has no parameter of that name.
        MethodError: a parameter of another shape, of a part that is out of the model, or of a linear layer that another
            method computes.
    """
    modules = {name: module for module, name in dense_names(model).items()}
    places = {
        _joined(name, attribute): Place(module, attribute)
        for name, module in modules.items()
        for attribute, parameter in module._parameters.items()
        if parameter is not None
    }
    for name, values in tensors.items():
        if name not in places:
            _refuse(model, name, modules, places)
        if values.shape != (shape := places[name].parameter.shape):
            raise MethodError(f"{name} has the shape {list(shape)}, and what is to replace it {list(values.shape)}")
    new: dict[nn.Parameter, list[nn.Parameter]] = {}  # what has taken the place of a parameter, tied ones once
    with ExitStack() as undo:
        for name, values in tensors.items():
            before = places[name].parameter
            tied = next((after for after in new.get(before, ()) if torch.equal(after, values.to(after))), None)
            after = replace(undo, places[name], values if tied is None else tied)
            new.setdefault(before, []).append(after)
        yield


def replace(undo: ExitStack, place: Place, values: torch.Tensor, zeros: Pattern | None = None) -> nn.Parameter:
    """Put values in place of a parameter until ``undo`` closes.

    Args:
        values: of the parameter's shape; a parameter is taken as it is, the values of another tensor are copied.
        zeros: the pattern of the zeros among the values, where they are a weight's that a method pruned.
    """
    before = place.parameter
    after = values if isinstance(values, nn.Parameter) else _like(before, values)
    put(undo, place.module, place.attribute, after)
    if place.attribute == "weight":
        _label(undo, place.module, zeros, before, after)
    return after


def zeros(module: nn.Module) -> Pattern | None:
    """The pattern of the zeros in a linear layer's weight, if a method pruned it."""
    return cast("Pattern | None", vars(module).get("zeros"))


def dense_names(model: Decoder) -> dict[nn.Module, str]:
    """The modules that are in the model now, each with the name that it has in the dense model."""
    names = {module: name for name, module in model.module.named_modules()}
    layers = _joined(names[model.anatomy.parent], model.anatomy.layers_name)
    for block in model.live:
        for path, part in block.module.named_modules():
            names[part] = _joined(f"{layers}.{block.index}", path)
    return names


def _joined(first: str, second: str) -> str:
    return ".".join(filter(None, (first, second)))


def _like(parameter: nn.Parameter, values: torch.Tensor) -> nn.Parameter:
    """A parameter of these values, in the layout, type and place of another."""
    with torch.no_grad():
        copied = torch.empty_like(parameter).copy_(values)
    return nn.Parameter(copied, requires_grad=parameter.requires_grad)


@torch.no_grad()
def _label(
    undo: ExitStack, module: nn.Module, pattern: Pattern | None, before: torch.Tensor, after: torch.Tensor
) -> None:
    """Say which zeros a weight has; what an earlier method said of it holds as long as none of them is filled."""
    earlier = zeros(module)
    if pattern is None and (earlier is None or not ((before == 0) & (after != 0)).any()):
        return
    undo.callback(_set_zeros, module, earlier)
    _set_zeros(module, pattern)


def _set_zeros(module: nn.Module, pattern: Pattern | None) -> None:
    if pattern is None:
        vars(module).pop("zeros", None)
    else:
        vars(module)["zeros"] = pattern


def _refuse(model: Decoder, name: str, modules: Mapping[str, nn.Module], known: Iterable[str]) -> NoReturn:
    """Say why there is no parameter of that name in the model now."""
    owner = modules.get(name.rpartition(".")[0])
    if owner is not None and (replacement := owner._modules.get("computed_by")) is not None:
        raise MethodError(
            f"{name} cannot be replaced: its linear layer is computed by {replacement.kernel} already; name the method "
            "that replaces weights before the one that computes"
        )
    layers = _joined(dense_names(model)[model.anatomy.parent], model.anatomy.layers_name)
    for block in model.anatomy.blocks:
        within = name.removeprefix(f"{layers}.{block.index}.")
        if within != name and _is_out(model, block, within):
            raise MethodError(f"{name} cannot be replaced: another method has taken it out of the model")
    raise UnknownNameError("parameter", name, known)


def _is_out(model: Decoder, block: Block, name: str) -> bool:
    """Whether what has that name in a dense layer is out of the model, with its layer or its branch."""
    parts = {*block.attention.modules, *block.attention.norms, *block.mlp.modules, *block.mlp.norms}
    children = dict(block.module.named_children())
    instead = children.get(name.partition(".")[0])
    return block not in model.live or (
        instead is not None and instead not in parts and not parts <= set(children.values())
    )
