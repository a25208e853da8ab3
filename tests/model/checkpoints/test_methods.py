"""Methods that scale, turn or calibrate before they round: the file gives the method's own logits, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.contract.decoder import Decoder
from harness.contract.preparation import Preparation
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.model.checkpoints.fitting import marks, refuse_other_ways
from harness.model.checkpoints.writer import write_model
from harness.model.layouts import dissect
from harness.model.source import locate
from harness.model.weights.kernel_plan import stored_layers
from harness.testing.tiny import tiny_decoder
from tests.kernels_here import force

IDS = torch.arange(3, 40)[None]
ROUNDS_ACTIVATIONS = {"int-quantized": "int8-dynamic", "float-quantized": "fp8"}
"""By the layout: the method that rounds the activations of a model that was read back."""


@torch.no_grad()
def logits(decoder: Decoder, method: str, preparation: Preparation) -> torch.Tensor:
    """Of the method on the dense product over its own values."""
    with parse(method).applied(force(decoder, "dense"), preparation, decoder.kernels):
        values: torch.Tensor = decoder.module(IDS).logits
    return values


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(States(tmp_path / "states"), Study(("The old dog finds a fish. " * 9,), "a text"))


@pytest.fixture
def written(tmp_path: Path, preparation: Preparation) -> Callable[[Decoder, str], Any]:
    """Writes a model as a method leaves it, into the folder ``out``."""

    def write(decoder: Decoder, method: str) -> Any:
        before, stack = marks(decoder), parse(method)
        (tmp_path / "out").mkdir()
        with stack.applied(decoder, preparation, stored_layers(stack.acting, decoder)):
            refuse_other_ways(before, decoder, stack.label)
            done = write_model(decoder, tmp_path / "out", stack.label)
        decoder.tokenizer.save_pretrained(tmp_path / "out")
        return done

    return write


@pytest.mark.parametrize(
    ("family", "method", "layout"),
    [
        ("llama", "gptq:group=16,samples=2,length=32", "pack-quantized"),
        ("llama", "layer-drop:layers=1+gptq:group=16,samples=2,length=32", "pack-quantized"),
        ("llama", "rotate+int4-weight-only:group=16", "pack-quantized"),
        ("llama", "awq:group=16,grid=3,samples=2,length=32", "pack-quantized"),
        ("llama", "smooth-quant:samples=2,length=32", "int-quantized"),
        ("opt", "awq:group=16,grid=3,samples=2,length=32", "pack-quantized"),  # biases change with the weights
        ("opt", "rep-quant:samples=2,length=32", "int-quantized"),
        ("gpt_neox", "fp8", "float-quantized"),
    ],
)
def test_what_is_written_gives_the_methods_logits(
    family: str, method: str, layout: str, written: Any, preparation: Preparation, tmp_path: Path
) -> None:
    decoder = tiny_decoder(family)
    expected = logits(decoder, method, preparation)
    assert written(decoder, method).layout == layout
    module = AutoModelForCausalLM.from_pretrained(locate(str(tmp_path / "out")).folder).eval()
    again = Decoder(module=module, tokenizer=decoder.tokenizer, anatomy=dissect(module), fingerprint="again")
    assert torch.equal(logits(again, ROUNDS_ACTIVATIONS.get(layout, "dense"), preparation), expected)


@pytest.mark.parametrize(
    ("family", "method", "says"),
    [
        ("llama", "hqq:group=16", "weights in int4 g16 float16 zeros have no place"),
        ("llama", "mx:block=16", "weights in fp4 e2m1 floor g16 have no place"),
        ("llama", "mx:block=16,nonlinear=true", "changes how a Llama(Model|ForCausalLM) runs"),
        (
            "llama",
            "mixed-precision:group=16,samples=1,length=16",
            "mixed-precision.* computes model.layers.0.self_attn",
        ),
        ("llama", "rotate:online=true+int4-weight-only:group=16", "changes how a Linear runs"),
        ("opt", "rotate+int4-weight-only:group=16", "changes how a LayerNorm runs"),
        ("gpt2", "int8-weight-only", "keeps its weight transposed"),
    ],
)
def test_what_has_no_layout_is_refused_by_name(family: str, method: str, says: str, written: Any) -> None:
    with pytest.raises(MethodError, match=says):
        written(tiny_decoder(family), method)
