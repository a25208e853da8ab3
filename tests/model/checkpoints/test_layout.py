"""Linear layers of few bits in compressed-tensors' layout: bit by bit, there and back, and by that package itself."""

from dataclasses import replace

import pytest
import torch

from harness.core.errors import MethodError, ModelError
from harness.model.checkpoints.layout import Scheme, tensors, weight_of
from harness.model.weights.formats import NumberFormat, quantize

E4M3 = NumberFormat(8, element="e4m3")
SCHEMES = [
    Scheme(NumberFormat(4, 16, symmetric=False, scale="float16")),
    Scheme(NumberFormat(4, 16, scale="float16")),
    Scheme(NumberFormat(3, 40, symmetric=False)),
    Scheme(NumberFormat(5)),
    Scheme(NumberFormat(2, 8, symmetric=False, scale="float16")),
    Scheme(NumberFormat(8)),
    Scheme(NumberFormat(8, symmetric=False)),
    Scheme(NumberFormat(8), NumberFormat(8)),
    Scheme(E4M3, E4M3),
]


def label(scheme):
    return f"{scheme.format} {scheme.number.label}"


def stored(scheme, out=13, inputs=80):
    weight = quantize(torch.randn(out, inputs, generator=torch.Generator().manual_seed(0)), scheme.number)
    return weight, {name.removeprefix("a.b."): each for name, each in tensors("a.b", weight, scheme).items()}


@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
def test_a_weight_comes_back_as_it_was(scheme):
    weight, kept = stored(scheme)
    again = weight_of(kept, Scheme.of(scheme.group(["Linear"])))
    assert again.format == weight.format
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.scale, weight.scale)
    assert (again.zero is None) == (weight.zero is None)
    assert again.zero is None or torch.equal(again.zero, weight.zero)
    assert torch.equal(again.dequantized(), weight.dequantized())


@pytest.mark.parametrize("bits", [4, 3])
def test_codes_lie_behind_one_another(bits):
    """Whole numbers of any length, taken apart by hand: of a row, and of a group's zero points over the outputs."""
    weight, kept = stored(Scheme(NumberFormat(bits, 16, symmetric=False, scale="float16")))
    for packed, codes in ((kept["weight_packed"], weight.codes), (kept["weight_zero_point"].T, weight.zero.T)):
        assert packed.dtype == torch.int32
        for words, row in zip(packed.tolist(), codes.tolist(), strict=True):
            number = sum((word % 2**32) << 32 * index for index, word in enumerate(words))
            assert [number >> bits * index & (2**bits - 1) for index in range(len(row))] == row
    assert kept["weight_shape"].tolist() == [13, 80]
    assert kept["weight_scale"].shape == (13, 5)
    assert kept["weight_packed"].shape == (13, -(-80 * bits // 32))


@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
def test_the_package_itself_reads_the_same_weight(scheme):
    """In its own arithmetic, which is in the type of the scale."""
    compressors = pytest.importorskip("compressed_tensors.compressors", reason="compressed-tensors is not installed")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    weight, kept = stored(scheme)
    theirs = quantization.QuantizationScheme.model_validate(scheme.group(["Linear"]))
    compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format)
    read = compressor.decompress(kept, theirs)["weight"]
    expected = weight.dequantized()
    assert torch.allclose(read.float(), expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-3)


def test_what_has_no_layout_is_refused_by_name():
    for scheme, says in (
        (Scheme(replace(E4M3, element="e5m2")), "weights in fp8 e5m2 have no place"),
        (Scheme(NumberFormat(4, 32, element="e2m1", scale="floor")), "fp4 e2m1 floor g32"),
        (
            Scheme(NumberFormat(4, 32, symmetric=False, scale="float16", zero="float16")),
            "int4 g32 float16 zeros have no",
        ),
        (Scheme(NumberFormat(4, 32), NumberFormat(8)), "symmetric int4 g32 with activations in int8"),
    ):
        with pytest.raises(MethodError) as refusal:
            _ = scheme.format
        assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight_shape": torch.tensor([13, 81])}, "do not fit"),
        ({"weight_scale": torch.ones(13, 4)}, "do not fit"),
        ({"weight_packed": torch.zeros(12, 10, dtype=torch.int32)}, "do not fit"),
        ({"weight_zero_point": torch.zeros(0, 5, dtype=torch.int32)}, "do not fit"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, says):
    scheme = SCHEMES[0]
    _, kept = stored(scheme)
    with pytest.raises(ModelError, match=says):
        weight_of(kept | change, scheme).dequantized()
