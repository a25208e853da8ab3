"""Preparing: the same every time, without a trace in the model, and all of it in the saved state."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.testing.outcome import Failed, Skipped
from harness.testing.serve import TEXTS, Answers, generate, identical, score
from harness.testing.snapshot import changes, global_snapshot, in_words, kept_random_state, model_snapshot
from harness.testing.subject import Subject, study_of

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.method import Method


def state_survives(subject: Subject) -> None:
    """A saved and loaded state, given to a new object of the method, gives the same; another model's is refused."""
    for part in prepared_parts(subject):
        for family, decoder in subject.each():
            state, key = part.prepare(decoder, study_of([part], decoder)), {"model": decoder.fingerprint}
            with TemporaryDirectory() as temporary:
                folder = Path(temporary) / "state"
                _save(state, folder, key, family)
                loaded = Prepared.load(folder, key)
                _require_refused(folder, {"model": "another"}, family)
            before, after = _answers(part, decoder, state), _answers(replace(part), subject.decoder(family), loaded)
            if not all(map(identical, before, after)):
                raise Failed(f"{family}: with the state saved and loaded again its answers change")


def _save(state: Prepared, folder: Path, key: dict[str, str], family: str) -> None:
    try:
        state.save(folder, key)
    except (TypeError, ValueError) as error:
        raise Failed(f"{family}: the prepared state cannot be saved as tensors and JSON: {error}") from None


def _require_refused(folder: Path, key: dict[str, str], family: str) -> None:
    try:
        Prepared.load(folder, key)
    except MethodError:
        return
    raise Failed(f"{family}: a state prepared for one model is taken for another")


def _answers(method: "Method", decoder: "Decoder", state: Prepared) -> tuple[Answers, Answers]:
    with method.attach(decoder, state):
        return score(decoder, TEXTS[:2]), generate(decoder, TEXTS[:1])


def prepares_the_same_again(subject: Subject) -> None:
    """The same model and text give the same state, whatever the global random states are."""
    for part in prepared_parts(subject):
        for family, decoder in subject.each():
            states = []
            for seed in (0, 1):
                with kept_random_state(seed):
                    states.append(part.prepare(decoder, study_of([part], decoder)))
            first, second = states
            same = first.facts == second.facts and first.tensors.keys() == second.tensors.keys()
            if not same or not all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors):
                raise Failed(f"{family}: prepared twice on the same text, it gives two states; seed its own generator")


def preparation_changes_nothing(subject: Subject) -> None:
    """Preparing leaves the model and the process as they were."""
    for part in prepared_parts(subject):
        for family, decoder in subject.each():
            score(decoder, TEXTS[:1])
            before = model_snapshot(decoder), global_snapshot()
            part.prepare(decoder, study_of([part], decoder))
            after = model_snapshot(decoder), global_snapshot()
            changed = [name for pair in zip(before, after, strict=True) for name in changes(*pair)]
            if changed:
                raise Failed(f"{family}: preparing changes {in_words(changed)}")


def prepared_parts(subject: Subject) -> Iterator["Method"]:
    """The methods that are prepared.

    Raises:
        Skipped: there is none.
    """
    parts = [part for part in subject.parts if part.needs_preparation]
    if not parts:
        raise Skipped("it needs no preparation")
    yield from parts
