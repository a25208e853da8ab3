"""Numbers in blocks, each with a scale in eight bits: weights, and activations as they come. Nothing is saved here.

The values that codes stand for are multiplied as floats: cards that multiply such blocks are of the Blackwell and MI350
generations.

Sources: "Microscaling Data Formats for Deep Learning" (arXiv:2310.10537); BCT (arXiv:2304.01483) for blocks on every
tensor, outputs of softmax, activation functions and norms among them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError
from harness.model.attention import Attention, attending, visible
from harness.model.weights import weight_only
from harness.model.weights.computations import Computation, Computations, Layer
from harness.model.weights.formats import NumberFormat, Quantized, quantize, rounded_rows
from harness.model.weights.linear import ReplacementLayer
from harness.model.weights.packed_linear import DenseOverValues
from harness.model.weights.replaced import dense_names, replaced

_ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")


class RoundedLinear(DenseOverValues):
    """The dense product over weights and activations that are both in a format."""

    def __init__(self, weight: Quantized, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        self._number = weight.format
        self.kernel = _label(weight.format)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out]."""
        return super().forward(rounded(x, self._number))


def computations(layer: Layer, device: str, number: NumberFormat, *, activations: bool) -> Computations:
    """What may compute a linear layer whose weights, and activations where they are to be, are in a format."""
    if not activations:
        return weight_only.computations(layer, device, number)
    dense = Computation(_label(number), partial(_rounded_linear, number=number))
    return Computations(dense, (), __name__, device)


def rounded(x: torch.Tensor, number: NumberFormat) -> torch.Tensor:
    """Activations [..., features] as they are in a format, in their own type.

    A token is rounded by itself, the second scale of NVFP4 included, so that a row of a batch gives the same whatever
    the others are.
    """
    return rounded_rows(x.reshape(-1, x.shape[-1]), number).to(x.dtype).view(x.shape)


@contextmanager
def rounded_embeddings(model: Decoder, number: NumberFormat) -> Iterator[None]:
    """Have the rows of the embeddings, of tokens and of learned positions, in a format."""
    parts = [part for part in model.anatomy.parent.children() if isinstance(part, nn.Embedding)]
    names = dense_names(model)
    values = {f"{names[part]}.weight": quantize(part.weight.detach(), number).dequantized() for part in parts}
    with replaced(model, values):
        yield


def require_activations(model: Decoder) -> None:
    """Refuse a model with experts, or whose activation function is no module: nothing could round what it gives.

    Raises:
        UnsupportedModelError: with the layer.
    """
    for block in model.anatomy.blocks:
        if block.mlp.experts is not None or not _activations(block):
            raise UnsupportedModelError(
                f"{model.kind}: the activation function of layer {block.index} is no module between linear layers, so "
                "that what it gives cannot be rounded: leave nonlinear=true out"
            )


def _activations(block: Block) -> list[nn.Module]:
    modules = block.module.modules()
    return [part for part in modules if type(part).__module__ in _ACTIVATIONS and not list(part.children())]


@contextmanager
def rounded_outputs(model: Decoder, number: NumberFormat, name: str) -> Iterator[None]:
    """Round what norms of the stream, activation functions and softmax give.

    Of softmax all keys of a query are a block. Blocks of keys would begin elsewhere for a row that is padded, and end
    elsewhere for each token that is written.

    Args:
        name: see ``attending``.
    """

    def rounding(_: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return rounded(output, number)

    norms = [norm for block in model.live for branch in (block.attention, block.mlp) for norm in branch.norms]
    functions = [part for block in model.live for part in _activations(block)]
    with ExitStack() as undo:
        for part in dict.fromkeys((*norms, model.anatomy.final_norm, *functions)):
            undo.callback(part.register_forward_hook(rounding).remove)
        undo.enter_context(attending(model, _attention(replace(number, group=None)), name=name))
        yield


def _attention(number: NumberFormat) -> Attention:
    """Attention whose probabilities are in a format, [rows, heads, queries, head width]."""

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> tuple[torch.Tensor, int]:
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))  # [rows, heads, keys, width]
        scores = (q @ k.transpose(2, 3)).float() * scale  # [rows, heads, queries, keys]
        allowed = visible(mask, q.shape[2], k.shape[2], q.device)
        shares = scores.masked_fill(~allowed, -torch.inf).softmax(3).nan_to_num()  # a query may read no key
        return rounded(shares, number).to(q.dtype) @ v, shares.numel()

    return attend


def _rounded_linear(weight: torch.Tensor, bias: torch.Tensor | None, number: NumberFormat) -> ReplacementLayer:
    return RoundedLinear(quantize(weight, number), bias, weight.dtype)


def _label(number: NumberFormat) -> str:
    return f"dense product over {number.label} weights and activations"
