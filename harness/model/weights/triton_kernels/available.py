"""Whether Triton and what it needs are on this machine, without importing it."""

import os
import shutil
from importlib.util import find_spec
from typing import Final

CAPABILITY: Final = (8, 0)
"""The compute capability that the kernels need: Ampere's, the first that multiplies bfloat16."""


def missing() -> str | None:
    """What Triton lacks here, in words; None where nothing is missing.

    Triton compiles what launches a kernel with the system's C compiler, and takes those that are named here.
    """
    if find_spec("triton") is None:
        return "Triton is not installed: torch's builds for CUDA bring it on Linux, and pip install triton does"
    compiler = os.environ.get("CC")
    if not any(shutil.which(name) for name in ((compiler,) if compiler else ("gcc", "clang"))):
        remedy = f"CC={compiler} is not found" if compiler else "install gcc or clang, or set CC"
        return f"Triton needs a C compiler on this machine, and there is none: {remedy}"
    return None
