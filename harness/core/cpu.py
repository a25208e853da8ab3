"""Instruction sets: those of this processor, and the variables that limit which of them are used.

A machine with more plays one with less: ``HARNESS_ISA`` limits the project's own kernels, as ``ATEN_CPU_CAPABILITY``
limits torch's and ``ONEDNN_MAX_CPU_ISA`` oneDNN's.
"""

import os
from functools import cache
from pathlib import Path
from typing import Final

from harness.core.errors import SpecError

KERNEL_SETS: Final = ("plain", "avx2", "avx512", "avx512-vnni", "amx")
"""What the project's own kernels are written for, each with all before it; "plain" is C for any processor."""

_LIMITS: Final = ("HARNESS_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")

# Intel's names, by the flags of Linux.
_FLAGS: Final = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
}


def described() -> dict[str, str]:
    """What Linux says of the first processor, such as its "model name"; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


@cache
def instruction_sets() -> tuple[str, ...] | None:
    """Which vector and matrix instructions this x86 processor has; None where the system does not tell."""
    flags = described().get("flags")
    return None if flags is None else tuple(name for flag, name in _FLAGS.items() if flag in flags.split())


def kernel_limit() -> str | None:
    """The instruction set that ``HARNESS_ISA`` limits the project's own kernels to; None where it is not set.

    Raises:
        SpecError: it names none.
    """
    limit = os.environ.get("HARNESS_ISA")
    if limit and limit not in KERNEL_SETS:
        raise SpecError(f"HARNESS_ISA={limit}: expected {', '.join(KERNEL_SETS[:-1])} or {KERNEL_SETS[-1]}")
    return limit or None


def limits() -> tuple[str, ...]:
    """The variables in force that limit instruction sets, such as "HARNESS_ISA=avx512", but for torch's own."""
    return tuple(f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name))
