"""This machine as an accelerator: its measured peaks, kept in the user's cache."""

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch

from harness.core.files import write_atomic
from harness.core.paths import cache_folder
from harness.measure.accelerators import HOST, Accelerator
from harness.measure.clock import clock_for, seconds

if TYPE_CHECKING:
    from harness.core.environment import Environment

SIZE, TIMES = 2048, 6
COPY_BYTES: Final = 256 * 2**20


def this_host(here: "Environment", dtype: torch.dtype) -> Accelerator:
    """The machine's best of several matrix products and matrix-vector products in a data type, on its instruction sets.

    Decoding is bound by the bandwidth of matrix-vector products, which on a processor depends on the type; the
    bandwidth of a plain copy is in ``source``.
    """
    name = str(dtype).removeprefix("torch.")
    plain = json.dumps([here.device_name, here.instructions, here.cpus, here.threads, here.versions.get("torch"), name])
    path = cache_folder() / "hosts" / f"{hashlib.sha256(plain.encode()).hexdigest()[:16]}.json"
    try:
        return Accelerator.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        measured = _measured(torch.device(here.device), dtype, name)
        write_atomic(path, measured.model_dump_json(indent=2) + "\n")
        return measured


def _measured(device: torch.device, dtype: torch.dtype, name: str) -> Accelerator:
    square, vector = torch.randn(SIZE, SIZE, device=device).to(dtype), torch.randn(SIZE, 1, device=device).to(dtype)
    # larger than caches, so that the weights come from memory as they do in decoding
    rows = COPY_BYTES // (dtype.itemsize * SIZE)
    tall = torch.randn(rows, SIZE, device=device).to(dtype)  # [rows, SIZE]
    product = _best(device, lambda: square @ square)
    reading = _best(device, lambda: tall @ vector)
    copying = _best(device, lambda: tall.clone())
    copied = 2 * tall.nbytes / copying / 1e9
    return Accelerator(
        name=HOST,
        peaks={name: 2 * SIZE**3 / product},
        bandwidth=tall.nbytes / reading,
        source=f"measured: {SIZE}^3 matrix product, {rows} x {SIZE} matrix-vector product; copy {copied:.0f} GB/s",
    )


def _best(device: torch.device, call: Callable[[], object]) -> float:
    return min(seconds(clock_for(device), call) for _ in range(TIMES))
