"""GPTQ: its identities, what it gains on rounding to nearest, what it records, and what it refuses."""

import ast
import inspect
import logging
from typing import Any

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.methods.quantization.gptq import Gptq
from harness.model.weights.columns import rounded_in_turn
from harness.model.weights.compensation import Hessian
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.kernel_plan import plan_kernels
from harness.model.weights.linear import kernel_counts, sites
from harness.model.weights.savings import savings
from harness.model.weights.stored_codes import restored
from harness.testing.tiny import tiny_decoder

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL: dict[str, Any] = {"group": 16, "samples": 2, "length": 48}
FORMATS = (
    NumberFormat(4, 32, False, scale="float16"),
    NumberFormat(3, 16, True, scale="float16"),
    NumberFormat(4, 160),
    NumberFormat(8),
    NumberFormat(2, 80, False),
    NumberFormat(4, 32, element="e2m1", scale="rceil"),
)


@torch.no_grad()
def logits(decoder: Any, ids: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = decoder.module(input_ids=ids).logits
    return result


@pytest.fixture
def toy() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [8, 160], with values that float32 has, and second moments of correlated inputs, in double precision."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 160, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(160, 160, generator=generator, dtype=torch.float64) * (1 + torch.arange(160) % 5)
    return torch.randn(8, 160, generator=generator).double(), 2 / len(x) * x.T @ x


@pytest.mark.parametrize("number", FORMATS, ids=lambda number: number.label)
@pytest.mark.parametrize(("largest_first", "static"), [(True, True), (False, True), (False, False)])
def test_without_correlations_it_is_rounding_to_nearest_bit_for_bit(
    number: NumberFormat, largest_first: bool, static: bool, toy: tuple[torch.Tensor, torch.Tensor]
) -> None:
    weight, gram = toy
    hessian = Hessian.of(torch.diag(gram.diagonal()), largest_first=largest_first)
    nearest, (new, _) = quantize(weight, number), rounded_in_turn(weight, hessian, number, static=static)
    assert torch.equal(new.codes, nearest.codes)
    assert torch.equal(new.scale, nearest.scale)
    assert (new.zero is None and nearest.zero is None) or torch.equal(new.zero, nearest.zero)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", FORMATS, ids=lambda number: number.label)
@pytest.mark.parametrize(("largest_first", "static"), [(True, True), (False, True), (False, False)])
def test_the_error_is_that_of_the_outputs_and_less_than_nearest_has(
    number: NumberFormat, largest_first: bool, static: bool, toy: tuple[torch.Tensor, torch.Tensor]
) -> None:
    weight, gram = toy
    hessian, damped = Hessian.of(gram, largest_first=largest_first), Hessian.of(gram).damped
    new, error = rounded_in_turn(weight, hessian, number, static=static)
    change = weight - new.dequantized().double()
    assert error == pytest.approx(float(torch.trace(change @ damped @ change.T)), rel=1e-9)
    nearest = weight - quantize(weight, number).dequantized().double()
    assert error < 0.9 * float(torch.trace(nearest @ damped @ nearest.T))


def test_a_group_whose_turn_comes_has_the_scale_of_what_it_has_become(
    toy: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Also where groups and blocks of columns begin in different places, as a recomputation without blocks shows."""
    weight, gram = toy
    hessian, number = Hessian.of(gram), NumberFormat(4, 80)
    new, _ = rounded_in_turn(weight, hessian, number, static=False)
    work, upper = weight.clone(), hessian.upper
    for column in range(160):
        if column % 80 == 0:
            scale = work[:, column : column + 80].abs().amax(1).float() / 7
            assert torch.allclose(scale, new.scale[:, column // 80], rtol=1e-6)
        code = (work[:, column].float() / scale).round().clamp(-7, 7)
        assert (code != new.codes[:, column]).sum() == 0
        missing = (work[:, column] - (code * scale).double()) / upper[column, column]
        work[:, column:] -= missing[:, None] * upper[column, column:]


def test_torchaos_gptq_errs_as_much(toy: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bits by rows, whose scales it rounds in its own way; it asks for a card, and needs none."""
    pytest.importorskip("torchao", reason="pip install 'efficiency-harness[torchao]' compares with its GPTQ")
    api = pytest.importorskip("torchao.prototype.gptq.api", reason="this torchao has no GPTQ")
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.quantization.granularity import PerRow

    tree = ast.parse(inspect.getsource(api.gptq_quantize))
    unasserted = compile(tree, api.__file__, "exec", optimize=1)
    namespace = dict(vars(api))
    exec(unasserted, namespace)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    weight, gram = toy
    config = api.GPTQConfig(step="convert", base_config=Int8WeightOnlyConfig(granularity=PerRow()))
    theirs = namespace["gptq_quantize"](gram.float(), weight.float(), config).dequantize()
    ours, _ = rounded_in_turn(weight, Hessian.of(gram), NumberFormat(8))
    nearest = quantize(weight, NumberFormat(8))
    errors = [
        Hessian.of(gram).error(weight - values.double())
        for values in (theirs, ours.dequantized(), nearest.dequantized())
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
    assert max(errors[:2]) < 0.5 * errors[2]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("extra", [{}, {"symmetric": True, "bits": 3}, {"group": 0, "bits": 8, "in_turn": False}])
def test_the_model_runs_on_the_codes_of_the_state(
    family: str, extra: dict[str, Any], ids: torch.Tensor, tmp_path: Any
) -> None:
    decoder, by_hand = tiny_decoder(family), tiny_decoder(family)
    method = Gptq(**(SMALL | extra))
    dense = logits(decoder, ids)
    stack = parse(method.label)
    with stack.applied(decoder, Preparation(States(tmp_path), TEXT)) as (state,):
        for site in sites(by_hand):
            weight = restored(site.name, method.number, site.weight.shape[1], state.tensors)
            site.module.weight.data.copy_(site.stored(weight.dequantized()))  # type: ignore[union-attr, operator]
        assert torch.allclose(logits(decoder, ids), logits(by_hand, ids), atol=1e-5)
        assert not torch.equal(logits(decoder, ids), dense)
        assert kernel_counts(decoder) == {f"dense product over {method.number.label} weights": len(sites(by_hand))}
        assert savings(stack, decoder) is Savings.SIMULATED
    assert torch.equal(logits(decoder, ids), dense)
    assert state.facts["tokens"] == 96
    assert 0 < state.facts["error"] < 1
    assert state.facts["damping"] == {}
    assert state.facts["short"] == [site.name for site in sites(by_hand) if site.weight.shape[1] > 96]


def test_sixteen_bits_leave_the_model_as_it_is(ids: torch.Tensor) -> None:
    decoder, method = tiny_decoder("llama"), Gptq(bits=16)
    dense = logits(decoder, ids)
    assert not method.needs_preparation
    with method.attach(decoder, Prepared()):
        assert torch.equal(logits(decoder, ids), dense)
    assert not plan_kernels((method,), decoder, "cpu").by_place


def test_it_errs_less_than_rounding_to_nearest_on_the_text_it_saw() -> None:
    """The outputs of each linear layer, over the calibration text, where inputs are those of the dense model."""
    decoder = tiny_decoder("llama", layers=1)
    ids = next(iter(TEXT.windows(decoder, count=1, length=96)))
    inputs: dict[str, torch.Tensor] = {}
    chosen = [site for site in sites(decoder) if site.name.endswith(("q_proj", "k_proj", "v_proj"))]
    handles = [
        site.module.register_forward_pre_hook(lambda _, args, name=site.name: inputs.update({name: args[0][0]}))
        for site in chosen
    ]
    logits(decoder, ids)
    for handle in handles:
        handle.remove()
    method = Gptq(bits=3, group=16, samples=1, length=96)
    state = method.prepare(decoder, TEXT)
    for site in chosen:
        x, weight = inputs[site.name], site.weight
        nearest = quantize(weight, method.number).dequantized()
        new = restored(site.name, method.number, weight.shape[1], state.tensors).dequantized()
        assert (x @ (weight - new).T).norm() < 0.9 * (x @ (weight - nearest).T).norm()


def test_what_was_pruned_stays_zero() -> None:
    decoder = tiny_decoder("llama")
    small = "samples=2,length=48"
    with parse(f"magnitude:pattern=2:4+gptq:group=16,{small}").applied(decoder, _nowhere()) as states:
        for site in sites(tiny_decoder("llama")):
            weight = restored(site.name, Gptq(**SMALL).number, site.weight.shape[1], states[1].tensors).dequantized()
            assert ((weight.view(-1, 4) == 0).sum(1) >= 2).all()


def _nowhere() -> Preparation:
    import tempfile
    from pathlib import Path

    return Preparation(States(Path(tempfile.mkdtemp())), TEXT)


def test_less_text_than_inputs_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    decoder, method = tiny_decoder("llama"), Gptq(group=16, samples=1, length=40)
    state = method.prepare(decoder, TEXT)
    assert state.facts["short"] == [site.name for site in sites(decoder) if site.weight.shape[1] > 40]
    with caplog.at_level(logging.WARNING, "harness"), method.attach(decoder, state):
        assert "gptq: 4 linear layers have more inputs than the calibration text gave them tokens (40 in all)" in (
            caplog.text
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gptq", "gptq: group=128 does not divide the 32 inputs of a linear layer: give group=16 or group=8"),
        ("gptq:static_groups=false", "gptq: static_groups=false needs the inputs in their own order: act_order=false"),
        ("gptq:bits=1", "gptq: bits=1 is not valid: give 2 to 8, or 16 for no rounding"),
        ("int8-dynamic+gptq:group=16", "int8-dynamic and gptq:group=16 would both compute"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(text: str, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        parse(text).check_model(lambda: tiny_decoder("llama"))


def test_layers_that_a_prompt_directs_cannot_be_calibrated_one_after_the_other() -> None:
    with pytest.raises(MethodError, match=r"write gptq\+polar"):
        parse("polar+gptq:group=16").check_order()


@torch.no_grad()
def test_damage_is_refused_in_a_sentence() -> None:
    decoder = tiny_decoder("llama")
    sites(decoder)[3].weight[2, 5] = float("nan")
    with pytest.raises(MethodError, match="not finite"):
        Gptq(**SMALL).prepare(decoder, TEXT)
