"""What rounding loses of weights that were rounded once: in the groups that they had, and in others.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.rounded_once FOLDER --layer 10

Of a model in Q4_1 (GGUF) as `harness` loads it, in float32: for some linear layers of a layer the error relative to the
weight's size, as it is, and with the inputs in a random order. The first line has the file's own format.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.half_quadratic import fitted_zeros, with_zeros
from tests.methods.test_shuffle import q4_1

FITTED = NumberFormat(4, 32, False, scale="float16", zero="float16")
LINEARS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
FORMATS = (
    NumberFormat(4, 32, False, scale="float16"),
    NumberFormat(4, 32, True, scale="float16"),
    NumberFormat(4, 64, False, scale="float16"),
    NumberFormat(4, 32, element="e2m1", scale="floor"),
)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layer", type=int, default=10)
    asked = parser.parse_args()
    with safe_open(asked.folder / "model.safetensors", "pt") as file:
        weights = [file.get_tensor(f"model.layers.{asked.layer}.{name}.weight").float() for name in LINEARS]
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(weight.shape[1], generator=generator) for weight in weights]
    roundings = {"Q4_1": q4_1, f"hqq, {FITTED.label}": fitted}
    roundings |= {number.label: _rounding(number) for number in FORMATS}
    print("| |", " | ".join(LINEARS), "|")
    print("|---" * (1 + len(LINEARS)) + "|")
    for name, rounded in roundings.items():
        cells = [
            f"{_lost(weight, rounded):.3f} / {_lost(weight[:, order], rounded):.3f}"
            for weight, order in zip(weights, orders, strict=True)
        ]
        print("|", name, "|", " | ".join(cells), "|")


def fitted(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] as ``hqq:group=32`` rounds it."""
    return with_zeros(weight, FITTED, fitted_zeros(weight, FITTED, 20)[0]).dequantized()


def _rounding(number: NumberFormat) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda weight: quantize(weight, number).dequantized()


def _lost(weight: torch.Tensor, rounded: Callable[[torch.Tensor], torch.Tensor]) -> float:
    weight = weight.contiguous()
    return float((rounded(weight) - weight).norm() / weight.norm())


if __name__ == "__main__":
    main()
