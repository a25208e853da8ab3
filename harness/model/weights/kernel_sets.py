"""The project's own kernels by instruction set: C that is compiled on first use and checked before it is used.

One library serves all processors: each set's functions are compiled for it, and called where the processor has it and
``HARNESS_ISA`` allows it.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from harness.core.cpu import KERNEL_SETS
from harness.core.errors import KernelError, SpecError

SOURCE = Path(__file__).with_name("kernels")

Kernels = TypeVar("Kernels")

log = logging.getLogger("harness")


def by_set(limit: str | None, best: int, load: Callable[[int], Kernels]) -> tuple[Kernels | str, ...]:
    """For each of ``KERNEL_SETS`` its kernels, or why they do not run here.

    Args:
        limit: what ``HARNESS_ISA`` says.
        best: the place of the best set that the processor has.
        load: the kernels of a set by its place. It raises ``KernelError`` where they compute something else than the
            dense product; they are left out, with a warning.

    Raises:
        SpecError: the limit is a set that this processor does not have.
    """
    if limit is not None and KERNEL_SETS.index(limit) > best:
        raise SpecError(f"HARNESS_ISA={limit}: the best that this processor has is {KERNEL_SETS[best]}")
    loaded: list[Kernels | str] = []
    for level, name in enumerate(KERNEL_SETS):
        if level > best:
            loaded.append(f"this processor has no {name}")
        elif limit is not None and level > KERNEL_SETS.index(limit):
            loaded.append(f"HARNESS_ISA={limit} leaves {name} out")
        else:
            loaded.append(_checked(load, level))
    return tuple(loaded)


def _checked(load: Callable[[int], Kernels], level: int) -> Kernels | str:
    try:
        return load(level)
    except KernelError as error:
        log.warning(str(error))
        return str(error)
