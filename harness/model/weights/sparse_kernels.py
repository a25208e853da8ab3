"""The project's own kernels for block-sparse weights: C that is compiled on first use and checked before it is used.

They follow "An Efficient Sparse Inference Software Accelerator for Transformer-based Language Models on CPUs"
(arXiv:2306.16601): AMX, AVX512-VNNI, AVX512 or AVX2 where the processor has it and ``HARNESS_ISA`` allows it, else
plain C.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch.nn.functional import linear

from harness.core import cpu
from harness.core.errors import CompileError, KernelError
from harness.model.weights.blocks import Blocks, Number
from harness.model.weights.compiled import library
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.kernel_sets import SOURCE, by_set

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels.

    Attributes:
        run: the C function.
        level: the best instruction set that it may use, as its place in ``cpu.KERNEL_SETS``.
    """

    run: Any
    level: int

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, blocks: Sequence[torch.Tensor | None], out: int
    ) -> torch.Tensor:
        """The product of tokens float32 [tokens, in] with the tensors of ``Blocks``: float32 [tokens, out]."""
        value, scale = blocks[2], blocks[3]
        assert value is not None
        y = torch.empty(len(x), out, dtype=torch.float32)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, y, bias, *blocks)]
        self.run(self.level, scale is not None, value.shape[1], torch.get_num_threads(), *x.shape, out, *pointers)
        return y


def load() -> tuple[Kernels | str, ...]:
    """For each of ``cpu.KERNEL_SETS`` its kernels, or why they do not run here.

    Raises:
        SpecError: ``HARNESS_ISA`` names no instruction set, or one that this processor does not have.
    """
    return _load(cpu.kernel_limit())


@cache
def _load(limit: str | None) -> tuple[Kernels | str, ...]:
    """Kernels that compute something else than the dense product are left out, with a warning."""
    try:
        compiled = library(SOURCE)
    except CompileError as error:
        return (str(error),) * len(cpu.KERNEL_SETS)
    run = compiled.block_sparse
    run.argtypes, run.restype = [ctypes.c_int] * 4 + [ctypes.c_long] * 3 + [ctypes.c_void_p] * 8, None

    def load_set(level: int) -> Kernels:
        kernels = Kernels(run, level)
        check(kernels)
        return kernels

    return by_set(limit, compiled.block_sparse_level(), load_set)


def by_name(loaded: Sequence[Kernels | str], rows: int, number: Number) -> dict[str, Kernels | str]:
    """What ``load`` gives for blocks of so many outputs, by the instruction set's name, the best first."""
    kernels: dict[str, Kernels | str] = {}
    for level, each in reversed(list(enumerate(loaded))):
        name = kernel_name(level, rows, number)
        if isinstance(kernels.get(name, ""), str):  # several sets may run the same code
            kernels[name] = each
    return kernels


def kernel_name(level: int, rows: int, number: Number) -> str:
    """The instruction set of the kernel for blocks of so many outputs, as the record calls it."""
    best = cpu.KERNEL_SETS[level]
    if best in ("plain", "avx2"):
        return "plain C" if best == "plain" else best
    if number == "fp32":
        return "avx512"
    if best == "avx512":
        return "avx2"
    return "amx-int8" if best == "amx" and rows == 16 else "avx512-vnni"


def check(kernels: Kernels) -> None:
    """Compare every variant with the dense product, on shapes that fill no group, quad or tile.

    Raises:
        KernelError: one differs.
    """
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32)
    out, inputs = 150, 300
    weight = draw(out, inputs) * (torch.rand(out, inputs, generator=generator) < 0.2)
    bias = draw(out)
    numbers: tuple[Number, ...] = ("int8", "fp32")
    for rows, number, tokens in product((16, 4), numbers, (1, 3, 20, 70)):
        x = draw(tokens, inputs)
        y = kernels.multiply(x, bias, Blocks.of(weight, rows, number).tensors, out)
        dense = linear(x, weight, bias) if number == "fp32" else Int8Linear(weight, bias, None)(x)
        worst = float((y - dense).abs().max() / dense.abs().max())
        if not worst <= _TOLERANCE:
            name = kernel_name(kernels.level, rows, number)
            raise KernelError(
                f"the {name} kernel for {number} in blocks of {rows}x1 differs from the dense product by {worst:.2g} "
                "of the largest value and is not used"
            )
