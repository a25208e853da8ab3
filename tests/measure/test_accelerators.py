"""A device is known by the name that it gives itself."""

import pytest

from harness.measure.accelerators import accelerator, names, of_device


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", {"h100-sxm"}),
        ("NVIDIA H100 PCIe", {"h100-pcie"}),
        ("NVIDIA H100 NVL", {"h100-nvl"}),
        ("NVIDIA H200", {"h200-sxm"}),
        ("NVIDIA H200 NVL", {"h200-nvl"}),
        ("NVIDIA B200", {"b200"}),
        ("NVIDIA GB200", set()),
        ("NVIDIA A100-SXM4-80GB", {"a100-sxm-80"}),
        ("NVIDIA A100-SXM4-40GB", {"a100-sxm-40"}),
        ("NVIDIA A100-PCIE-40GB", {"a100-pcie-40"}),
        ("NVIDIA A100 80GB PCIe", {"a100-pcie-80"}),
        ("NVIDIA A10", {"a10"}),
        ("NVIDIA A10G", set()),
        ("Tesla V100-SXM2-32GB", {"v100-sxm-32"}),
        ("Tesla V100-PCIE-32GB", {"v100-pcie-32"}),
        ("Tesla T4", {"t4"}),
        ("AMD Instinct MI300X", {"mi300x"}),
        ("AMD Instinct MI300A", set()),
        ("NVIDIA GeForce RTX 3090", {"rtx3090"}),
        ("NVIDIA GeForce RTX 3090 Ti", set()),
        ("NVIDIA GeForce RTX 5090", {"rtx5090"}),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", set()),
        ("NVIDIA GeForce RTX 4090 D", set()),
        ("NVIDIA GeForce RTX 4090", {"rtx4090"}),
        ("NVIDIA L4", {"l4"}),
        ("NVIDIA L40S", {"l40s"}),
        ("NVIDIA GH200 480GB", set()),
        ("Intel(R) Xeon(R) Processor", set()),
    ],
)
def test_a_name_fits_whole_words_alone(device: str, expected: set[str]) -> None:
    assert {entry.name for entry in of_device(device)} == expected


def test_every_accelerator_is_known_by_its_device() -> None:
    for name in names():
        assert name in {entry.name for entry in of_device(f"Vendor {accelerator(name).device}, 8 cores")}


@pytest.mark.parametrize("name", names())
def test_a_dense_peak_of_fewer_bits_is_no_lower(name: str) -> None:
    machine = accelerator(name)
    half = machine.peaks.get("bfloat16", machine.peaks.get("float16"))
    assert machine.states("float16") == (half is not None)
    for kind in ("int8", "float8"):
        # a sparse peak in the place of a dense one would be four times that of 16 bits; consumer cards halve 16 bits
        if half is not None and kind in machine.peaks and not name.startswith("rtx"):
            assert machine.peaks[kind] <= 2.1 * half
