"""A device is known by the name that it gives itself."""

import pytest

from harness.measure.accelerators import accelerator, names, of_device


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", {"h100-sxm", "h100-pcie"}),
        ("NVIDIA A100-SXM4-80GB", {"a100-sxm-80", "a100-sxm-40"}),
        ("NVIDIA GeForce RTX 4090", {"rtx4090"}),
        ("NVIDIA L4", {"l4"}),
        ("NVIDIA L40S", set()),
        ("NVIDIA GH200 480GB", set()),
        ("Intel(R) Xeon(R) Processor", set()),
    ],
)
def test_a_name_fits_whole_words_alone(device: str, expected: set[str]) -> None:
    assert {entry.name for entry in of_device(device)} == expected


def test_every_accelerator_is_known_by_its_device() -> None:
    for name in names():
        assert name in {entry.name for entry in of_device(f"Vendor {accelerator(name).device}, 8 cores")}
