"""What doctor says of GPUs that are not here, and of a package that is not."""

import sys
from types import SimpleNamespace

import pytest
import torch

from harness.cli import doctor
from harness.measure import gpu, meters
from harness.run import loading

CARD = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000, major=9, minor=0, uuid="a")


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: CARD)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (100_000_000_000, 150_000_000_000))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpu, "driver_version", lambda: "580.159.04")


def test_a_card_is_described(a_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "why_no_counter", lambda device: None)
    lines = {name: (state, detail) for name, state, detail in doctor._gpus()}
    assert lines["gpu driver"] == ("ok", "580.159.04; torch is built for CUDA 13.0")
    state, detail = lines["cuda:0"]
    assert state == "ok"
    for words in ("NVIDIA H200", "100.0 of 150.0 GB free", "compute capability 9.0", "data sheet: h200-sxm"):
        assert words in detail
    assert lines["cuda:0 energy"] == ("ok", "counted by the card (NVML)")


def test_a_counter_that_cannot_be_read_has_its_reason(a_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    lines = {name: (state, detail) for name, state, detail in doctor._gpus()}
    assert lines["cuda:0 energy"] == ("note", "the driver's library cannot be read: pip install nvidia-ml-py")


def test_no_card_is_one_line_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "why_no_cuda", lambda: "torch X cannot use the driver 1")
    assert list(doctor._gpus()) == [
        ("gpu", "note", "none that torch can use: torch X cannot use the driver 1; runs go to the CPU")
    ]


def test_a_package_that_is_absent_is_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'xxhash'")

    for name in ("_software", "_devices", "_arithmetic", "_plugins", "_data"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))
    for name in ("_quiet", "_measurements"):
        monkeypatch.setattr(doctor, name, absent)
    lines = list(doctor._findings(tmp_path))  # type: ignore[arg-type]
    assert [line[:2] for line in lines[:2]] == [("harness", "broken"), ("measurements", "broken")]
    assert "xxhash" in lines[0][2]
    assert len(lines) == 3
