"""The project's own kernels by instruction set: C that is compiled on first use and checked before it is used.

What runs is the best set that the processor has and ``HARNESS_ISA`` allows; one library serves all processors.
"""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from harness.core import cpu
from harness.core.errors import CompileError, KernelError, SpecError
from harness.model.weights.compiled import library

SOURCE = Path(__file__).with_name("kernels")

log = logging.getLogger("harness")


@cache
def compiled() -> Any:
    """The library of all kernels.

    Raises:
        CompileError: with the reason in a sentence.
    """
    return library(SOURCE)


def reasons(check: Callable[[int], None]) -> tuple[str | None, ...]:
    """For each of ``cpu.KERNEL_SETS`` why its kernels do not run here; None where they do.

    Args:
        check: raises ``KernelError`` where the kernels of a set, which it is given as its place, compute something else
            than the dense product; they are left out, with a warning.

    Raises:
        SpecError: ``HARNESS_ISA`` names no instruction set, or one that this processor does not have.
    """
    limit = cpu.kernel_limit()
    try:
        best: int = compiled().block_sparse_level()
    except CompileError as error:
        return (str(error),) * len(cpu.KERNEL_SETS)
    highest = cpu.KERNEL_SETS.index(limit) if limit else best
    if highest > best:
        raise SpecError(f"HARNESS_ISA={limit}: the best that this processor has is {cpu.KERNEL_SETS[best]}")
    return tuple(_reason(check, level, best, highest) for level in range(len(cpu.KERNEL_SETS)))


def _reason(check: Callable[[int], None], level: int, best: int, highest: int) -> str | None:
    name = cpu.KERNEL_SETS[level]
    if level > best:
        return f"this processor has no {name}"
    if level > highest:
        return f"HARNESS_ISA={cpu.KERNEL_SETS[highest]} leaves {name} out"
    return _checked(check, level)


@cache
def _checked(check: Callable[[int], None], level: int) -> str | None:
    try:
        check(level)
    except KernelError as error:
        log.warning(str(error))
        return str(error)
    return None
