"""Prepared states for a run: from the cache where they are, by preparing where they are not.

A state is keyed by everything it depends on: the method, the methods applied before it, the model, the calibration
text and the library versions.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contract.calibration import Calibration
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.method import Method


@dataclass
class Preparation:
    """Prepared states for one run: from the cache where they are, by preparing where they are not.

    Attributes:
        folder: the cache.
        calibration: the calibration text; None where no method of the run needs it.
        announce: told, in words, when a state is being made.
    """

    folder: Path
    calibration: Calibration | None
    announce: Callable[[str], None] = lambda message: None

    def state(self, method: "Method", model: "Decoder", below: tuple[str, ...] = ()) -> Prepared:
        """The method's state on this model, with the methods of the fingerprints ``below`` already attached.

        A method whose parameter ``state`` names a folder gets the state in it.

        Raises:
            MethodError: that state was made for another method, model (or revision of it) or tokenizer.
        """
        if (given := getattr(method, "state", None)) is not None:
            return Prepared.load(given, _owner(method, model))
        if not method.needs_preparation or self.calibration is None:
            return Prepared()
        key = self.key(method, model, below)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        folder = self.folder / f"{method.name}-{digest[:16]}"
        if folder.is_dir():
            try:
                return Prepared.load(folder, key)
            except MethodError as error:
                self.announce(f"{error}; preparing again")
                shutil.rmtree(folder)
        self.announce(f"preparing {method.label} on {self.calibration.source}")
        method.prepare(model, self._at_its_place(method, below)).save(folder, key)
        return Prepared.load(folder, key)  # what later runs will get, in the types that JSON leaves

    def _at_its_place(self, method: "Method", below: tuple[str, ...]) -> Calibration:
        """The calibration, with a folder for finished parts that nothing but the method's parameters may share."""
        assert self.calibration is not None
        workbench = self.calibration.workbench
        if workbench.folder is None:
            return self.calibration
        place = hashlib.sha256(json.dumps([method.source, self.calibration.fingerprint, *below]).encode()).hexdigest()
        folder = workbench.folder / place[:16]
        return replace(self.calibration, workbench=replace(workbench, folder=folder))

    def key(self, method: "Method", model: "Decoder", below: tuple[str, ...] = ()) -> dict[str, Any]:
        """Everything that the method's state depends on."""
        return _owner(method, model) | {
            "method": method.fingerprint,
            "methods below": list(below),
            "calibration text": self.calibration.fingerprint if self.calibration else None,
            "versions": {name: version(name) for name in ("efficiency-harness", "torch", "transformers")},
        }


def _owner(method: "Method", model: "Decoder") -> dict[str, Any]:
    """What a state must have been made for to be of use: the method by name, the model, its tokenizer."""
    return {"name": method.name, "model": model.fingerprint, "tokenizer": _tokenizer_digest(model)}


def _tokenizer_digest(model: "Decoder") -> str:
    """What the tokenizer makes of text, as far as its vocabulary and special tokens decide it."""
    known = [sorted(model.tokenizer.get_vocab().items()), model.tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:16]
