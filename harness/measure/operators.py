"""Which operators the compression methods have on this processor, whether they are right, and how fast they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch

from harness.core.errors import SpecError
from harness.measure.arithmetic import MUCH_SLOWER, slowdown
from harness.model.weights import block_sparse, int8
from harness.model.weights.choice import choose
from harness.model.weights.computations import Computations, Layer

WIDTH: Final = 1024
SPARSITY: Final = 0.8


@dataclass(frozen=True)
class Operator:
    """What was found about an operator.

    Attributes:
        name: a number format or a method.
        fast: it runs here, a number format in less than twice the time of float32, a method faster than dense.
        detail: what was found, in words.
    """

    name: str
    fast: bool
    detail: str


@torch.inference_mode()
def operators() -> Iterator[Operator]:
    """Probe each operator on one linear layer: some hundred milliseconds, seconds where kernels are to be compiled."""
    for dtype in (torch.bfloat16, torch.float16):
        yield _number_format(dtype)
    yield _int8()
    yield _block_sparse()


def _number_format(dtype: torch.dtype) -> Operator:
    name = str(dtype).removeprefix("torch.")
    try:
        ratio = slowdown(dtype)
    except RuntimeError as error:
        return Operator(name, False, f"cannot be probed: {_first_line(error)}")
    return Operator(name, ratio <= MUCH_SLOWER, f"a product over many tokens takes {ratio:.2g}x the time of float32")


def _int8() -> Operator:
    layer = Layer(WIDTH, WIDTH, "float32")
    return _own("int8-dynamic", layer, lambda: int8.computations(layer, "cpu"))


def _block_sparse() -> Operator:
    layer = Layer(WIDTH, WIDTH, "float32", SPARSITY, rows=16)
    return _own("block-sparse", layer, lambda: block_sparse.computations(layer, "cpu", "int8"))


def _own(method: str, layer: Layer, declared: Callable[[], Computations]) -> Operator:
    """What a method with kernels of the project's own takes for a layer."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # the kernels are tested on products so small that threads would wait for each other
        ways = declared()
    except SpecError as error:  # a limit that names no instruction set, or one that is not here
        return Operator(method, False, str(error))
    finally:
        torch.set_num_threads(threads)
    return _chosen(method, layer, ways)


def _chosen(method: str, layer: Layer, ways: Computations) -> Operator:
    """What a method takes for a layer, and how long each of its kernels takes."""
    reasons = [kernel.why_not for kernel in ways.kernels if kernel.why_not and not kernel.elsewhere]
    if not ways.able:
        return Operator(method, False, f"simulated: {'; '.join(dict.fromkeys(reasons))}")
    decision = choose(ways, layer)
    times = [decision.described(kernel) for kernel in ways.able]
    detail = f"a layer of {layer.label} gets {decision.kernel}: {'; '.join([*times, *reasons])}"
    return Operator(method, decision.kernel != ways.dense.name, detail)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
