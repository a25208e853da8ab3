"""Rewrite a model in another basis of its residual stream, so that its answers stay the same.

``fold``, ``centre`` and ``rotate`` give new values for parameters by name, to be put in place by ``replaced``
(harness.model.weights.replaced):

- ``fold`` moves the gains and biases of norms into the linear layers that read them;
- ``centre`` lets only vectors of mean zero into the stream, on which a LayerNorm is an RMSNorm (``rms_norms``);
- ``rotate`` turns the stream, which RMSNorms without gains do not notice.

What a norm computes is read off what it gives, not off its class. Products are taken in double precision.

Sources: Pre-RMSNorm (arXiv:2305.14858) for centring; SliceGPT (arXiv:2401.15024) for the order of the three.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from harness.contract.anatomy import Branch, Role
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.forwards import put, replace_forward
from harness.model.weights.linear import Site, sites
from harness.model.weights.replaced import dense_names

_READERS: tuple[Role, ...] = ("query", "key", "value", "gate", "up")
_WRITERS: tuple[Role, ...] = ("output", "down")
_SMALL = 1e-3
"""A size of inputs to a norm at which its ``eps`` counts."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm of the residual stream.

    Attributes:
        name: its path in the dense model.
        centres: it subtracts the mean first: a LayerNorm; else an RMSNorm.
        offset: what is added to its weight to give the gain: 0, or 1 in the Gemmas.
        eps: what is added to the mean square.
        readers: the linear layers that read it.
    """

    name: str
    module: nn.Module
    centres: bool
    offset: int
    eps: float
    readers: tuple[Site, ...]

    @property
    def gain(self) -> torch.Tensor | None:
        """[width], in double precision; None where there is none."""
        weight = self.module._parameters.get("weight")
        return None if weight is None else weight.detach().double() + self.offset

    @property
    def bias(self) -> torch.Tensor | None:
        """[width], in double precision; None where there is none."""
        bias = self.module._parameters.get("bias")
        return None if bias is None else bias.detach().double()


@dataclass(frozen=True, eq=False)
class Stream:
    """What reads and writes the residual stream of the layers that are in the model.

    Attributes:
        norms: what reads it, each with the linear layers that read the norm; the final one is read by the head.
        writers: the linear layers whose outputs are added to it.
        embeddings: what it begins with, of tokens and of positions, by name; rows [rows, width].
    """

    norms: tuple[Norm, ...]
    writers: tuple[Site, ...]
    embeddings: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: Decoder) -> Self:
        """Find them by the layout.

        Raises:
            UnsupportedModelError: a part whose place in the stream is not known, or a norm after a branch.
            MethodError: a linear layer that another method computes.
        """
        anatomy, names = model.anatomy, dense_names(model)
        if any(block.mlp.experts is not None for block in model.live):
            raise UnsupportedModelError(
                f"{model.kind} keeps the weights of all experts of a layer in one tensor, which is no linear layer: "
                "the basis of the residual stream changes in models without experts alone"
            )
        linears = {site.module: site for site in sites(model, head=True)}
        read: dict[nn.Module, list[Site]] = {anatomy.final_norm: [linears[anatomy.head]]}
        writers = []
        for block in model.live:
            roles = {role: part.module for role, part in block.roles.items()}
            for branch in (block.attention, block.mlp):
                if branch.post_norm is not None:
                    raise UnsupportedModelError(
                        f"{model.kind} normalises the outputs of its branches, so that what they write into the "
                        "residual stream has no other basis"
                    )
                require_known(model, block.index, branch, set(roles.values()))
                inside = [linear for linear in branch.linears() if linear in linears]
                if inside and branch.pre_norm is not None:
                    reading = {roles[role] for role in _READERS if role in roles}
                    read.setdefault(branch.pre_norm, []).extend(linears[part] for part in inside if part in reading)
                writing = {roles[role] for role in _WRITERS if role in roles}
                writers += [linears[part] for part in inside if part in writing]
        norms = (norm_of(model, names[norm], norm, tuple(readers)) for norm, readers in read.items())
        return cls(tuple(norms), tuple(writers), dict(_embeddings(model, names)))


def fold(model: Decoder) -> dict[str, torch.Tensor]:
    """Values that put the gains and biases of norms into the linear layers that read them, and none into the norms.

    A head that is tied to the embedding gets a weight of its own, and a linear layer without a bias one where the norm
    has one.
    """
    values = {}
    for norm in Stream.of(model).norms:
        for site in norm.readers:
            weight = site.weight.double()  # [out, width]
            if norm.bias is not None:
                bias = weight @ norm.bias
                values[f"{site.name}.bias"] = bias if site.bias is None else bias + site.bias
            if norm.gain is not None:
                values[f"{site.name}.weight"] = _stored(site, weight * norm.gain)
        if norm.gain is not None:
            values[f"{norm.name}.weight"] = torch.full_like(norm.gain, 1 - norm.offset)
        if norm.bias is not None:
            values[f"{norm.name}.bias"] = torch.zeros_like(norm.bias)
    return values


def centre(model: Decoder) -> dict[str, torch.Tensor]:
    """Values that let only vectors of mean zero into the stream: no LayerNorm sees the difference.

    Raises:
        UnsupportedModelError: see ``require_layer_norms``.
    """
    stream = require_layer_norms(model)
    values = {name: rows - rows.mean(1, keepdim=True) for name, rows in stream.embeddings.items()}
    for site in stream.writers:
        weight = site.weight.double()  # [width, in]
        values[f"{site.name}.weight"] = _stored(site, weight - weight.mean(0))
        if site.bias is not None:
            values[f"{site.name}.bias"] = site.bias.double() - site.bias.double().mean()
    return values


def require_basis(model: Decoder) -> Stream:
    """The residual stream of a model that can have another basis.

    Raises:
        UnsupportedModelError: something is added to the stream that is no weight, or see ``Stream.of``.
        MethodError: see ``Stream.of``.
    """
    stream = Stream.of(model)
    _refuse_fixed(model)
    return stream


def require_layer_norms(model: Decoder) -> Stream:
    """The residual stream of a model whose norms take the mean off.

    Raises:
        UnsupportedModelError: some norm does not, or the stream has no other basis, or see ``Stream.of``.
    """
    stream = require_basis(model)
    for norm in stream.norms:
        if not norm.centres:
            raise UnsupportedModelError(
                f"{model.kind} has RMSNorms already, such as {norm.name}, and only LayerNorms can become RMSNorms"
            )
    return stream


def rotate(model: Decoder, rotation: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values that turn the residual stream by an orthogonal matrix [width, width], from h to h Q.

    Raises:
        UnsupportedModelError: the stream has no other basis, or see ``Stream.of``.
        MethodError: the matrix is not orthogonal, or a norm has a gain or a bias, or centres.
    """
    rotation = rotation.to(model.device, torch.float64)
    if not torch.allclose(rotation.T @ rotation, torch.eye(len(rotation)).to(rotation), atol=1e-6):
        raise MethodError("the residual stream is rotated by an orthogonal matrix, and this one is not orthogonal")
    stream = require_basis(model)
    for norm in stream.norms:
        gain, bias = norm.gain, norm.bias
        if norm.centres or (gain is not None and (gain != 1).any()) or (bias is not None and bias.any()):
            raise MethodError(f"{norm.name} would see the rotation: fold it first, and centre LayerNorms")
    values = {name: rows @ rotation for name, rows in stream.embeddings.items()}
    for norm in stream.norms:
        for site in norm.readers:
            values[f"{site.name}.weight"] = _stored(site, site.weight.double() @ rotation)
    for site in stream.writers:
        values[f"{site.name}.weight"] = _stored(site, rotation.T @ site.weight.double())
        if site.bias is not None:
            values[f"{site.name}.bias"] = rotation.T @ site.bias.double()
    return values


@contextmanager
def rms_norms(model: Decoder) -> Iterator[None]:
    """Compute the LayerNorms of a folded and centred model as RMSNorms.

    The modules stay, with their hooks; they only have another forward and no parameters meanwhile.
    """
    with ExitStack() as undo:
        for norm in Stream.of(model).norms:
            if norm.centres:
                rms = nn.RMSNorm(model.config.hidden_size, norm.eps, elementwise_affine=False)
                replace_forward(undo, norm.module, rms.forward)
                for name in list(norm.module._parameters):
                    put(undo, norm.module, name, None)
        yield


def _stored(site: Site, weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] in double precision, as the module is to keep it."""
    return site.stored(weight.to(site.weight.dtype))


def require_known(model: Decoder, layer: int, branch: Branch, known: set[nn.Module]) -> None:
    """Refuse a branch of which not all linear layers are known, or that reads the residual stream without a norm.

    Raises:
        UnsupportedModelError: with what is not known.
    """
    if branch.pre_norm is None:
        raise UnsupportedModelError(f"{model.kind} has a branch that reads the residual stream without a norm")
    for module in branch.modules:
        for path, part in module.named_modules():
            matrices = [each for each in part._parameters.values() if each is not None and each.ndim >= 2]
            if matrices and part not in known:
                raise UnsupportedModelError(
                    f"{model.kind}: whether {path or type(part).__name__} of layer {layer} reads the residual "
                    "stream, or writes into it, is not known"
                )


def _refuse_fixed(model: Decoder) -> None:
    """Refuse what is added to the stream from buffers, such as sinusoids of positions: no weight moves it."""
    anatomy, width = model.anatomy, model.config.hidden_size
    for name, part in anatomy.parent.named_children():
        if name != anatomy.layers_name and any(
            buffer.ndim >= 2 and buffer.shape[-1] == width for buffer in part.buffers()
        ):
            raise UnsupportedModelError(
                f"{model.kind}: its {name}, a {type(part).__name__}, adds rows to the residual stream that are no "
                "weights, so that the stream has no other basis"
            )


def _embeddings(model: Decoder, names: dict[nn.Module, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The rows that the stream begins with, in double precision; other parts around the layers are refused."""
    anatomy = model.anatomy
    around = [part for name, part in anatomy.parent.named_children() if name != anatomy.layers_name]
    for part in around:
        if part is anatomy.final_norm or part is anatomy.head or not list(part.parameters()):
            continue
        if not isinstance(part, nn.Embedding) or part.embedding_dim != model.config.hidden_size:
            raise UnsupportedModelError(f"{model.kind} has {names[part]} between its embedding and its head")
        yield f"{names[part]}.weight", part.weight.detach().double()


@torch.no_grad()
def norm_of(model: Decoder, name: str, module: nn.Module, readers: tuple[Site, ...]) -> Norm:
    """A norm, by what it makes of a vector of mean zero and mean square one.

    Raises:
        UnsupportedModelError: it is no norm of a known form.
    """
    parameters = {name for name, parameter in module.named_parameters() if parameter is not None}
    probe = deepcopy(module).to_empty(device="cpu").float().requires_grad_(False)
    for parameter, value in (("weight", 1.0), ("bias", 0.5)):
        if parameter in parameters:
            probe.get_parameter(parameter).fill_(value)
    x = torch.ones(model.config.hidden_size)
    x[1::2] = -1
    if len(x) % 2:
        x[-3:] = torch.tensor([2.0, -1.0, -1.0]) / 2**0.5
    plain, opposite, shifted = probe.forward(x), probe.forward(-x), probe.forward(x + 1)  # [width] each
    gain, bias = (plain - opposite) / 2 / x, (plain + opposite) / 2
    offset = round(float(gain.mean())) - 1
    expected = torch.full_like(x, 1 + offset), torch.full_like(x, 0.5 if "bias" in parameters else 0.0)
    as_expected = all(torch.allclose(*pair, atol=1e-3) for pair in zip((gain, bias), expected, strict=True))
    if parameters - {"weight", "bias"} or offset not in (0, 1) or not as_expected:
        raise UnsupportedModelError(f"{model.kind}: {name}, a {type(module).__name__}, is no norm of a known form")
    share = ((probe.forward(_SMALL * x) - bias) / gain / x).double().mean()  # s / sqrt(s^2 + eps)
    eps = _SMALL**2 * float(1 / share.square() - 1)
    return Norm(name, module, torch.allclose(shifted, plain, atol=1e-3), offset, max(eps, 0.0), readers)
