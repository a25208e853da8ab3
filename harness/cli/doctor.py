"""``harness doctor``: what this machine and installation can do, and what is wrong with them."""

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from typer import Exit, Option

from harness.core.strangers import message_of


def doctor(
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of results.")] = Path("runs"),
) -> None:
    """Check versions, devices, caches and plugins. Exit code 1 if something is broken."""
    from harness.cli.columns import left, show
    from harness.cli.display import stdout

    names, states, details = zip(*_findings(output_path), strict=True)
    colours = [{"ok": "green", "note": "yellow", "broken": "red"}[state] for state in states]
    show(
        stdout(),
        [left("", names, 16, ["dim"] * len(names)), left("", states, styles=colours)],
        [left("", details, 30)],
    )
    if "broken" in states:
        raise Exit(1)


def _findings(output_path: Path) -> Iterator[tuple[str, str, str]]:
    parts = {"harness": _quiet, "software": _software, "devices": _devices, "arithmetic": _arithmetic}
    parts |= {"methods": _plugins, "measurements": _measurements, "data": _data}
    for name, part in parts.items():
        try:
            yield from part()
        except (ImportError, OSError) as error:  # an absent package, or a library that cannot be opened
            yield name, "broken", f"cannot be looked at: {message_of(error)}"
    free = shutil.disk_usage(_existing(output_path)).free
    yield f"results in {output_path}/", "ok" if free > 1e9 else "note", f"{free / 1e9:.1f} GB free"


def _quiet() -> Iterator[tuple[str, str, str]]:
    """Nothing to say, but that what keeps libraries quiet can be imported."""
    from harness.evaluate import quiet

    quiet.silence()
    yield from ()


def _software() -> Iterator[tuple[str, str, str]]:
    from harness.core import environment

    for name, version in environment.versions().items():
        yield name, "broken" if version == "absent" else "ok", version


def _devices() -> Iterator[tuple[str, str, str]]:
    from harness.core import environment

    here = environment.observe("cpu")
    yield (
        "cpu",
        "ok",
        f"{here.cpu_model}, {here.cpus} logical, {here.threads} threads, {here.ram_bytes / 1e9:.0f} GB",
    )
    if here.load_average and here.load_average[0] > here.cpus / 2:
        yield "load", "note", f"{here.load_average[0]}: other work is running; measured times would be noisy"
    yield from _gpus()


def _gpus() -> Iterator[tuple[str, str, str]]:
    """The cards that torch can use, or why it can use none."""
    import torch

    from harness.measure.accelerators import of_device
    from harness.measure.gpu import driver_version
    from harness.measure.meters import why_no_counter
    from harness.run.loading import why_no_cuda

    if (reason := why_no_cuda()) is not None:
        yield "gpu", "note", f"none that torch can use: {reason}; runs go to the CPU"
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    yield "gpu driver", "ok", f"{driver_version() or 'its version is not told'}; torch is built for {built}"
    for index in range(torch.cuda.device_count()):
        properties, device = torch.cuda.get_device_properties(index), torch.device("cuda", index)
        free, total = torch.cuda.mem_get_info(index)
        sheet = ", ".join(machine.name for machine in of_device(properties.name)) or "none that is known"
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        capability = f"compute capability {properties.major}.{properties.minor}"
        yield str(device), "ok", f"{properties.name}, {memory}, {capability}, data sheet: {sheet}"
        counter = why_no_counter(device)
        yield f"{device} energy", "note" if counter else "ok", counter or "counted by the card (NVML)"


def _arithmetic() -> Iterator[tuple[str, str, str]]:
    """Instruction sets and the operators that depend on them."""
    import torch

    from harness.core import cpu
    from harness.measure.operators import operators

    sets = cpu.instruction_sets()
    names = "not told by this system" if sets is None else ", ".join(sets) or "nothing beyond x86-64"
    used = ", ".join([f"torch uses {torch.backends.cpu.get_cpu_capability()}", *cpu.limits()])
    yield "instruction sets", "ok" if sets else "note", f"{names}; {used}"
    for operator in operators():
        yield operator.name, "ok" if operator.fast else "note", operator.detail


def _plugins() -> Iterator[tuple[str, str, str]]:
    """Every method, imported."""
    from harness.contract import registry

    for item in registry.listings():
        about = item.error or f"{item.distribution} {item.version}"
        yield f"method {item.name}", "broken" if item.error else "ok", about


def _measurements() -> Iterator[tuple[str, str, str]]:
    """What can be measured here, with what provenance, and what would allow more."""
    import torch

    from harness.measure.accelerators import names
    from harness.measure.memory import forgets_peaks
    from harness.measure.meters import measured_sources, why_not_measured

    cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]

    yield "FLOPs, bytes, depth", "ok", "counted from what runs, on every machine"
    clock = "events on the GPU" if torch.cuda.is_available() else "CPU time with one thread, wall time with more"
    yield "idealized time", "ok", f"modelled: `harness profile` measures this host ({clock})"
    yield "roofline", "ok", f"modelled: by data sheets {', '.join(names())}; by what is measured here this-host"
    steadier = "a GPU is waited for at every token" if cards else "OMP_NUM_THREADS=1 makes it steadier"
    yield "latency", "ok", f"measured: wall time of single requests; {steadier}"
    sources = measured_sources(cards)
    if sources:
        yield "energy", "ok", f"measured: {', '.join(sources)}"
    else:
        yield "energy", "note", f"estimated by codecarbon, time x nominal power: {why_not_measured()}"
    resets = forgets_peaks()
    peak = "measured: peaks of every phase" if resets else "not here: /proc/self/clear_refs cannot be written"
    if cards:
        peak = f"measured: peaks of what torch allocates on the GPU; on a CPU {peak}"
    yield "memory", "ok" if resets or cards else "note", peak


def _data() -> Iterator[tuple[str, str, str]]:
    from huggingface_hub import constants

    from harness.core.paths import cache_folder
    from harness.evaluate.availability import datasets_cache
    from harness.model.source import BUNDLED, cached_models

    reader = metadata.version("gguf") if find_spec("gguf") else None
    yield "GGUF", "ok" if reader else "note", reader or "cannot be read: pip install 'efficiency-harness[gguf]'"
    present = (BUNDLED / "config.json").is_file()
    yield "bundled model", "ok" if present else "broken", str(BUNDLED)
    yield "hub cache", "ok", f"{constants.HF_HUB_CACHE}: {len(cached_models())} models"
    prepared = datasets_cache()
    count = sum(1 for _ in prepared.glob("*___*")) if prepared.is_dir() else 0
    yield "data sets", "ok" if count else "note", f"{prepared}: {count} prepared"
    yield (
        "network",
        "note" if constants.HF_HUB_OFFLINE else "ok",
        "off" if constants.HF_HUB_OFFLINE else "used if asked",
    )
    writable = os.access(_existing(cache_folder()), os.W_OK)
    yield "own cache", "ok" if writable else "broken", str(cache_folder())


def _existing(path: Path) -> Path:
    """The nearest folder of the path that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
