"""Named accelerators and prices, read from ``accelerators.yaml``."""

import re
from datetime import date
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from harness.core.errors import HarnessError, UnknownNameError

REGISTRY: Final = Path(__file__).with_name("accelerators.yaml")
HOST: Final = "this-host"
"""The name of the machine that the harness runs on, whose peaks are measured."""
_ANOTHER: Final = "Ti|SUPER|D|Laptop|Max-Q"
"""Words after a card's name that make it another card, faster or slower."""
_NEAREST: Final = {"bfloat16": "float16", "float16": "bfloat16"}


class Accelerator(BaseModel):
    """What a machine can do at most.

    Attributes:
        device: what the device's own name contains, such as "H100 PCIe"; empty for this host.
        peaks: dense operations per second by data type, such as "bfloat16".
        bandwidth: bytes of memory per second.
        memory: bytes; null if it depends on the machine.
        tdp: watts; null where the vendor states none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    device: str = ""
    peaks: dict[str, float]
    bandwidth: float
    memory: float | None = None
    tdp: float | None = None
    source: str

    def states(self, dtype: str) -> bool:
        """Whether a peak of the type is known."""
        return bool({dtype, _NEAREST.get(dtype)} & self.peaks.keys())

    def peak(self, dtype: str) -> float:
        """Operations per second in a data type; the other 16-bit float where only that one is stated.

        Raises:
            HarnessError: no peak of the type is known.
        """
        for name in (dtype, _NEAREST.get(dtype)):
            if name in self.peaks:
                return self.peaks[name]
        raise HarnessError(f"accelerator {self.name} has no peak for {dtype}; known: {', '.join(self.peaks)}")


class Prices(BaseModel):
    """US dollars for an hour of one accelerator, with the day they are from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dated: date
    source: str
    usd_per_hour: dict[str, float]


class _Registry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    retrieved: date
    prices: Prices
    accelerators: dict[str, Accelerator]


def accelerator(name: str) -> Accelerator:
    """The accelerator of that name.

    Raises:
        UnknownNameError: there is none.
    """
    known = _registry().accelerators
    if name not in known:
        raise UnknownNameError("accelerator", name, [*known, HOST], see=f"Known: {', '.join([*known, HOST])}.")
    return known[name]


def names() -> list[str]:
    """The accelerators of the registry."""
    return list(_registry().accelerators)


def of_device(device: str) -> list[Accelerator]:
    """The accelerator that a device's own name fits best, such as "NVIDIA H100 80GB HBM3"; none of an unknown one."""
    known = [entry for entry in _registry().accelerators.values() if _fits(entry.device, device)]
    return sorted(known, key=lambda entry: -len(entry.device))[:1]


def _fits(part: str, device: str) -> bool:
    """Whether a name contains a part as whole words, and no word follows that makes it another card."""
    return bool(re.search(rf"(?<!\w){re.escape(part)}(?!\w)(?! (?:{_ANOTHER})\b)", device, re.IGNORECASE))


def prices() -> Prices:
    """The dated price table."""
    return _registry().prices


@cache
def _registry() -> _Registry:
    import yaml

    plain = yaml.safe_load(REGISTRY.read_text())
    for name, entry in plain["accelerators"].items():
        entry["name"] = name
    return _Registry.model_validate(plain)
