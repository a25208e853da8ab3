"""A folder of C files, compiled on first use by the system's compiler into the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.core.errors import CompileError
from harness.core.paths import cache_folder

FLAGS = ("-O3", "-shared", "-fPIC")
_TIMEOUT = 300.0


def library(folder: Path) -> ctypes.CDLL:
    """The library that a folder of C files makes, with OpenMP where the compiler has it.

    Raises:
        CompileError: with the reason in a sentence.
    """
    sources = sorted(folder.glob("*.c"))
    if not sources:
        raise CompileError(f"no C files in {folder}: the installation is incomplete")
    compiler = _compiler()
    version = _run([compiler, "--version"])
    if version.returncode:
        raise CompileError(f"the C compiler {compiler} does not run: {_last_line(version.stderr)}")
    texts = [file.read_text() for file in sorted(folder.glob("*.[ch]"))]
    identity = "\0".join((*texts, compiler, version.stdout, *FLAGS, platform.machine()))
    built = cache_folder() / "kernels" / f"{folder.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    try:
        if not built.is_file():
            _build(compiler, sources, built)
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise CompileError(f"the compiled {folder.name} cannot be kept or loaded: {error}") from error


def _compiler() -> str:
    chosen = os.environ.get("CC")
    for name in (chosen,) if chosen else ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return path
    raise CompileError(f"no C compiler: {f'CC={chosen} is not found' if chosen else 'install gcc or clang, or set CC'}")


def _build(compiler: str, sources: Sequence[Path], built: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        output = Path(folder) / built.name
        for parallel in (["-fopenmp"], []):  # a compiler may lack it
            done = _run([compiler, *FLAGS, *parallel, "-o", str(output), *map(str, sources), "-lm"])
            if done.returncode == 0:
                output.replace(built)  # atomic: another process may build it at the same time
                return
    raise CompileError(f"{compiler} cannot compile {sources[0].parent.name}: {_last_line(done.stderr)}")


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(  # noqa: S603 - the user's own compiler
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _last_line(text: str) -> str:
    errors = [line for line in text.splitlines() if "error" in line] or text.splitlines() or ["it says nothing"]
    return errors[0].strip()[:200]
