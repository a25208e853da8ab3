"""Prepared states for a run: from the cache where they are, by preparing where they are not."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from harness.contract.identity import digest, model_identity, source_of, tokenizer_digest
from harness.contract.mixins import OnText, Shareable
from harness.contract.prepared import Prepared
from harness.contract.states import States
from harness.contract.study import Study, Workbench
from harness.core.errors import MethodError
from harness.core.source import of_modules

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.method import Method

PREPARES: Final = ("harness.contract.study", "harness.contract.prepared", "harness.model.layouts")
"""Modules beside a method's own whose source can change its state."""


@dataclass
class Preparation:
    """Prepared states for one run.

    Attributes:
        states: the cache.
        calibration: the calibration text; None where no method of the run needs it.
        announce: told, in words, when a state is being made.
    """

    states: States
    calibration: Study | None
    announce: Callable[[str], None] = lambda message: None

    def state(self, method: "Method", model: "Decoder", below: tuple[str, ...] = ()) -> Prepared:
        """The method's state on this model, with the methods of the fingerprints ``below`` already attached.

        A ``Shareable`` method that was given a folder gets the state in it. Several processes that need one state
        make it once: the others wait.

        Raises:
            MethodError: a given state was made for another method, model (or revision of it) or tokenizer.
        """
        if isinstance(method, Shareable) and method.state is not None:
            return Prepared.load(method.state, _owner(method, model))
        if not method.needs_preparation or self.calibration is None:
            return Prepared()
        study = self.calibration.limited(method.needs)
        key = self.key(method, model, below)
        folder = self.states.folder(method.name, key)
        with self.states.locked(folder, lambda: self.announce(f"another process prepares {method.label}: waiting")):
            if folder.is_dir():
                try:
                    state = Prepared.load(folder, key)
                except MethodError as error:
                    self.announce(f"{error}; preparing again")
                    shutil.rmtree(folder)
                else:
                    os.utime(folder)
                    return state
            self.announce(f"preparing {method.label} on {study.source}")
            with _watched(method, model, study.workbench):
                prepared = method.prepare(model, self._with_workbench(study, method, model, below))
            if not isinstance(prepared, Prepared):
                raise MethodError(
                    f"{type(method).__name__}.prepare must return Prepared, and returned a {type(prepared).__name__}"
                )
            prepared.save(folder, key, method.label)
            for cleared in self.states.clear(keep=folder):
                self.announce(f"the states on this machine fill their quota: cleared {cleared.label}, unused longest")
            return Prepared.load(folder, key)  # what later runs will get, in the types that JSON leaves

    def lacks(self, method: "Method", model: "Decoder", below: tuple[str, ...] = ()) -> bool:
        """Whether the method's state is still to be made."""
        if not method.needs_preparation or self.calibration is None:
            return False
        return not self.states.folder(method.name, self.key(method, model, below)).is_dir()

    def beside(self, model: "Decoder") -> "Preparation":
        """The same, with the model as it stands now as the dense one that methods learn from."""
        return replace(self, calibration=self.calibration and self.calibration.beside(model))

    def key(self, method: "Method", model: "Decoder", below: tuple[str, ...] = ()) -> dict[str, Any]:
        """Everything that the method's state depends on."""
        return self._surroundings(method, model, below) | {"name": method.name, "method": method.fingerprint}

    def _surroundings(self, method: "Method", model: "Decoder", below: tuple[str, ...]) -> dict[str, Any]:
        """What a state depends on beside the method's parameters and source."""
        return model_identity(model) | {
            "methods below": list(below),
            "calibration text": self.calibration.limited(method.needs).fingerprint if self.calibration else None,
            "source": of_modules(*PREPARES).digest,
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }

    def _with_workbench(self, study: Study, method: "Method", model: "Decoder", below: tuple[str, ...]) -> Study:
        """The study, with a work folder that all settings of the method on this model and text share."""
        workbench = study.workbench
        if workbench.folder is None:
            return study
        place = digest([source_of(type(method)).digest, self._surroundings(method, model, below)])
        return replace(study, workbench=replace(workbench, folder=workbench.folder / place[:16]))


@contextmanager
def _watched(method: "Method", model: "Decoder", workbench: Workbench) -> Iterator[None]:
    """Show how far a method has come that takes calibration windows through the layers: the calls of its layers."""
    if not isinstance(method, OnText):
        yield
        return
    blocks = model.live
    left = method.samples * method.sweeps_on(model) * len(blocks)
    with workbench.bar(f"preparing {method.label}") as bar, ExitStack() as hooks:
        if bar is None:
            yield
            return

        def advance(*_: object) -> None:
            nonlocal left
            if left > 0:
                left -= 1
                bar.advance(1)

        bar.expect(left)
        for block in blocks:
            hooks.callback(block.module.register_forward_pre_hook(advance).remove)
        yield
        bar.advance(left)  # the text may give fewer windows


def _owner(method: "Method", model: "Decoder") -> dict[str, Any]:
    """What a state must have been made for to be of use: the method by name, the model, its tokenizer."""
    return {"name": method.name, "model": model.fingerprint, "tokenizer": tokenizer_digest(model.tokenizer)}
