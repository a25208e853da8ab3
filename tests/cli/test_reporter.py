"""Progress that goes into a file: a line now and then, with what is left."""

import pytest

from harness.cli import display


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 5.0, 25.0, 30.0, 50.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    with display.Reporter().bar("reading") as bar:
        bar.expect(8)
        for _ in range(4):
            bar.advance(1)
    assert capsys.readouterr().err.splitlines() == ["reading: 2/8, 75 s left", "reading: 4/8, 50 s left"]
