"""Every planted fault is caught by the checks that are meant for it; a sound method by none."""

import pytest
import torch
from transformers import AttentionInterface

from harness.contract.stack import Stack, parse
from harness.core.errors import MethodError
from harness.testing import Outcome, checks_for, run
from harness.testing.checks import saving
from tests.testing.failing import failing
from tests.testing.faults import FAULTS
from tests.testing.faults.speculation import Drafting, Unverified
from tests.testing.sound import Sound

NEEDS_GPT2 = {"KnowsLlamaOnly", "RefusesNamelessly"}
ALWAYS = {"declares-itself", "parameters-round-trip", "refuses-unknown-parameters", "supported-models"}
"""Checks that take no time, which no fault of another kind fails."""
ELSEWHERE = {"imports-cleanly", "drafts-change-nothing"}
"""Checks whose faults are not methods on their own: see the tests of each below."""


@pytest.fixture(autouse=True)
def _measure_briefly(monkeypatch):
    """What saves nothing is timed to the end."""
    monkeypatch.setattr(saving, "TRIALS", 1)
    monkeypatch.setattr(saving, "MANY_TOKENS", 256)


@pytest.fixture(autouse=True)
def _keep_functions():
    """Some faults replace this function for good, or leave attention functions behind."""
    original, functions = torch.nn.functional.softsign, dict(AttentionInterface._global_mapping)
    yield
    torch.nn.functional.softsign = original
    AttentionInterface._global_mapping.clear()
    AttentionInterface._global_mapping.update(functions)


def test_the_sound_method_passes():
    assert failing(Sound, ["llama", "gpt2"]) == {}


@pytest.mark.parametrize("method", FAULTS, ids=lambda method: method.__name__)
def test_a_fault_is_caught(method):
    families = ("llama", "gpt2") if method.__name__ in NEEDS_GPT2 else ("llama",)
    caught = failing(method, families, FAULTS[method] | ALWAYS)
    assert set(caught) == FAULTS[method], caught


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

    caught = failing(PatchesAtImport, ["llama"], ALWAYS | {"imports-cleanly"})
    assert set(caught) == {"imports-cleanly"}, caught
    assert "torch.nn.functional.softsign" in caught["imports-cleanly"]


def test_every_check_has_a_fault():
    assert set().union(*FAULTS.values()) | ELSEWHERE == {check.name for check in checks_for(Sound)}
