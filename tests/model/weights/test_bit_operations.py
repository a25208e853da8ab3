"""Bit-operations beside those that papers count, and that they are said as such."""

from typing import Any

import pytest

from harness.contract.preparation import Preparation
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.model.weights.bit_operations import fewer_bit_operations, note
from harness.testing.tiny import tiny_decoder
from tests import kernels_here

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("text", "fewer"),
    [
        ("sparse-gpt:pattern=2:4,samples=2,length=48+int8-dynamic", 2 * 32 * 32 / (8 * 8)),
        ("int8-dynamic", 16),
        ("wanda:samples=2,length=48+int8-dynamic", 16),
        ("layer-drop:layers=1/2+int8-dynamic", 32),
        ("int8-dynamic:layers=0/1", 2 / (1 + 1 / 16)),
        ("fp8", 16),
        ("int8-weight-only", None),
        ("sparse-gpt:pattern=2:4,samples=2,length=48", None),
    ],
)
def test_they_are_those_of_the_papers(text: str, fewer: float | None, family: str, tmp_path: Any) -> None:
    decoder = kernels_here.force(tiny_decoder(family), "dense")
    with parse(text).applied(decoder, Preparation(States(tmp_path), TEXT)):
        assert fewer_bit_operations(decoder) == (None if fewer is None else pytest.approx(fewer))
        said = [f"{fewer:.3g} times fewer bit-operations than dense" in line for line in note(decoder)]
        assert said == ([] if fewer is None else [True])
    assert fewer_bit_operations(decoder) is None
