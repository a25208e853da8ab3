"""A model on a turned residual stream: the same answers from weights and activations in which nothing stands out.

Norms are folded, LayerNorms become RMSNorms, and the stream is turned (harness.model.basis). What attention's and the
MLP's way back read lies between products that no rotation of the stream reaches; it is turned by a Hadamard matrix as
it comes, where that is asked for, and their weights are turned to match.

Source: QuaRot (arXiv:2404.00456).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from harness.contract.decoder import Auxiliary, Decoder
from harness.model.basis import centre, fold, require_basis, rms_norms, rotate
from harness.model.hadamard import HadamardProduct, random_orthogonal
from harness.model.weights.linear import Site
from harness.model.weights.replaced import replaced

ONLINE = "hadamard"
"""The kind of work that the products are charged as that turn inputs as they come."""


def require_rotatable(model: Decoder, *, online: bool) -> None:
    """Refuse a model whose stream cannot be turned, or whose other inputs cannot.

    Raises:
        UnsupportedModelError: see ``require_basis``.
        MethodError: see ``require_basis`` and ``HadamardProduct``.
    """
    writers = require_basis(model).writers
    for width in {site.weight.shape[1] for site in writers} if online else ():
        HadamardProduct(width)


@contextmanager
def rotated(model: Decoder, seed: int, *, online: bool) -> Iterator[None]:
    """Run the model on a residual stream that is turned by a random orthogonal matrix.

    Args:
        seed: of the matrix.
        online: the inputs of attention's and the MLP's way back are turned too, as they come.

    Raises:
        UnsupportedModelError, MethodError: see ``require_rotatable``.
    """
    require_rotatable(model, online=online)
    with ExitStack() as stack:
        if any(norm.centres for norm in require_basis(model).norms):
            stack.enter_context(replaced(model, fold(model) | centre(model)))
            stack.enter_context(rms_norms(model))
        else:
            stack.enter_context(replaced(model, fold(model)))
        matrix = random_orthogonal(model.config.hidden_size, seed)
        stack.enter_context(replaced(model, rotate(model, matrix)))
        if online:
            products = {site: _product(site) for site in require_basis(model).writers}
            stack.enter_context(replaced(model, dict(_turned(products))))
            stack.enter_context(model.assisted([Auxiliary(product, ONLINE) for product in products.values()]))
            for site, product in products.items():
                stack.callback(site.module.register_forward_pre_hook(_before(product)).remove)
        yield


def _product(site: Site) -> HadamardProduct:
    weight = site.weight
    return HadamardProduct(weight.shape[1]).to(weight.device)


def _turned(products: Mapping[Site, HadamardProduct]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that read turned inputs: W x = W H^T H x, where a row of W H^T is H times that row of W."""
    for site, product in products.items():
        weight = product(site.weight.double()).to(site.weight.dtype)  # [out, in]
        yield f"{site.name}.weight", site.stored(weight)


def _before(product: HadamardProduct) -> Any:
    """A hook that turns the input of a linear layer."""

    def turn(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return product(args[0]), *args[1:]

    return turn
