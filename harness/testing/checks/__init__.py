"""The checks that every method must pass: one function each, whose first line says what must be true.

They run on generated models of several families, offline, and take seconds on a CPU.
"""

from collections.abc import Callable, Iterator, Sequence

from harness.testing.check import Check
from harness.testing.checks import (
    answers,
    batching,
    cache,
    contract,
    isolation,
    preparation,
    reshape,
    restoring,
    saving,
    support,
    training,
    weights,
    work,
)
from harness.testing.subject import FAMILIES, Checked, Subject

_BODIES: tuple[Callable[[Subject], None], ...] = (
    contract.declares_itself,
    contract.parameters_round_trip,
    contract.refuses_unknown_parameters,
    isolation.imports_cleanly,
    isolation.works_offline,
    support.supported_models,
    preparation.prepares_the_same_again,
    preparation.preparation_changes_nothing,
    preparation.state_survives,
    training.learns_from_its_study_alone,
    restoring.restores_model,
    restoring.restores_after_an_exception,
    restoring.restores_the_process,
    restoring.attaches_again,
    weights.tied_weights_change_nothing,
    answers.neutral_is_dense,
    answers.exact_is_exact,
    answers.drafts_change_nothing,
    answers.deterministic,
    answers.decides_from_the_prompt,
    batching.cached_decoding,
    batching.rows_are_independent,
    batching.padding_changes_nothing,
    reshape.keeps_units_whole,
    cache.decodes_as_if_masked,
    cache.padding_is_never_kept,
    work.affects_its_phases,
    work.saves_what_it_declares,
    work.stronger_is_cheaper,
    work.counts_what_runs,
    cache.holds_less,
    saving.saves_measurably,
)


def checks_for(method: Checked, families: Sequence[str] = FAMILIES, device: str = "cpu") -> Iterator[Check]:
    """Every check of a method, in the order in which an author wants to see them fail.

    Args:
        method: as the command line writes it, a class, an object, or a stack. A class, or a method written without
            parameters, is checked at the last and strongest of its ``examples``.
        families: the families of decoders it is tried on.
        device: where those are, such as "cuda:0".

    Raises:
        HarnessError: there is no such method, or it refuses the parameters.
    """
    subject = Subject.of(method, families, device)
    for body in _BODIES:
        name = body.__name__.replace("_", "-")
        yield Check(name, (body.__doc__ or "").partition("\n")[0], subject, body)
