"""Energy: counters that wrap, provenance that goes down, nulls that stay null, and no network."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.leaderboard.physics import energy as rule
from harness.measure import meters as measured_by
from harness.measure.energy import Window, WindowMeter, attribute, energy, missing_reason
from harness.measure.meters import (
    CodecarbonMeter,
    NvmlMeter,
    RaplMeter,
    meters,
    rapl_domains,
    why_no_counter,
    why_not_measured,
)
from harness.results.costs import EnergyPart


def part(joules, provenance="measured_counter", source="rapl_package"):
    return EnergyPart(joules=joules, source=source, provenance=provenance, scope="machine")


def window(seconds=10.0, requests=5, **parts):
    return Window(seconds, parts, requests)


class Script:
    """A counter's file that says one thing after another."""

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, path):
        return 1000 if path.name == "max_energy_range_uj" else self.values.pop(0)


@pytest.mark.parametrize(("readings", "microjoules"), [((100, 700), 600), ((900, 100), 200)])
def test_a_counter_that_wraps_goes_on(readings, microjoules):
    meter = RaplMeter((Path("package"),), read=Script(*readings))
    meter.begin()
    assert meter.end()["cpu"].joules == pytest.approx(microjoules / 1e6)


def test_domains_that_mirror_or_are_parts_are_left_out(tmp_path):
    for name, kind, value in (("0", "package-0", 5), ("0:0", "core", 3), ("1", "package-1", 9), ("2", "package-2", 9)):
        folder = tmp_path / f"intel-rapl:{name}"
        folder.mkdir()
        (folder / "name").write_text(kind)
        (folder / "energy_uj").write_text(str(value))
    assert [path.name for path in rapl_domains(tmp_path)] == ["intel-rapl:0", "intel-rapl:1"]
    assert "root alone" in why_not_measured(tmp_path)
    assert "no energy counter" in why_not_measured(tmp_path / "absent")


def test_measured_energy():
    idle = [Window(10, {"cpu": part(100.0)}, 0)] * 2
    found = energy([window(cpu=part(300.0))] * 3, idle, others_share=0.0, intensity_g_per_kwh=369.5)
    assert found.measured_j == pytest.approx(60)
    assert found.estimated_j is None
    assert (found.idle_w, found.active_j) == (10, pytest.approx(60 - 10 * 2))
    assert found.label == "measured_counter"
    assert found.co2_kg == pytest.approx(60 / 3.6e6 * 0.3695)
    assert found.doubts == []
    assert missing_reason(found) is None


def test_the_weakest_part_that_matters_is_the_label():
    ram = part(40.0, "estimated_constant", "constant")
    found = energy([window(cpu=part(60.0), ram=ram)], [], others_share=0.0)
    assert found.label == "estimated_constant"
    assert found.measured_j is None
    assert found.estimated_j == pytest.approx(20)
    assert "not a measurement" in missing_reason(found)
    assert found.note.endswith("60% read from hardware counters (cpu), 40% constant power x time (ram)")
    assert missing_reason(found).startswith("no counter for ram")  # the processor has one
    small = part(1.0, "estimated_constant", "constant")
    assert energy([window(cpu=part(99.0), ram=small)], [], others_share=0.0).label == "measured_counter"


LOAD, CONSTANT = "estimated_load_tdp", "estimated_constant"


@pytest.mark.parametrize(
    ("parts", "is_clock"),
    [
        ({"cpu": (3.0, CONSTANT), "ram": (1.5, CONSTANT)}, True),
        ({"ram": (1.5, CONSTANT)}, True),
        ({"cpu": (0.08, LOAD), "ram": (1.5, CONSTANT)}, True),  # 95 % of it is memory's constant
        ({"cpu": (0.5, LOAD), "ram": (1.5, CONSTANT)}, False),
        ({"cpu": (3.0, LOAD)}, False),
        ({"cpu": (0.01, "measured_counter"), "ram": (1.5, CONSTANT)}, True),
        ({"gpu": (150.0, "measured_counter"), "ram": (10.0, CONSTANT)}, False),
        ({"gpu": (300.0, "measured_counter"), "ram": (10.0, CONSTANT)}, False),  # measured
        ({"cpu": (None, "none")}, False),
    ],
)
def test_an_estimate_that_follows_the_clock_says_so(parts, is_clock):
    found = energy([window(**{name: part(*each) for name, each in parts.items()})] * 3, [], others_share=0.0)
    assert found.is_clock == is_clock
    assert ("estimated: constant power x time" in found.note) == is_clock
    assert found.note


def test_what_could_not_be_read_is_null_and_never_zero():
    found = energy([window(cpu=part(60.0)), window(cpu=part(None, "none"))], [], others_share=0.0)
    assert found.parts["cpu"].joules is None
    assert (found.measured_j, found.estimated_j, found.label) == (None, None, "none")


def test_doubts():
    idle = [Window(10, {"cpu": part(1000.0)}, 0)]
    found = energy([window(seconds=4, cpu=part(100.0))], idle, others_share=0.5)
    assert len(found.doubts) == 3


def test_windows_are_long_enough():
    now = iter(range(100))
    meter = WindowMeter([], clock=lambda: float(next(now)), sleep=lambda seconds: None)
    assert meter.busy(lambda: 2).requests >= 10


def test_energy_goes_to_requests_by_their_work():
    assert attribute(12.0, [1.0, 2.0, 3.0]) == [2.0, 4.0, 6.0]
    found = energy([window(cpu=part(300.0))], [], others_share=0.0, weights=[1.0, 3.0])  # 60 J a request
    assert found.requests_j == pytest.approx([30.0, 90.0])
    assert energy([window(cpu=part(None, "none"))], [], others_share=0.0, weights=[1.0]).requests_j == []


def test_no_meter_opens_a_socket(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a meter asked the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    meter = CodecarbonMeter()
    meter.begin()
    parts = meter.end()
    assert set(parts) == {"cpu", "ram"}
    assert parts["ram"].provenance == "estimated_constant"
    assert all(one.joules is not None and one.joules >= 0 for one in parts.values())
    assert meters(torch.device("cpu"))


class Nvml:
    """The driver's library of two cards, of which torch is shown the second alone."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, fails: str = "") -> None:
        self.used, self.fails = {"GPU-first": 0, "GPU-second": 0}, fails

    def nvmlInit(self) -> None:  # noqa: N802
        if self.fails:
            raise RuntimeError(self.fails)

    def nvmlDeviceGetHandleByUUID(self, identity: str) -> str:  # noqa: N802
        assert identity in self.used
        return identity

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        self.used[handle] += {"GPU-first": 1000, "GPU-second": 5000}[handle]
        return self.used[handle]


@pytest.fixture
def second_card(monkeypatch):
    """A machine of two cards with CUDA_VISIBLE_DEVICES=1."""

    def driver(fails: str = "") -> Nvml:
        library = Nvml(fails)
        monkeypatch.setitem(sys.modules, "pynvml", library)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="second"))
        return library

    return driver


def test_a_gpu_is_asked_by_its_identity(second_card):
    library = second_card()
    meter = NvmlMeter(torch.device("cuda:0"))
    meter.begin()
    assert meter.end()["gpu"].joules == 5
    assert library.used["GPU-first"] == 0
    assert why_no_counter(torch.device("cuda:0")) is None


def test_a_gpu_without_a_counter_is_null_with_the_reason(second_card, monkeypatch):
    second_card("Driver Not Loaded")
    monkeypatch.setattr(measured_by, "_estimates", lambda: iter([Scripted(cpu=part(1.0, LOAD))]))
    monkeypatch.setattr(measured_by, "_rapl", lambda: iter(()))
    monkeypatch.setattr(measured_by, "_zeus", lambda: iter(()))
    read = {name: each for meter in meters(torch.device("cuda:0")) for name, each in meter.end().items()}
    assert (read["gpu"].joules, read["gpu"].provenance) == (None, "none")
    found = energy([window(**read)] * 3, [], others_share=0.0)
    # joules of the processor alone would say that the GPU took none
    assert (found.measured_j, found.estimated_j, found.active_j, found.raw) == (None, None, None, [])
    assert missing_reason(found, "cuda:0").startswith("the energy counter of cuda:0 cannot be read through NVML: ")
    assert "Driver Not Loaded" in missing_reason(found, "cuda:0")
    assert "of kind mps" in missing_reason(found, "mps")


class Scripted:
    """A meter that says the same of every window."""

    def __init__(self, **parts) -> None:
        self.parts = parts

    def begin(self) -> None:
        """Nothing to note."""

    def end(self):
        return self.parts


@pytest.mark.parametrize("processor", ["measured_counter", LOAD])
def test_a_gpu_is_ranked_by_its_counter_and_estimates_stand_beside_it(processor):
    """The joules of a request at batch size 1 on an H200, of which 9 % are estimated."""
    parts = {"gpu": part(18.5), "cpu": part(0.48, processor), "ram": part(1.2, CONSTANT, "constant")}
    idle = [Window(10, parts | {"gpu": part(5.0)}, 0)]
    found = energy([window(**parts)] * 3, idle, others_share=0.0)
    added = 18.5 + (0.48 if processor.startswith("measured") else 0.0)
    assert found.label == "measured_counter"
    assert found.measured_j == pytest.approx(added / 5)
    assert found.raw == pytest.approx([added / 5] * 3)
    assert found.busy_w == pytest.approx(added / 10)
    assert found.idle_w == pytest.approx((added - 13.5) / 10)
    assert found.estimated_j is None
    assert missing_reason(found, "cuda:0") is None
    assert set(found.parts) == {"gpu", "cpu", "ram"}
    assert "beside it and not added: " in found.note
    assert "ram 0.24 J, constant power x time" in found.note
    assert not found.is_clock
    assert not list(rule(published(found)))


def test_an_estimate_that_is_added_to_a_counter_is_not_published():
    parts = {"gpu": part(18.5), "cpu": part(4.0, LOAD)}
    found = energy([window(**parts)] * 3, [], others_share=0.0)
    total = (18.5 + 4.0) / 5
    forged = found.model_copy(update={"measured_j": total, "raw": [total] * 3})
    assert list(rule(published(forged))) == ["4.5 J are stated, and the parts sum to 3.7 J"]


def published(section):
    """What the rules of the board read, of a run on a card."""
    environment = {"device": "cuda:0", "device_name": "NVIDIA H200", "cpus": 16}
    return SimpleNamespace(record={"energy": section.model_dump(mode="json"), "environment": environment})
