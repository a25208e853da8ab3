"""Kernels of this machine, and tests that take them whatever is faster here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.contract.decoder import Decoder
from harness.contract.facts import Savings
from harness.model.weights import choice, sparse_kernels
from harness.model.weights.computations import DENSE, Computations, Layer
from harness.model.weights.int8 import DENSE_PRODUCT, PRODUCTS, Int8Product, is_right
from harness.model.weights.linear import sites

PRODUCT = next((product for product in PRODUCTS if is_right(product)), None)
"""The first int8 product that is right here."""
KERNEL = PRODUCT.name if PRODUCT else DENSE_PRODUCT
SAVINGS = Savings.REAL if PRODUCT else Savings.SIMULATED
WEIGHT_BYTES = 1 if PRODUCT else 4
"""Of one weight of a float32 model."""


EXACT = Int8Product(
    "exact int8", lambda weight: weight, lambda x, w, scale: (x.double() @ w.double().T * scale).float()
)
"""An int8 product that every machine has."""


def require_compiled() -> None:
    """Skip a test of the project's own kernels where they cannot be compiled."""
    if isinstance(reason := sparse_kernels.load()[0], str):
        pytest.skip(reason)


def force(decoder: Decoder, kernel: str = KERNEL) -> Decoder:
    """Let methods that have the kernel take it for every linear layer."""
    decoder.kernels = {site.place: kernel for site in sites(decoder, head=True)}
    return decoder


@contextmanager
def timed(folder: Path, **ratios: tuple[float, float]) -> Iterator[None]:
    """Kernels take these parts of dense's time at 1 and 128 tokens, by name; the first half of it, the next more.

    Up to 8 tokens it is as at one, from there as at 128.

    Nothing is timed, and decisions are kept in the folder.
    """

    def times(ways: Computations, layer: Layer) -> dict[str, list[float]]:
        first = {kernel.name: (0.5 + index / 10,) * 2 for index, kernel in enumerate(ways.able)}
        every = {DENSE: (1.0, 1.0), ways.dense.name: (1.0, 1.0)} | first | ratios
        return {name: [few, few, many, many] for name, (few, many) in every.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "probe", times)
        patch.setattr(choice, "folder", lambda: folder)
        yield
