"""What a method must not touch: other libraries when it is imported, and the network ever."""

import inspect
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import IO

from harness.contract import registry
from harness.testing import libraries
from harness.testing.network import no_network
from harness.testing.outcome import Failed
from harness.testing.serve import TEXTS, generate, score
from harness.testing.snapshot import in_words
from harness.testing.subject import Subject


def imports_cleanly(subject: Subject) -> None:
    """Importing the module, in a fresh process, replaces nothing in torch and transformers and uses no network."""
    for part in subject.parts:
        module = type(part).__module__
        effects = _import(module, inspect.getfile(type(part)) if _loose(module) else "")
        if effects["replaced"]:
            raise Failed(
                f"importing {module} replaces {in_words(effects['replaced'])} for every other method; replace it in "
                "attach and restore it"
            )
        if effects["attempts"]:
            raise Failed(f"importing {module} connects to {in_words(effects['attempts'])}")


def _loose(module: str) -> bool:
    """Whether a module is a file that no import statement would find."""
    return module == "__main__" or module.startswith("harness_loose_")


@cache
def _import(module: str, file: str) -> dict[str, list[str]]:
    request = {"module": "loose" if file else module, "file": file, "path": sys.path}
    importer = next((early for early in _EARLY if module not in early.loaded), None) or _fresh()
    importer.requests.write(json.dumps(request) + "\n")
    importer.requests.flush()
    answer = importer.answers.readline()
    effects = json.loads(answer) if answer else {"error": "the process died"}
    if "error" in effects:
        raise Failed(f"{module} cannot be imported in a fresh process: {effects['error']}")
    return dict(effects)


@dataclass(frozen=True)
class _Importer:
    """A process that has the libraries loaded, and imports what it is asked to; it ends when this one does.

    Attributes:
        loaded: modules that this process had imported when it was forked, which say nothing when imported again.
    """

    requests: IO[str]
    answers: IO[str]
    loaded: frozenset[str] = frozenset()


_EARLY: list[_Importer] = []


def load_early() -> None:
    """Load the libraries and fork the process that imports methods, before any method is imported here.

    Without it, or where this process has imported a method, that is a new process, which takes seconds.
    """
    if _EARLY or registry.imported() or not hasattr(os, "fork"):
        return
    libraries.load()
    (taken, asked), (told, answered) = os.pipe(), os.pipe()
    if os.fork() == 0:
        try:
            os.close(asked)  # else its own input would never end
            libraries.serve(os.fdopen(taken), os.fdopen(answered, "w"))
        finally:
            os._exit(0)
    os.close(taken)
    os.close(answered)
    _EARLY.append(_Importer(os.fdopen(asked, "w"), os.fdopen(told), frozenset(sys.modules)))


@cache
def _fresh() -> _Importer:
    command = [sys.executable, "-m", "harness.testing.libraries"]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert started.stdin is not None
    assert started.stdout is not None
    return _Importer(started.stdin, started.stdout)


def works_offline(subject: Subject) -> None:
    """Preparing, attaching, scoring and generating use no network, also where they fail."""
    for family in subject.families:
        decoder = subject.decoder(family)
        with no_network() as attempts, suppress(Exception), subject.attached(decoder):
            score(decoder, TEXTS[:1])
            generate(decoder, TEXTS[:1])
        if attempts:
            raise Failed(
                f"{family}: it connects to {in_words(attempts)}; what a method needs comes with it, from the model "
                "or from the calibration text"
            )
