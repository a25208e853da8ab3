"""The machine and the software of a run, as the record states them."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.core import cpu

_PACKAGES = ("efficiency-harness", "lm_eval", "torch", "transformers", "tokenizers", "datasets", "numpy")


class Processor(BaseModel):
    """What tells processors of one name apart; null where the system does not tell.

    Attributes:
        family, model, stepping: the numbers by which x86 processors name their design.
        instruction_sets: the vector and matrix instructions that it has, whether they were used or not.
    """

    model_config = ConfigDict(extra="forbid")

    family: int | None = None
    model: int | None = None
    stepping: int | None = None
    instruction_sets: tuple[str, ...] | None = None


class Environment(BaseModel):
    """Hardware and versions. The part that can change a result is in ``identity``.

    Attributes:
        device: "cpu", "cuda:0", ...; ``device_name`` is the processor or accelerator behind it.
        threads: intra-op threads of torch.
        instructions: the instruction set that torch computes with, such as "AVX2", and the variables that limit what
            other kernels compute with, where that decides rounding; null on an accelerator and in records that do not
            tell.
        processor: more of the processor than its name, whatever the device; null in older records.
        ram_bytes: installed memory.
        load_average: one-minute load when the run started, then when it ended.
    """

    model_config = ConfigDict(extra="forbid")

    device: str
    device_name: str
    cpu_model: str
    cpus: int
    threads: int | None
    ram_bytes: int
    os: str
    python: str
    versions: dict[str, str]
    instructions: str | None = None
    processor: Processor | None = None
    load_average: tuple[float, ...] = ()

    @property
    def identity(self) -> dict[str, object]:
        """What tells whether two results were made alike."""
        return {
            "device": self.device_name,
            "instructions": self.instructions,
            "python": self.python.rpartition(".")[0],
            # the harness's own source is told by what a run imports of it
            "versions": {name: release for name, release in self.versions.items() if name != "efficiency-harness"},
        }


def observe(device: str) -> Environment:
    """The environment of a run on this device."""
    import psutil
    import torch

    return Environment(
        device=device,
        device_name=device_name(device),
        cpu_model=cpu_model(),
        cpus=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        ram_bytes=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=versions(),
        instructions=_instructions() if device == "cpu" else None,
        processor=_processor(),
        load_average=(load(),),
    )


def processor(device: str) -> str:
    """What computes, as far as it decides rounding: an accelerator by name, a processor with its instruction set."""
    return device_name(device) if device != "cpu" else f"{cpu_model()}, {_instructions()}"


def device_name(device: str) -> str:
    """The accelerator, or the processor; what shares a processor's chip is not the processor."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return cpu_model() if device == "cpu" else f"{cpu_model()} ({device.partition(':')[0]})"


def _processor() -> Processor:
    told = cpu.described()
    numbers = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    known = {name: int(told[key]) for name, key in numbers.items() if told.get(key, "").isdigit()}
    return Processor(**known, instruction_sets=cpu.instruction_sets())


def _instructions() -> str:
    """The instruction set that torch computes with, and the variables that limit what other kernels compute with."""
    import torch

    return ", ".join([torch.backends.cpu.get_cpu_capability(), *cpu.limits()])


def rank() -> int:
    """Which process of a launch this is; 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes a launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def load() -> float:
    """The one-minute load average; 0 where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "absent"
    return installed


@cache
def cpu_model() -> str:
    """The processor's name as the system gives it."""
    return cpu.described().get("model name") or platform.processor() or platform.machine()


def git_state() -> dict[str, object] | None:
    """Commit of the harness's own checkout and whether it has changes; None when installed from a wheel."""
    package = Path(__file__).parents[1]
    asked = (["rev-parse", "--show-toplevel"], ["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
    try:
        top, commit, changes = (
            subprocess.run(["git", "-C", package, *args], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607
            for args in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    if Path(top) != package.parent:  # installed inside somebody else's checkout
        return None
    return {"commit": commit, "changed": bool(changes)}
