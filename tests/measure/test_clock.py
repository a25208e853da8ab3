"""A GPU's time is read in the queue of the device that works, whichever was torch's current one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from harness.measure.clock import clock_for, current, seconds
from harness.measure.this_host import Sizes, measured_peaks

SECOND = torch.device("cuda:1")


class Card:
    """Torch's current device, and the events that were recorded in its queue, 2 ms after one another."""

    def __init__(self) -> None:
        self.device, self.recorded = torch.device("cuda:0"), list[torch.device]()

    @contextmanager
    def chosen(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device
        try:
            yield
        finally:
            self.device = before


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.place = len(card.recorded)
            card.recorded.append(card.device)

        def synchronize(self) -> None: ...

        def elapsed_time(self, later: "Event") -> float:
            return 2.0 * (later.place - self.place)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", card.chosen)
    return card


def test_events_are_recorded_where_the_work_is(cards: Card) -> None:
    assert clock_for(SECOND) == "cuda_events"
    with current(SECOND):
        assert seconds("cuda_events", lambda: None) == pytest.approx(2e-3)
    assert cards.recorded == [SECOND] * 2
    assert cards.device == torch.device("cuda:0")


def test_a_processor_needs_no_queue(cards: Card) -> None:
    cpu = torch.device("cpu")
    with current(cpu):
        assert seconds(clock_for(cpu), lambda: None) >= 0
    assert cards.recorded == []


def test_peaks_are_those_of_the_card_that_was_asked(cards: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device, **others: made(*shape, **others))
    peaks = measured_peaks(SECOND, torch.float32, Sizes(product=8, copied=1 << 10, calls=2))
    assert peaks.peaks["float32"] == pytest.approx(2 * 8**3 * 2 / 2e-3)
    assert set(cards.recorded) == {SECOND}
