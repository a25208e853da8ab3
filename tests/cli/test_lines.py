"""Progress without a terminal: lines now and then, with the time that is left."""

from harness.cli.display import Reporter
from harness.cli.lines import EVERY, Lines


def test_lines_come_now_and_then_and_tell_the_time_left() -> None:
    said: list[str] = []
    clock = iter([0.0, 1.0, EVERY, EVERY + 1, 2 * EVERY, 3 * EVERY, 9 * EVERY])
    lines = Lines(said.append, "searching", lambda: next(clock))
    lines.expect(400)
    lines.expect(600)
    for _ in range(5):
        lines.advance(100)
    assert said == [
        "searching: 200 of 1,000, 30 s so far, about 2 min left",
        "searching: 400 of 1,000, 60 s so far, about 90 s left".replace("90 s", "2 min"),
        "searching: 500 of 1,000, 2 min so far, about 2 min left",
    ]
    lines.advance(500)  # done: the next thing is said by whoever comes next
    assert len(said) == 3


def test_lines_of_what_nobody_has_counted_tell_how_far_it_is() -> None:
    said: list[str] = []
    clock = iter([0.0, EVERY, 2 * EVERY, 3 * EVERY])
    lines = Lines(said.append, "reading", lambda: next(clock))
    lines.advance(0)
    lines.advance(7)
    lines.expect(5)
    lines.advance(1)  # more than were announced
    assert said == ["reading: 7, 60 s so far", "reading: 8, 2 min so far"]


def test_a_reporter_without_a_terminal_draws_no_bar(capsys) -> None:
    with Reporter().bar("searching [bold]paths") as bar:
        bar.expect(2)
        bar.advance(1)
    assert capsys.readouterr().err == ""
    assert isinstance(bar, Lines)
