"""What a method must not touch: other libraries when it is imported, and the network ever."""

import inspect
import json
import subprocess
import sys
from contextlib import suppress
from functools import cache

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
    importer = _importer()
    assert importer.stdin is not None
    assert importer.stdout is not None
    importer.stdin.write(json.dumps(request) + "\n")
    importer.stdin.flush()
    answer = importer.stdout.readline()
    effects = json.loads(answer) if answer else {"error": "the process died"}
    if "error" in effects:
        raise Failed(f"{module} cannot be imported in a fresh process: {effects['error']}")
    return dict(effects)


@cache
def _importer() -> "subprocess.Popen[str]":
    """A process that has the libraries loaded; it ends when this one does and its input is closed."""
    command = [sys.executable, "-m", "harness.testing.libraries"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603


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
