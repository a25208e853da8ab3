"""Kernels for CUDA, without a card: why each cannot run, shapes, bytes, FLOPs, limits; how a card is timed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.measure.audit import count_flops
from harness.model.weights import choice, cuda, fp8, int8, packed_products, probe, semi_structured, trial, weight_only
from harness.model.weights.computations import Computation, Computations, Layer
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.fp8 import Fp8Linear, ScaledFp8Linear
from harness.model.weights.packed_linear import PackedLinear
from harness.model.weights.semi_structured import SemiStructuredLinear

INT4 = NumberFormat(4, 128, False, scale="float16")
INT8 = NumberFormat(8)
Card = Callable[..., None]
Reasons = dict[str, str | None]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Stand in for a card of a compute capability, on which every kernel is right."""

    def stand_in(major: int, minor: int, name: str = "NVIDIA H100") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        for module in (fp8, weight_only, semi_structured):
            monkeypatch.setattr(module, "_fault", lambda *_: None)
        monkeypatch.setattr(int8, "is_right", lambda *_: True)

    return stand_in


def reasons(ways: Computations) -> Reasons:
    return {kernel.name: kernel.why_not for kernel in ways.kernels}


def every(layer: Layer, device: str = "cuda:0") -> Reasons:
    """Of the kernels for CUDA of all methods."""
    ways = [
        int8.computations(layer, device),
        fp8.computations(layer, device),
        weight_only.computations(layer, device, INT4),
        weight_only.computations(layer, device, INT8),
        semi_structured.computations(layer, device),
    ]
    names = (
        "cuBLAS int8",
        "cuBLAS fp8",
        "torch tile-packed, int4 g128",
        "torch int8pack on CUDA, int8",
        "cuSPARSELt 2:4",
    )
    known = {name: why_not for each in ways for name, why_not in reasons(each).items()}
    return {name: known[name] for name in names}


def test_a_card_has_them_all(card: Card) -> None:
    card(9, 0)
    assert set(every(Layer(256, 512, "bfloat16")).values()) == {None}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_card_each_says_so() -> None:
    for device, says in (("cuda:0", "torch sees no CUDA device"), ("cpu", "it is for CUDA, and the model is on cpu")):
        for name, why_not in every(Layer(256, 512, "bfloat16"), device).items():
            assert why_not is not None
            assert why_not.startswith(f"{name.partition(',')[0]}: ")
            assert why_not.endswith(says)


def test_an_old_card_is_named_with_what_it_lacks(card: Card) -> None:
    card(8, 0, "NVIDIA A100")
    known = every(Layer(256, 512, "bfloat16"))
    assert known["cuBLAS fp8"] == "cuBLAS fp8: it needs a card of compute capability 8.9, and NVIDIA A100 has 8.0"
    assert known["cuBLAS int8"] is known["cuSPARSELt 2:4"] is None
    card(7, 5, "Tesla T4")
    known = every(Layer(256, 512, "bfloat16"))
    assert known["torch tile-packed, int4 g128"] == (
        "torch tile-packed: it needs a card of compute capability 8.0, and Tesla T4 has 7.5"
    )
    assert "compute capability 8.0, and Tesla T4 has 7.5" in str(known["cuSPARSELt 2:4"])


def test_a_torch_for_other_cards_is_named(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    card(9, 4)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert cuda.why_not("cuda:0") == "it is for NVIDIA's cards, and this torch is built for AMD's"


@pytest.mark.parametrize(
    ("layer", "name", "says"),
    [
        (Layer(100, 512, "bfloat16"), "cuBLAS int8", "multiples of 8 inputs and outputs, and a linear layer has 512"),
        (Layer(264, 512, "bfloat16"), "cuBLAS fp8", "multiples of 16 inputs and outputs, and a linear layer has 512"),
        (Layer(264, 512, "bfloat16"), "cuSPARSELt 2:4", "multiples of 16 inputs and outputs"),
        (Layer(256, 512, "float32"), "cuSPARSELt 2:4", "bfloat16 and float16, and the model is in float32"),
        (Layer(256, 512, "float16"), "torch tile-packed, int4 g128", "takes bfloat16, and the model is in float16"),
        (
            Layer(100, 512, "bfloat16"),
            "torch tile-packed, int4 g128",
            "a multiple of 8 outputs, and a linear layer has 100",
        ),
    ],
)
def test_a_layer_that_does_not_fit_is_said(layer: Layer, name: str, says: str, card: Card) -> None:
    card(9, 0)
    why_not = every(layer)[name]
    assert why_not is not None
    assert says in why_not


def test_a_group_that_the_operator_does_not_know_is_said(card: Card) -> None:
    card(9, 0)
    ways = weight_only.computations(Layer(256, 512, "bfloat16"), "cuda:0", replace(INT4, group=16))
    assert "takes groups of 32, 64, 128, 256 inputs, and the format is int4 g16" in str(
        reasons(ways)["torch tile-packed, int4 g16"]
    )
    assert ways.why_dense == "triton: it takes groups of a multiple of 32 inputs, and the format is int4 g16"
    ways = weight_only.computations(Layer(256, 512, "bfloat16"), "cuda:0", replace(INT4, bits=3))
    assert ways.why_dense == "there is no kernel in place of a dense product over int3 g128 weights"


def test_a_kernel_that_is_wrong_or_missing_is_not_taken(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is that which a trial finds: on the CPU here, in place of a card."""
    right = next(product for product in packed_products.PRODUCTS if product.name == "torch int8pack")
    wrong = replace(right, name="wrong", product=lambda x, packed, group: right.product(x, packed, group) * 1.1)
    missing = replace(right, name="missing", product=lambda *_: torch.ops.aten.no_such_operator())
    monkeypatch.setattr(weight_only, "PRODUCTS", (right, wrong, missing))
    known = reasons(weight_only.computations(Layer(64, 64, "bfloat16"), "cpu", INT8))
    assert known["torch int8pack, int8"] is None
    assert "it differs from the dense product by 0." in str(known["wrong, int8"])
    assert str(known["missing, int8"]).startswith("missing: it cannot run here (")


@pytest.mark.parametrize("tokens", trial.TOKENS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_one_wrong_number_of_tokens_is_enough(tokens: int, value: float) -> None:
    def layer(x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, value if len(x) == tokens else 1.0)

    draws = torch.ones(max(trial.TOKENS), 4)
    assert "differs from the dense product" in str(trial.fault(lambda: layer, draws, draws.double(), "cpu", 0.01))


@pytest.mark.parametrize(
    ("name", "number", "nbytes"),
    [
        ("torch tile-packed", INT4, 64 * 256 // 2 + 64 * 2 * 4),  # a scale and a middle in bfloat16 for each group
        ("torch tile-packed", replace(INT4, symmetric=True), 64 * 256 // 2 + 64 * 2 * 4),
        ("torch int8pack on CUDA", INT8, 64 * 256 + 64 * 2),
    ],
)
def test_packed_products_have_the_shapes_and_flops_of_the_layer(name: str, number: NumberFormat, nbytes: int) -> None:
    product = next(each for each in packed_products.PRODUCTS if each.name == name)
    weight = quantize(torch.randn(64, 256), number)
    with FakeTensorMode(allow_non_fake_inputs=True):
        bias = torch.empty(64, dtype=torch.bfloat16, device="meta")
        layer = PackedLinear(weight.to("meta"), bias, torch.bfloat16, product)
        x = torch.empty(2, 5, 256, dtype=torch.bfloat16, device="meta")
        y, flops = count_flops(lambda: layer(x))
    assert (y.shape, y.dtype) == ((2, 5, 64), torch.bfloat16)
    assert flops == 2 * 10 * 64 * 256
    assert (layer.weight_bytes, layer.weight_count) == (nbytes, 64 * 256)


def test_tiles_are_given_the_even_input_high_and_the_middle_of_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's operator says of itself: (q - 8) scale + middle, with scale and middle side by side."""
    weight = quantize(torch.randn(16, 256, generator=torch.Generator().manual_seed(0)), INT4)
    given: list[Any] = []

    class Operators:
        def _convert_weight_to_int4pack(self, nibbles: torch.Tensor, tiles: int) -> torch.Tensor:
            given.extend((nibbles, tiles))
            return nibbles

    monkeypatch.setattr(packed_products, "_ATEN", Operators())
    product = next(each for each in packed_products.PRODUCTS if each.name == "torch tile-packed")
    nibbles, pairs = product.pack(weight, torch.bfloat16)
    assert given[1] == 8
    codes = torch.stack([nibbles >> 4, nibbles & 15], 2).flatten(1)  # [out, in]
    assert torch.equal(codes, weight.codes)
    scale, middle = pairs.float().transpose(0, 1)[..., None, :].unbind(-1)  # each [out, groups, 1]
    values = ((codes.view(16, 2, 128) - 8.0) * scale + middle).flatten(1)
    assert torch.allclose(values, weight.dequantized(), rtol=0, atol=0.02)


def test_fp8_gives_the_shapes_of_the_layer() -> None:
    layer = ScaledFp8Linear(torch.randn(32, 64, dtype=torch.bfloat16), None)
    assert layer.weight_bytes == 32 * 64 + 4 * 32
    y, flops = count_flops(lambda: layer(torch.randn(2, 3, 64, dtype=torch.bfloat16)))  # torch has it for a CPU too
    assert (y.shape, y.dtype, flops) == ((2, 3, 32), torch.bfloat16, 2 * 6 * 32 * 64)


def test_fp8_agrees_with_the_product_of_floats() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 64, generator=generator) for rows in (32, 9))
    expected = Fp8Linear(weight, None)(x)
    assert torch.allclose(ScaledFp8Linear(weight, None)(x), expected, atol=float(expected.abs().max()) / 100)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 24), (16, 24), (24, 24), (25, 32), (128, 128)])
def test_int8_fills_up_rows_as_cublas_wants_them(tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    product = next(each for each in int8.PRODUCTS if each.name == "cuBLAS int8")
    seen, plain = [], torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda x, weight: seen.append(len(x)) or plain(x, weight))
    weight = torch.ones(8, 16, dtype=torch.int8)
    y = product.product(torch.ones(tokens, 16, dtype=torch.int8), product.pack(weight), torch.full((8,), 0.5))
    assert seen == [rows]
    assert torch.equal(y, torch.full((tokens, 8), 8.0))


@pytest.fixture
def cusparselt(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """cuSPARSELt's two operators in plain torch; the shapes of what is multiplied."""
    shapes: list[torch.Size] = []

    def compress(weight: torch.Tensor) -> torch.Tensor:
        values = weight.view(len(weight), -1, 4)
        place = (values != 0).int().sort(dim=2, descending=True, stable=True).indices[..., :2]  # of those that stay
        return torch.cat([values.gather(2, place).flatten(1), place.flatten(1).to(weight.dtype)], 1)

    def multiply(packed: torch.Tensor, dense: torch.Tensor, *, transpose_result: bool) -> torch.Tensor:
        shapes.append(dense.shape)
        assert transpose_result
        values, place = (half.reshape(len(packed), -1, 2) for half in packed.chunk(2, 1))
        weight = torch.zeros(*values.shape[:2], 4, dtype=values.dtype).scatter_(2, place.long(), values)
        return dense.T @ weight.flatten(1).T

    monkeypatch.setattr(torch, "_cslt_compress", compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    library = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.impl("semi_structured", semi_structured._operator, "CPU")  # type: ignore[no-untyped-call]
    yield shapes
    library._destroy()  # type: ignore[no-untyped-call]


def test_two_of_four_multiply_half_as_often(cusparselt: list[torch.Size]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((16, 32), (16,), (2, 5, 32)))
    weight.view(16, -1, 4)[..., 1:3] = 0
    layer = SemiStructuredLinear(weight, bias)
    y, flops = count_flops(lambda: layer(x))
    assert torch.allclose(y, torch.nn.functional.linear(x, weight, bias), atol=1e-5)
    assert flops == 2 * 10 * 16 * 32 // 2
    assert layer.macs_per_token == layer.weight_count == 16 * 32 // 2
    assert cusparselt == [(32, 16)]  # ten tokens are filled up to sixteen


def test_the_kernel_of_two_of_four_is_tried_before_it_is_taken(cusparselt: list[torch.Size], monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda, "why_not", lambda *_: None)
    semi_structured._fault.cache_clear()
    (kernel,) = semi_structured.computations(Layer(32, 64, "bfloat16", 0.5), "cpu").kernels
    assert kernel.why_not is None
    plain = torch._cslt_sparse_mm
    monkeypatch.setattr(torch, "_cslt_sparse_mm", lambda *args, **named: plain(*args, **named) + 1)
    semi_structured._fault.cache_clear()
    (kernel,) = semi_structured.computations(Layer(32, 64, "bfloat16", 0.5), "cpu").kernels
    assert "cuSPARSELt 2:4: it differs from the dense product by" in str(kernel.why_not)
    semi_structured._fault.cache_clear()


class Events:
    """A device's queue: an event marks when what was given before it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.on = 0.0, ""
        queue = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                assert queue.on == "cuda:1"  # and not on the device that is torch's current one
                self.at = queue.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: "Event") -> float:
                return end.at - self.at

        class Device:
            def __init__(self, device: torch.device) -> None:
                self.name = str(device)

            def __enter__(self) -> None:
                queue.on = self.name

            def __exit__(self, *_: object) -> None:
                queue.on = ""

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", Device)

    def call(self) -> None:
        self.now += 3.0  # milliseconds


def test_a_kernel_is_timed_by_events_of_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Events(monkeypatch)
    assert probe.seconds_on(torch.device("cuda:1"))(queue.call) == pytest.approx(0.003)


@pytest.mark.parametrize(("nbytes", "count"), [(10**3, 16), (10 * 2**20, 10), (99 * 2**20, 2), (2**31, 1)])
def test_copies_fill_the_cache_of_a_card(nbytes: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        L2_cache_size = 50 * 2**20

    class Packed(torch.nn.Module):
        weight_bytes = nbytes

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    layers = [torch.nn.Identity(), Packed()]
    assert probe.copies(2**40, layers, torch.device("cuda:0")) == count  # dense has no declared bytes
    assert probe.copies(2**40, layers, torch.device("cpu")) == 1


def test_a_time_is_of_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        made.append(weight)
        return lambda x: x

    monkeypatch.setattr(probe, "copies", lambda *_: 4)
    monkeypatch.setattr(probe, "shortest", lambda calls, seconds: dict.fromkeys(calls, 8.0))
    times = probe.probe(
        Computations(Computation("all", make), (Computation("quick", make),), ""), Layer(8, 8, "float32")
    )
    assert times == dict.fromkeys(("dense", "quick", "all"), [2.0] * 4)
    assert len(made) == 8


def test_what_a_card_does_is_kept_by_its_name(card: Card, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    probed = []
    monkeypatch.setattr(choice, "folder", lambda: tmp_path)
    monkeypatch.setattr(
        choice, "probe", lambda ways, layer: probed.append(ways.device) or {"dense": [1.0] * 4, "quick": [0.5] * 4}
    )
    kernel = Computation("quick", lambda weight, bias: pytest.fail("made"))
    on_card = Computations(kernel, (kernel,), "harness.model.weights.fp8", "cuda:0")
    on_cpu = replace(on_card, device="cpu")
    card(9, 0, "NVIDIA H100")
    for ways in (on_card, on_cpu, on_card, replace(on_card, device="cuda:1")):  # another card of the same kind
        assert choice.choose(ways, Layer(8, 8, "bfloat16")).kernel == "quick"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)  # which is nothing to a card
    choice.choose(on_card, Layer(8, 8, "bfloat16"))
    card(9, 0, "NVIDIA H200")
    choice.choose(on_card, Layer(8, 8, "bfloat16"))
    assert probed == ["cuda:0", "cpu", "cuda:0"]
