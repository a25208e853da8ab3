"""This machine as an accelerator: its measured peaks, kept in the user's cache."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from harness.core.files import write_atomic
from harness.core.paths import cache_folder
from harness.measure.accelerators import HOST, Accelerator
from harness.measure.clock import clock_for, current, seconds

if TYPE_CHECKING:
    from harness.core.environment import Environment

VERSION: Final = 2
"""Of the procedure: peaks that another one measured are measured again."""
TIMES: Final = 6


@dataclass(frozen=True)
class Sizes:
    """How large the work is that peaks are measured with.

    Attributes:
        product: rows and columns of the square matrices that are multiplied.
        copied: bytes of what is read and copied, more than caches hold.
        calls: made one after another between two readings of the clock: a launch takes as long as a small product.
    """

    product: int
    copied: int
    calls: int


SIZES: Final = {"cpu": Sizes(2048, 256 * 2**20, 1), "cuda": Sizes(8192, 2**30, 8)}
"""By the kind of device; others are measured as a GPU, as launching takes them as long."""


def this_host(here: "Environment", dtype: torch.dtype) -> Accelerator:
    """What this machine reached in a data type, on its instruction sets: the best of several products and copies.

    The bandwidth is the larger of a matrix-vector product's, which bounds decoding and depends on the type on a
    processor, and of a copy's: a bound that a run could beat would be none.
    """
    name = str(dtype).removeprefix("torch.")
    plain = json.dumps(
        [VERSION, here.device_name, here.instructions, here.cpus, here.threads, here.versions.get("torch"), name]
    )
    path = cache_folder() / "hosts" / f"{hashlib.sha256(plain.encode()).hexdigest()[:16]}.json"
    try:
        return Accelerator.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        measured = measured_peaks(torch.device(here.device), dtype)
        write_atomic(path, measured.model_dump_json(indent=2) + "\n")
        return measured


def measured_peaks(device: torch.device, dtype: torch.dtype, sizes: Sizes | None = None) -> Accelerator:
    """The peaks of a device in a data type, with work of the sizes for its kind, or of others."""
    sizes = sizes or SIZES.get(device.type, SIZES["cuda"])
    name, size = str(dtype).removeprefix("torch."), sizes.product
    square, vector = (torch.randn(size, columns, device=device).to(dtype) for columns in (size, 1))
    # larger than caches, so that the weights come from memory as they do in decoding
    tall = torch.randn(sizes.copied // (dtype.itemsize * size), size, device=device, dtype=dtype)  # [rows, size]
    copy = torch.empty_like(tall)
    product = _best(device, lambda: square @ square, sizes.calls)
    reading = tall.nbytes / _best(device, lambda: tall @ vector, sizes.calls)
    copying = 2 * tall.nbytes / _best(device, lambda: copy.copy_(tall), sizes.calls)  # read and written
    return Accelerator(
        name=HOST,
        peaks={name: 2 * size**3 / product},
        bandwidth=max(reading, copying),
        source=f"measured here: {size}^3 product; {len(tall)} x {size} matrix-vector product {reading / 1e9:.0f} GB/s, "
        f"copy {copying / 1e9:.0f} GB/s",
    )


def _best(device: torch.device, call: Callable[[], object], calls: int) -> float:
    """Seconds of a call: the least of several series of calls without a pause."""

    def series() -> None:
        for _ in range(calls):
            call()

    with current(device):
        return min(seconds(clock_for(device), series) for _ in range(TIMES)) / calls
