"""Strangers' text cannot steer what shows it."""

from harness.core.text import printable


def test_what_cannot_be_printed_is_replaced() -> None:
    assert printable("\x1b[31mred\u202e\x9b\ud800") == "�[31mred���"
    assert printable("one\ntwo\n", keep="\n") == "one\ntwo\n"
    assert printable("one\r\ntwo", keep="\n") == "one�\ntwo"
    assert printable("µ × – 語 [red]") == "µ × – 語 [red]"
    assert printable(3) == "3"
