"""Detaching leaves nothing behind: in the model, after an exception, in the process, in the method itself."""

from typing import TYPE_CHECKING

import torch

from harness.testing.libraries import library_functions, replaced
from harness.testing.outcome import Failed
from harness.testing.serve import TEXTS, generate, identical, score
from harness.testing.snapshot import changes, global_snapshot, in_words, kept_random_state, model_snapshot
from harness.testing.subject import Subject, on

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

_UNUSUAL_SEED = 72_413_907
"""Not 0, with which other code may have seeded, so that a method that seeds with 0 would not be noticed."""


def restores_model(subject: Subject) -> None:
    """After the method, the model is what it was: modules, types, hooks, weights, configuration, and its answers."""
    for family, decoder in subject.each():
        _warm(decoder)
        dense, before = score(decoder, TEXTS), model_snapshot(decoder)
        with subject.attached(decoder):
            _warm(decoder)
        with on(family):
            _require_unchanged(before, decoder, "after it is detached")
            if not identical(score(decoder, TEXTS), dense):
                raise Failed("after it is detached, the model's answers are not dense")


def restores_after_an_exception(subject: Subject) -> None:
    """The same after an exception in the ``with`` block, or in a layer; and the exception comes out."""
    for family, decoder in subject.each():
        _warm(decoder)
        before = model_snapshot(decoder)
        with on(family):
            for where in ("the with block", "the head"):
                _require_passed_on(subject, decoder, where)
                _require_unchanged(before, decoder, f"after an exception in {where}")


class _PlannedError(Exception):
    """Raised in the middle of things."""


def _require_passed_on(subject: Subject, decoder: "Decoder", where: str) -> None:
    handle = None
    try:
        with subject.attached(decoder):
            if where == "the with block":
                raise _PlannedError
            handle = decoder.anatomy.head.register_forward_pre_hook(_raise)
            score(decoder, TEXTS[:1])
    except _PlannedError:
        return
    finally:
        if handle is not None:
            handle.remove()
    raise Failed(f"an exception in {where} does not come out of the with block; attach must not swallow it")


def _raise(module: torch.nn.Module, args: object) -> None:
    raise _PlannedError


def restores_the_process(subject: Subject) -> None:
    """The global random states, torch's settings and the libraries' functions are as they were."""
    functions = library_functions()
    for family, decoder in subject.each():
        _warm(decoder)
        with kept_random_state(_UNUSUAL_SEED):
            before = global_snapshot()
            with subject.attached(decoder):
                _warm(decoder)
            changed = changes(before, global_snapshot())
        if changed:
            raise Failed(
                f"{family}: it changes {in_words(changed)}; draw random numbers from a torch.Generator of the method's "
                "own, and restore everything else"
            )
    remaining = replaced(functions, library_functions())
    if remaining:
        raise Failed(f"after it is detached, {in_words(remaining)} stays replaced")


def attaches_again(subject: Subject) -> None:
    """Attached a second time, with the same prepared state, it gives the same."""
    for family, decoder in subject.each():
        answers = []
        for _ in range(2):
            with subject.attached(decoder):
                answers.append((score(decoder, TEXTS[:2]), generate(decoder, TEXTS[:1])))
        if not all(map(identical, *answers)):
            raise Failed(f"{family}: attached a second time, its answers differ from the first time")


def _warm(decoder: "Decoder") -> None:
    """Run the model, so that it has set up whatever it sets up on its first forward."""
    score(decoder, TEXTS[:2])
    generate(decoder, TEXTS[:1], steps=2)


def _require_unchanged(before: dict[str, object], decoder: "Decoder", when: str) -> None:
    changed = changes(before, model_snapshot(decoder))
    if changed:
        raise Failed(f"{when}, something differs from before: {in_words(changed)}")
