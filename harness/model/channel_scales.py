"""Scales of channels, moved from what writes a tensor into the linear layers that read it, so that answers stay:

    y = W x + b = (W diag(s)) ((x - c) / s) + (W c + b)

(x - c) / s costs nothing where a norm writes x: its gain and bias take it. Without c, the features of a linear layer
take it too where nothing but a weighted mean or a product stands between them and the reader: values before attention's
output, and what a gate multiplies before the way back. In low precision readers get what the norm's gain really gave.

Sources: SmoothQuant (arXiv:2211.10438), AWQ (arXiv:2306.00978); with c, RepQ-ViT (arXiv:2212.08254).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from harness.contract.anatomy import Block, Role, Slice
from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError
from harness.model.basis import Norm, norm_of, require_known
from harness.model.forwards import states_of
from harness.model.roles import input_features, output_features
from harness.model.weights.computations import HasKernels
from harness.model.weights.kernel_plan import computation
from harness.model.weights.layerwise import Observers, layer_by_layer
from harness.model.weights.linear import ReplacementLayer, Site, installed, sites
from harness.model.weights.observers import Kind, observe
from harness.model.weights.replaced import dense_names, replaced

_READERS: Final[tuple[Role, ...]] = ("query", "key", "value", "gate", "up")
_INNER: Final[tuple[tuple[Role, Role], ...]] = (("value", "output"), ("up", "down"))
"""Linear layers that write what another one reads."""
_ACTIVATIONS: Final = ("hidden_act", "hidden_activation", "activation_function")
"""What configurations call the MLP's activation."""
_TOLERANCE: Final = 0.05
"""Of what a layer adds: what moving powers of two may change, in half precision and with gains less one."""


@dataclass(frozen=True, eq=False)
class Features:
    """Output features of a linear layer, as ``rows`` of its weight [out, in]."""

    site: Site
    rows: torch.Tensor


@dataclass(frozen=True, eq=False)
class Feed:
    """A tensor inside a decoder layer whose channels can be scaled.

    Attributes:
        layer: the dense model's index of the decoder layer.
        source: what writes it, and divides by the scales: a norm, or features of a linear layer.
        readers: the linear layers that read it, and multiply.
        inspected: the smallest module whose output shows all that the readers do.
    """

    layer: int
    source: Norm | Features
    readers: tuple[Site, ...]
    inspected: nn.Module

    @property
    def name(self) -> str:
        """The first reader's name, which no other feed has."""
        return self.readers[0].name

    @property
    def width(self) -> int:
        """The number of channels."""
        return input_features(self.readers[0].module)

    @property
    def can_shift(self) -> bool:
        """Whether the source can take something off the channels: a norm with a bias."""
        return isinstance(self.source, Norm) and self.source.bias is not None

    @property
    def largest_weights(self) -> torch.Tensor:
        """The largest magnitude of the readers' weights for each channel, double [channels]."""
        largest = [reader.weight.abs().amax(0).double() for reader in self.readers]
        return torch.stack(largest).amax(0)


def feeds(model: Decoder, chosen: Iterable[Site], *, inner: bool = False) -> list[Feed]:
    """The tensors that some of the chosen linear layers read and whose channels can be scaled, layer by layer.

    Args:
        inner: those that linear layers write too, where the shapes allow it: as many values as the output reads (no
            groups of queries), and an MLP with a gate, or with ReLU.

    Raises:
        UnsupportedModelError: a linear layer reads the residual stream without a norm, or what reads a norm is not
            known, or the norm has no gain.
        MethodError: a linear layer that another method computes.
    """
    modules = {site.module for site in chosen if site.layer is not None}
    named = dense_names(model)
    parts = [part for block in model.live for part in _of_block(model, block, modules, set(named), inner)]
    wanted = [named[module] for _, source, readers, _ in parts for module in (*readers, *_linear(source))]
    by_module = {site.module: site for site in sites(model, wanted)} if wanted else {}
    result = []
    for layer, source, readers, inspected in parts:
        own = tuple(by_module[reader] for reader in readers)
        if isinstance(source, Slice):
            result.append(Feed(layer, Features(by_module[source.module], _rows(source)), own, inspected))
            continue
        norm = norm_of(model, named[source], source, own)
        if norm.gain is None:
            raise UnsupportedModelError(f"{model.kind}: {norm.name} has no gain that could take the scales of channels")
        result.append(Feed(layer, norm, own, inspected))
    return result


_Parts = tuple[int, nn.Module | Slice, tuple[nn.Module, ...], nn.Module]
"""A feed by its modules: the layer, the source, the readers, and what is inspected."""


def _of_block(
    model: Decoder, block: Block, chosen: set[nn.Module], present: set[nn.Module], inner: bool
) -> Iterator[_Parts]:
    roles, branches = block.roles, (block.attention, block.mlp)
    known = {part.module for part in roles.values()}
    norms = dict.fromkeys(branch.pre_norm for branch in branches if chosen & set(branch.linears()))
    for norm in norms:
        reading = [branch for branch in branches if branch.pre_norm is norm]
        inside = {linear for branch in reading for linear in branch.linears()} & present
        readers = dict.fromkeys(roles[role].module for role in _READERS if role in roles)
        readers = {reader: None for reader in readers if reader in inside}
        if not chosen & readers.keys():
            continue
        for branch in reading:
            require_known(model, block.index, branch, known)
        assert norm is not None  # or it was refused
        parts = [module for branch in reading for module in branch.modules]
        inspected = parts[0] if len(parts) == 1 else next(iter(readers)) if len(readers) == 1 else block.module
        yield block.index, norm, tuple(readers), inspected
    if inner:
        yield from (
            (block.index, roles[writer], (roles[reader].module,), roles[reader].module)
            for writer, reader in _INNER
            if writer in roles and reader in roles and roles[reader].module in chosen
            if len(_rows(roles[writer])) == input_features(roles[reader].module)
            if writer == "value" or "gate" in roles or _is_relu(model)
        )


def _linear(source: nn.Module | Slice) -> tuple[nn.Module, ...]:
    return (source.module,) if isinstance(source, Slice) else ()


def _rows(part: Slice) -> torch.Tensor:
    """Indices of the output features of a role, [features]."""
    rows = torch.arange(output_features(part.module))
    return rows if part.outputs is None else rows[part.outputs]


def _is_relu(model: Decoder) -> bool:
    """Whether the MLP's activation passes positive factors on."""
    return any(getattr(model.config, name, None) == "relu" for name in _ACTIVATIONS)


def moved(
    chosen: Iterable[Feed], scales: Mapping[str, torch.Tensor], shifts: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The model's parameters with the scales of channels in the readers, by their names, as ``replaced`` takes them.

    Args:
        scales: by a feed's name what the readers multiply by, positive, [channels].
        shifts: by a feed's name what is taken off the channels first, [channels]; of norms with a bias alone.
    """
    weights: dict[Site, torch.Tensor] = {}  # [out, in], in double precision
    biases: dict[Site, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}

    def bias(site: Site) -> torch.Tensor | None:
        return biases[site] if site in biases else None if site.bias is None else site.bias.double()

    for feed in chosen:
        scale = scales[feed.name].to(feed.readers[0].weight.device, torch.float64)
        shift = (shifts or {}).get(feed.name)
        for reader in feed.readers:
            weights.setdefault(reader, reader.weight.double())
        if isinstance(feed.source, Norm):
            scale = _give(feed.source, scale, shift, values)
        else:
            site, rows = feed.source.site, feed.source.rows
            weights[site] = weights.setdefault(site, site.weight.double()).clone()
            weights[site][rows] /= scale[:, None]
            if (old := bias(site)) is not None:
                biases[site] = old.clone()
                biases[site][rows] /= scale
        for reader in feed.readers:
            if shift is not None:
                added = weights[reader] @ shift.to(scale)  # [out]
                biases[reader] = added if (old := bias(reader)) is None else old + added
            weights[reader] = weights[reader] * scale
    values |= {f"{site.name}.weight": site.stored(weight) for site, weight in weights.items()}
    return values | {f"{site.name}.bias": each for site, each in biases.items()}


def _give(norm: Norm, scale: torch.Tensor, shift: torch.Tensor | None, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Let a norm give (x - shift) / scale, and say what its gain, as it is stored, was really divided by."""
    gain, bias = norm.gain, norm.bias
    assert gain is not None
    stored = (gain / scale - norm.offset).to(norm.module.get_parameter("weight").dtype)
    values[f"{norm.name}.weight"] = stored
    new = stored.double() + norm.offset
    scale = torch.where((new != 0) & (gain != 0), gain / torch.where(new == 0, 1, new), scale)
    if bias is not None:
        values[f"{norm.name}.bias"] = (bias - (0 if shift is None else shift.to(bias))) / scale
    return scale


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a module's call."""


@contextmanager
def captured(modules: Collection[nn.Module], tokens: int) -> Iterator[dict[nn.Module, list[Call]]]:
    """The arguments of the first calls of modules, until these have so many tokens."""
    calls: dict[nn.Module, list[Call]] = {module: [] for module in modules}
    left = dict.fromkeys(modules, tokens)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if left[module] > 0:
            calls[module].append((args, kwargs))
            states = _states((args, kwargs))
            left[module] -= states.numel() // states.shape[-1]

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _states(call: Call) -> torch.Tensor:
    """What a module was given, [..., width]."""
    states: torch.Tensor = call[0][0] if call[0] else call[1]["hidden_states"]
    return states


@torch.no_grad()
def require_exact(model: Decoder, block: Block, chosen: Sequence[Feed], call: Call) -> None:
    """Refuse a model of which a layer answers otherwise where its scales move: something else reads a tensor.

    Args:
        chosen: the feeds of the layer.
        call: arguments of the layer to try it on.

    Raises:
        UnsupportedModelError: its output changes.
    """
    tried = {feed.name: 2.0 ** (torch.arange(feed.width) % 3 - 1) for feed in chosen}  # products with these are exact

    def output() -> torch.Tensor:
        return states_of(block.module(*call[0], **call[1]))  # [1, length, width]

    before = output()
    with replaced(model, moved(chosen, tried)):
        after = output()
    update, rest = ((before - other).double().norm() for other in (_states(call), after))
    if not rest <= _TOLERANCE * update + torch.finfo(before.dtype).eps * before.double().norm():
        raise UnsupportedModelError(
            f"{model.kind}: the answers of layer {block.index} change where scales move from what writes a tensor into "
            "the linear layers that are known to read it, so that something else reads it, or stands in between"
        )


def calibrated(
    model: Decoder,
    windows: Sequence[torch.Tensor],
    chosen: Sequence[Feed],
    kind: type[Kind],
    scale: Callable[[Feed, Kind], torch.Tensor],
) -> tuple[dict[str, torch.Tensor], int]:
    """Scales of feeds by what their readers read in the model as it is; one decoder layer is observed at a time.

    Args:
        windows: tokens, each of shape [1, length].
        scale: gives a feed's scales, [channels].

    Returns:
        The scales by the feed's name, float32, and the number of tokens.

    Raises:
        UnsupportedModelError: see ``require_exact``.
    """
    scales: dict[str, torch.Tensor] = {}

    def visit(block: Block, run: Callable[[Observers], None]) -> AbstractContextManager[Any]:
        own = [feed for feed in chosen if feed.layer == block.index]
        if own:
            with captured([block.module], 1) as calls:
                observers = observe(kind, [feed.readers[0] for feed in own], run)
            require_exact(model, block, own, calls[block.module][0])
            scales.update((feed.name, scale(feed, observers[feed.name]).float().cpu()) for feed in own)
        return nullcontext()

    return scales, layer_by_layer(model, windows, visit)


@contextmanager
def computed_scaled(
    method: HasKernels,
    model: Decoder,
    chosen: Sequence[Feed],
    scales: Mapping[str, torch.Tensor],
    shifts: Mapping[str, torch.Tensor] | None = None,
    finish: Callable[[Site, torch.Tensor], torch.Tensor] = lambda site, weight: weight,
) -> Iterator[None]:
    """Let a method compute its linear layers with the scales of channels in their weights; no such weight is kept.

    Args:
        finish: gives the weight [out, in] that is computed with, from the scaled one.
    """
    layers: dict[int | None, list[tuple[Site, Any]]] = {}
    for site, layer in method.declared_layers(model, ()):
        layers.setdefault(site.layer, []).append((site, layer))

    def replacements(undo: ExitStack) -> Iterator[tuple[Site, ReplacementLayer]]:
        for index, computed in layers.items():
            values = moved([feed for feed in chosen if feed.layer == index], scales, shifts)
            given = []
            for site, layer in computed:
                weight, bias = values.pop(f"{site.name}.weight", None), values.pop(f"{site.name}.bias", None)
                weight = site.weight if weight is None else site.stored(weight).to(site.weight.dtype)
                bias = site.bias if bias is None else bias.to(weight.dtype)
                given.append((site, layer, weight, bias))
            undo.enter_context(replaced(model, values))  # norms, and linear layers that stay
            for site, layer, weight, bias in given:
                yield site, computation(method, model, site, layer).make(finish(site, weight), bias)

    with ExitStack() as undo, installed(replacements(undo)):
        yield
