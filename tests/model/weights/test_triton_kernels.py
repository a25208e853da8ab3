"""The kernels in Triton: what is decided before one runs, and the kernels themselves in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch.nn.functional import linear

from harness.core.errors import MethodError
from harness.measure.audit import count_flops
from harness.model.weights import block_sparse, cuda, int8, weight_only
from harness.model.weights.block_sparse import zero_blocks
from harness.model.weights.computations import Layer
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.packed_linear import PackedLinear
from harness.model.weights.packed_products import PRODUCTS
from harness.model.weights.pruning import keep, refuse_pattern
from harness.model.weights.triton_kernels import available, block_linear
from harness.model.weights.triton_kernels.block_linear import FloatBlocks, Int8Blocks
from harness.model.weights.triton_kernels.launch import block_cut, tile_cut, vector_cut
from tests.conftest import ROOT

INT4 = NumberFormat(4, 128, symmetric=False, scale="float16")


@pytest.fixture
def card(monkeypatch):
    """A card of compute capability 9.0 beside Triton and a compiler, on which every kernel is right."""
    monkeypatch.setattr(cuda, "why_not", lambda *_: None)
    monkeypatch.setattr(available, "find_spec", lambda name: object())
    monkeypatch.setattr(available.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(weight_only, "_fault", lambda *_: None)
    monkeypatch.setattr(block_linear, "_fault", lambda *_: None)
    monkeypatch.setattr(int8, "is_right", lambda *_: True)


def reasons(layer, device="cuda:0"):
    """Why the kernels in Triton of all methods cannot run, by name."""
    every = [
        weight_only.computations(layer, device, NumberFormat(8)),
        weight_only.computations(layer, device, INT4),
        int8.computations(layer, device),
        block_sparse.computations(layer, device, "int8"),
        block_sparse.computations(layer, device, "fp32"),
    ]
    return {kernel.name: kernel.why_not for each in every for kernel in each.kernels if "triton" in kernel.name}


LAYER = Layer(256, 512, "bfloat16", 0.5, 64)


def test_each_is_listed_and_runs_where_nothing_is_missing(card):
    assert reasons(LAYER) == dict.fromkeys(
        (
            "triton, int8",
            "triton, int4 g128",
            "triton int8",
            "block-sparse int8 64x1, triton",
            "block-sparse bf16 64x1, triton",
        )
    )


def test_without_triton_or_a_compiler_each_says_so(card, monkeypatch):
    monkeypatch.setattr(available.shutil, "which", lambda name: None)
    for compiler, says in ((None, "install gcc or clang, or set CC"), ("icx", "CC=icx is not found")):
        monkeypatch.delenv("CC", raising=False) if compiler is None else monkeypatch.setenv("CC", compiler)
        for reason in reasons(LAYER).values():
            assert reason.endswith(f"Triton needs a C compiler on this machine, and there is none: {says}")
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    for reason in reasons(LAYER).values():
        assert "Triton is not installed" in reason


def test_torch_is_left_where_triton_is_missing(card, monkeypatch):
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    able = [kernel.name for kernel in weight_only.computations(LAYER, "cuda:0", INT4).able]
    assert able == ["torch tile-packed, int4 g128"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize(("device", "says"), [("cpu", "the model is on cpu"), ("cuda:0", "sees no CUDA device")])
def test_without_a_card_each_says_so(device, says):
    for reason in reasons(Layer(64, 64, "float32", 0.5, 16), device).values():
        assert says in reason


def test_what_does_not_fit_is_said(card):
    known = reasons(Layer(256, 100, "float64", 0.5, 4))
    assert known["triton, int8"] == "triton: it takes float32, bfloat16 and float16, and the model is in float64"
    assert "multiples of 16 inputs and outputs" in known["triton int8"]
    assert known["block-sparse int8 4x1, triton"].endswith("it takes blocks of 16x1 or 64x1, and not of 4x1")
    wide = reasons(Layer(256, 2**16 + 16, "float32", 0.5, 16))
    assert wide["block-sparse fp32 16x1, triton"].endswith("up to 65536 inputs, and a linear layer has 65552")
    for number, says in ((NumberFormat(4, 16), "32 inputs, and the format is"), (NumberFormat(8, 8), "16 inputs, and")):
        assert says in weight_only.computations(LAYER, "cuda:0", number).why_dense
    assert weight_only.computations(LAYER, "cuda:0", NumberFormat(3, 32)).kernels == ()


def test_what_it_reads_and_multiplies_is_counted_by_hand():
    triton = {number: next(each for each in PRODUCTS if each.name == "triton" and each.takes(number))
              for number in (NumberFormat(8), INT4)}  # fmt: skip
    int8_layer, int4_layer = (
        PackedLinear(quantize(torch.ones(8, 256), number), None, torch.bfloat16, each).to("meta")
        for number, each in triton.items()
    )
    assert int8_layer.weight_bytes == 8 * 256 + 8 * 4
    assert int4_layer.weight_bytes == 8 * 128 + 8 * 2 * 2 + 8 * 2  # codes, two scales a row, two zero points
    weight = torch.zeros(100, 12)
    weight[0, [0, 3, 4]] = weight[70, 2] = 1.0  # three blocks of the first group, one of the second, of 36 rows
    floats, int8s = FloatBlocks(weight.bfloat16(), None, 64).to("meta"), Int8Blocks(weight, None, 64).to("meta")
    assert floats.weight_bytes == 4 * 64 * 2 + 4 * 2 + 3 * 4  # weights, inputs, starts
    assert int8s.weight_bytes == 4 * 64 + 4 * 2 + 3 * 4 + 100 * 4
    assert floats.weight_count == int8s.weight_count == 3 * 64 + 36
    for layer, inputs in ((int8_layer, 256), (int4_layer, 256), (floats, 12), (int8s, 12)):
        y, flops = count_flops(
            lambda layer=layer, inputs=inputs: layer(torch.ones(2, 7, inputs, dtype=torch.bfloat16, device="meta"))
        )
        assert flops == 2 * 14 * layer.macs_per_token
        assert y.shape[:2] == (2, 7)
        assert y.dtype == torch.bfloat16


def test_a_cut_fills_the_card_and_the_groups():
    """132 multiprocessors, an H100's."""
    for out in (1024, 4096, 14336):
        cut = vector_cut(out, 128, 132)
        assert -(-out // cut.rows) >= 2 * 132
    assert vector_cut(4096, 128, 132).rows == 8
    assert vector_cut(8, 3, 132).chunk == 4
    for tokens in (2, 16, 17, 128, 4096):
        for group in (0, 1, 3, 4, 8):
            cut = tile_cut(1024, tokens, 128, group, 132, 2)
            assert group % cut.chunk == 0
            assert cut.tokens >= min(tokens, 128)
            assert 1 <= cut.parts <= 16
    assert tile_cut(4096, 128, 128, 4, 132, 2).parts > 1 == tile_cut(14336, 4096, 128, 4, 132, 2).parts
    assert tile_cut(4096, 2, 128, 0, 132, 1).chunk >= 2  # products of int8 add over 32 inputs
    assert block_cut(64, 64, 64 * 800, 1, 132, 2).parts > 1


def test_blocks_of_64_are_chosen_and_on_a_cpu_multiplied_as_blocks_of_16(kernels):
    scores = torch.rand(200, 40, generator=torch.Generator().manual_seed(0))
    kept = keep(scores, "64x1", 0.5, "rows")
    assert zero_blocks(kept.float(), 64) == 0.5
    weight = torch.randn(200, 40, generator=torch.Generator().manual_seed(1)) * kept
    ways = block_sparse.computations(Layer.of(weight, 0.5, 64), "cpu", "fp32")
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    for kernel in ways.able:
        assert kernel.name.startswith("block-sparse fp32 16x1, ")
        assert torch.allclose(kernel.make(weight, None)(x), linear(x, weight), rtol=1e-4, atol=1e-4)
    refuse_pattern("64x1", "16x1")
    with pytest.raises(MethodError, match="prune with pattern=64x1"):
        refuse_pattern("16x1", "64x1")


def test_interpreted_kernels_agree_with_their_references():
    """In a process of its own: Triton is told when it is imported that it interprets."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed (torch's builds for a CPU come without it)")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/model/weights/interpreted_triton.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
