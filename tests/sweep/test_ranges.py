"""What a range stands for, and what is none."""

import pytest

from harness.core.errors import SpecError
from harness.sweep import ranges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dense", ["dense"]),
        ("layer-drop:count=1..3", ["layer-drop:count=1", "layer-drop:count=2", "layer-drop:count=3"]),
        ("gptq:bits=3|4|8", ["gptq:bits=3", "gptq:bits=4", "gptq:bits=8"]),
        ("a:x=1..2,y=p|q", ["a:x=1,y=p", "a:x=1,y=q", "a:x=2,y=p", "a:x=2,y=q"]),
        ("a:x=1|2+b:y=3|4", ["a:x=1+b:y=3", "a:x=1+b:y=4", "a:x=2+b:y=3", "a:x=2+b:y=4"]),
        ("a:s=0.1..0.3..0.1", ["a:s=0.1", "a:s=0.2", "a:s=0.3"]),
        ("a:n=1..8..3", ["a:n=1", "a:n=4", "a:n=7"]),
        ("a:n=-1..1", ["a:n=-1", "a:n=0", "a:n=1"]),
        ("a:n=8|1..2", ["a:n=8", "a:n=1", "a:n=2"]),
        ("a:n=1..2|2..3", ["a:n=1", "a:n=2", "a:n=3"]),
        ("a:layers=3/4|5/6", ["a:layers=3/4", "a:layers=5/6"]),
        ("a:state=../there,n=1..2", ["a:state=../there,n=1", "a:state=../there,n=2"]),
        ("a:state=./v1..2/x", ["a:state=./v1..2/x"]),
        ("./my.py:Mine:n=1..2", ["./my.py:Mine:n=1", "./my.py:Mine:n=2"]),
        ("a:x=1e-3..3e-3..1e-3", ["a:x=0.001", "a:x=0.002", "a:x=0.003"]),
        ("a:x=4..4", ["a:x=4"]),
    ],
)
def test_a_range_is_its_values(text: str, expected: list[str]) -> None:
    assert ranges.methods(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:n=6..1", "rising order"),
        ("a:n=0.1..0.5", "needs its step"),
        ("a:n=1..5..0", "step above 0"),
        ("a:n=3||4", "is empty"),
        ("a:n=|4", "is empty"),
        ("a:n=1/2..4", "first..last"),
        ("a:n=1...6", "first..last"),
        ("a:n=1..6..", "first..last"),
        ("a:n=1..1000000000", "more than 10,000 values"),
        ("a:n=1..9999|20000..29999", "more than 10,000 values"),
        ("a:n=1..2..1e-40", "more than 10,000 values"),
        ("a:x=1..9999,y=1..9999,z=1..9999", "more than 10,000 methods"),
        ("a:x=1..200+b:y=1..200", "more than 10,000 methods"),
        ("a:x=1..2..1e-99999999", "first..last"),
        ("a:x=1e999999..1e999999..1", "first..last"),
    ],
)
def test_what_is_no_range_is_said_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ranges.methods(text)
