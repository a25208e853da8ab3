"""Every planted fault is caught by the checks that are meant for it, and by no others."""

import pytest
import torch
from transformers import AttentionInterface

from harness.contract.stack import Stack, parse
from harness.core.errors import MethodError
from harness.testing import Outcome, checks_for, run
from tests.testing.faults import FAULTS
from tests.testing.faults.speculation import Drafting, Unverified
from tests.testing.sound import Sound

NEEDS_GPT2 = {"KnowsLlamaOnly", "RefusesNamelessly"}


@pytest.fixture(autouse=True)
def _keep_functions():
    """Some faults replace this function for good, or leave attention functions behind."""
    original, functions = torch.nn.functional.softsign, dict(AttentionInterface._global_mapping)
    yield
    torch.nn.functional.softsign = original
    AttentionInterface._global_mapping.clear()
    AttentionInterface._global_mapping.update(functions)


def failing(method, *families):
    results = run(checks_for(method, families))
    return {result.name: result.message for result in results if result.outcome is Outcome.FAILED}


def test_the_sound_method_passes():
    assert failing(Sound, "llama", "gpt2") == {}


@pytest.mark.parametrize("method", FAULTS, ids=lambda method: method.__name__)
def test_a_fault_is_caught(method):
    families = ("llama", "gpt2") if method.__name__ in NEEDS_GPT2 else ("llama",)
    found = failing(method, *families)
    assert set(found) == FAULTS[method], found


@pytest.mark.parametrize(("drafting", "caught"), [(Drafting, set()), (Unverified, {"drafts-change-nothing"})])
def test_a_draft_that_writes_other_text_in_a_stack_is_caught(drafting, caught):
    stack = Stack((drafting(), *parse("layer-drop:layers=1").parts))
    check = next(check for check in checks_for(stack, ("llama",)) if check.name == "drafts-change-nothing")
    assert {result.name for result in run([check]) if result.outcome is Outcome.FAILED} == caught


def test_a_stack_that_cannot_be_is_refused_before_it_is_checked():
    with pytest.raises(MethodError, match="streaming gives none back as it was: run them apart"):
        list(checks_for("streaming+ngram"))


def test_a_patch_at_import_is_caught():
    from tests.testing.patches_torch import PatchesAtImport

    found = failing(PatchesAtImport, "llama")
    assert set(found) == {"imports-cleanly"}, found
    assert "torch.nn.functional.softsign" in found["imports-cleanly"]


def test_there_are_enough():
    assert len(FAULTS) + 1 >= 15
