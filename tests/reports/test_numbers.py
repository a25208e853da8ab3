"""Numbers as a page and a terminal write them."""

import pytest

from harness.reports.numbers import PAGE, TERMINAL


@pytest.mark.parametrize(
    ("page", "terminal", "kind", "value"),
    [
        ("0.6942", "0.694", "score", 0.69421),
        ("-1.5000", "-1.500", "score", -1.5),
        ("12.346", "12.35", "score", 12.3456),
        ("123460", "123500", "score", 123456.0),
        ("+0.0042", "+0.004", "difference", 0.0042),
        ("−0.0350", "-0.035", "difference", -0.035),
        ("−12.346", "-12.35", "difference", -12.3456),
        ("0.80×", "0.80x", "ratio", 0.801),
        ("0.031×", "0.031x", "ratio", 0.0312),
        ("–", "-", "score", None),
        ("–", "-", "difference", None),
        ("–", "-", "ratio", None),
    ],
)
def test_one_number(page: str, terminal: str, kind: str, value: float | None) -> None:
    assert getattr(PAGE, kind)(value) == page
    assert getattr(TERMINAL, kind)(value) == terminal


def test_intervals() -> None:
    assert PAGE.interval(-0.01, 0.02, "difference") == "−0.0100 to +0.0200"
    assert TERMINAL.interval(-0.01, 0.02, "difference") == "[-0.010, +0.020]"
    assert TERMINAL.interval(0.75, 0.8581, "score") == "[0.750, 0.858]"
    assert PAGE.interval(0.9, 1.13) == "0.90 to 1.13"
    assert PAGE.interval(None, 1.0) == PAGE.interval(1.0, None, "score") == ""


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1_234_567_890.0, "FLOP", "1.23 GFLOP"),
        (0.00123, "s", "1.23 ms"),
        (950.0, "B", "950 B"),
        (0.0, "J", "0 J"),
        (0.456, "share", "46 %"),
        (None, "s", "–"),
    ],
)
def test_quantities(value: float | None, unit: str, text: str) -> None:
    assert PAGE.quantity(value, unit) == text
