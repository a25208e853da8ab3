"""What methods declare is read from one table: by stacks, by the documentation and by the check of types."""

from typing import Any

import pytest

from harness.contract.describe import describe
from harness.contract.facts import FACTS, Phase, Savings, fold, mistyped
from harness.contract.method import Method
from harness.contract.stack import Stack
from tests.toys import Paper, Toy

PREFILL, DECODE = frozenset({Phase.PREFILL}), frozenset({Phase.DECODE})


def declaring(**facts: Any) -> Method:
    """A method that declares what is given."""
    return type("Declaring", (Toy,), facts)()


@pytest.mark.parametrize(
    ("name", "declared", "together"),
    [
        ("exact", [True, True], True),
        ("exact", [True, False], False),
        ("batchable", [True, False], False),
        ("input_dependent", [False, True], True),
        ("pools_prompt", [False, True], True),
        ("needs_training", [False, True], True),
        ("phases", [PREFILL, DECODE], PREFILL | DECODE),
        ("phases", [DECODE, DECODE], DECODE),
        ("savings", [Savings.REAL, Savings.NONE], Savings.REAL),
        ("savings", [Savings.SIMULATED, Savings.REAL], Savings.SIMULATED),
        ("savings", [Savings.NONE, Savings.NONE], Savings.NONE),
    ],
)
def test_a_stack_declares_what_its_methods_declare_together(name: str, declared: list[Any], together: Any) -> None:
    stack = Stack(tuple(declaring(**{name: value}) for value in declared))
    assert getattr(stack, name) == together


def test_a_stack_has_every_fact_of_its_only_method() -> None:
    assert {name: getattr(Stack((Paper(),)), name) for name in FACTS} == {name: getattr(Paper, name) for name in FACTS}


@pytest.mark.parametrize("name", FACTS)
def test_every_fact_is_documented_and_has_a_type(name: str) -> None:
    method = type(declaring(**{name: "nonsense"}))
    (sentence,) = mistyped(method)
    assert sentence.startswith(f"{name}='nonsense' is not valid: ")
    assert FACTS[name].question in describe(Toy).facts
    assert not mistyped(Toy)


def test_a_value_of_a_wrong_type_leaves_the_other_facts() -> None:
    folded = fold([declaring(savings="much", batchable=False)])
    assert "savings" not in folded
    assert folded["batchable"] is False


@pytest.mark.parametrize("phases", [frozenset(), {Phase.PREFILL}, frozenset({"prefill"})])
def test_phases_are_a_frozenset_of_at_least_one_phase(phases: Any) -> None:
    assert mistyped(type(declaring(phases=phases)))
