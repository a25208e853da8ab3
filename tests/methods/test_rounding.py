"""Methods that round weights to nearest: what they leave of a model, and what they refuse."""

from typing import Any

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import MethodError
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.kernel_plan import plan_kernels
from harness.model.weights.linear import kernel_counts, sites
from harness.testing.tiny import tiny_decoder
from tests.conftest import Harness
from tests.kernels_here import force

METHODS = {
    "int8-weight-only": NumberFormat(8),
    "int4-weight-only:group=16": NumberFormat(4, 16, False, scale="float16"),
    "int4-weight-only:group=8,symmetric=true,bits=3": NumberFormat(3, 8, True, scale="float16"),
}


@torch.no_grad()
def logits(decoder: Any, ids: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = decoder.module(input_ids=ids).logits
    return result


@pytest.mark.parametrize("text", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_with_rounded_weights_answers_alike(text: str, family: str, ids: torch.Tensor) -> None:
    decoder, by_hand = force(tiny_decoder(family), "dense"), tiny_decoder(family)
    dense = logits(decoder, ids)
    for site in sites(by_hand):
        rounded = quantize(site.weight, METHODS[text]).dequantized()
        site.module.weight.data.copy_(site.stored(rounded))
    (method,) = parse(text).parts
    with method.attach(decoder, Prepared()):
        assert torch.allclose(logits(decoder, ids), logits(by_hand, ids), atol=1e-5)
        assert kernel_counts(decoder) == {f"dense product over {METHODS[text].label} weights": len(sites(by_hand))}
    assert torch.equal(logits(decoder, ids), dense)


def test_sixteen_bits_leave_the_model_as_it_is(ids: torch.Tensor) -> None:
    decoder = tiny_decoder("llama")
    (method,) = parse("int4-weight-only:bits=16").parts
    dense = logits(decoder, ids)
    with method.attach(decoder, Prepared()):
        assert torch.equal(logits(decoder, ids), dense)
        assert not kernel_counts(decoder)
    method.check_model(decoder)  # whatever the group
    assert not plan_kernels((method,), decoder, "cpu").by_place


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int4-weight-only", "group=128 does not divide the 32 inputs of a linear layer: give group=16 or group=8"),
        ("int4-weight-only:group=32", "group=32 does not divide the 48 inputs of a linear layer: give group=16 or"),
    ],
)
def test_a_group_that_does_not_divide_is_refused_before_anything_runs(text: str, says: str) -> None:
    with pytest.raises(MethodError, match=says) as refusal:
        parse(text).check_model(lambda: tiny_decoder("llama"))
    assert str(refusal.value).startswith("int4-weight-only: ")
    parse(f"{text.partition(':')[0]}:group=32,linears=*.q_proj").check_model(lambda: tiny_decoder("llama"))


@pytest.mark.parametrize("bits", [1, 9, 15, 17, 32])
def test_bits_that_no_format_has_are_refused(bits: int) -> None:
    with pytest.raises(MethodError, match=f"bits={bits} is not valid: give 2 to 8, or 16 for no rounding"):
        parse(f"int4-weight-only:bits={bits}")


def test_a_weight_that_is_not_finite_is_refused_in_a_sentence(ids: torch.Tensor) -> None:
    for text in (*METHODS, "fp8", "int8-dynamic"):
        decoder = tiny_decoder("llama")
        with torch.no_grad():
            sites(decoder)[3].weight[2, 5] = float("nan")
        with pytest.raises(MethodError, match="not finite"), parse(text).parts[0].attach(decoder, Prepared()):
            pass


def test_they_stack_with_what_prunes_and_not_with_each_other() -> None:
    for text in (
        "wanda:pattern=2:4+int4-weight-only:group=16",
        "layer-drop:layers=1+fp8",
        "magnitude+int8-weight-only",
    ):
        parse(text).check_model(lambda: tiny_decoder("llama"))
    with pytest.raises(MethodError, match="would both compute"):
        parse("int8-weight-only+fp8").check_model(lambda: tiny_decoder("llama"))


def test_weights_pruned_two_of_four_wait_for_a_kernel_where_nothing_is_above() -> None:
    for text in (
        "wanda:pattern=2:4",
        "magnitude:pattern=2:4",
        "sparse-gpt:pattern=2:4",
        "layer-drop+wanda:pattern=2:4",
    ):
        plan = plan_kernels(parse(text).parts, tiny_decoder("llama"), "cpu")
        assert set(plan.by_place.values()) == {"dense product over 2:4 zeros"}
        assert "48x32 float32, 50% zero, 2:4" in plan.by_layer[0]
        (note,) = plan.notes
        assert note.endswith("multiplies densely: cuSPARSELt 2:4: it is for CUDA, and the model is on cpu")
    for text in ("wanda", "magnitude:pattern=2:4,sparsity=0", "wanda:pattern=2:4+layer-drop"):
        assert not plan_kernels(parse(text).parts, tiny_decoder("llama"), "cpu").by_layer
    (whole,) = plan_kernels(parse("wanda:pattern=2:4+int8-dynamic").parts, tiny_decoder("llama"), "cpu").by_layer
    assert not any("2:4" in label for label in whole)


def test_a_run_on_the_dense_product_says_that_it_is_simulated(harness: Harness, tiny: list[object]) -> None:
    methods = ["-m", "int8-weight-only", "-m", "int4-weight-only:group=16,bits=5", "-m", "fp8"]
    command = ["run", *tiny, *methods, "--no_baseline", "-t", "tiny_letters", "-L", 2, "--kernel", "dense", "--json"]
    kernels = []
    for record in harness(*command).json():
        assert record["method"]["savings"] == "simulated"
        kernels += record["method"]["kernels"]
    assert kernels == [
        "dense product over int8 weights",
        "dense product over int5 g16 weights",
        "dense product over fp8 values",
    ]
