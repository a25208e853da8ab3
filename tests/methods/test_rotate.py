"""Rotate: the same answers on a turned stream, in which nothing stands out for the method above it."""

from typing import Any

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.audit import audit
from harness.methods.quantization.rotate import Rotate
from harness.model.hadamard import random_orthogonal
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.linear import sites
from harness.model.weights.savings import savings
from harness.testing.serve import TEXTS, score
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.benchmarks.architectures import decoder as architecture

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
OUTLIERS = (3, 17, 40, 77, 90, 121)


@torch.no_grad()
def logits(decoder: Any, ids: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = decoder.module(input_ids=ids).logits
    return result


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi3", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_answers_are_denses(family: str, tied: bool, online: bool, ids: torch.Tensor) -> None:
    decoder = tiny_decoder(family, layers=2, tie_word_embeddings=tied)
    dense, before = logits(decoder, ids), model_snapshot(decoder)
    with Rotate(online=online).attach(decoder, Prepared()):
        turned = logits(decoder, ids)
        assert not torch.equal(turned, dense)
        torch.testing.assert_close(turned, dense, rtol=0, atol=4e-6 * float(dense.abs().max()))
        assert savings(parse("rotate"), decoder) is Savings.NONE
    assert torch.equal(logits(decoder, ids), dense)
    assert not changes(before, model_snapshot(decoder))


def test_a_width_without_a_hadamard_matrix_is_turned_all_the_same(ids: torch.Tensor) -> None:
    decoder = tiny_decoder("llama", layers=2, hidden_size=44 * 3, num_attention_heads=2, head_dim=8)
    dense = logits(decoder, ids)
    with Rotate(seed=5).attach(decoder, Prepared()):
        torch.testing.assert_close(logits(decoder, ids), dense, rtol=0, atol=4e-6 * float(dense.abs().max()))
    decoder = tiny_decoder("llama", layers=1, intermediate_size=66)
    with pytest.raises(MethodError, match="no Hadamard matrix of 66 rows is known here"):
        Rotate(online=True).check_model(decoder)
    Rotate().check_model(decoder)


def test_what_is_turned_as_it_comes_is_counted() -> None:
    decoder = tiny_decoder("llama", layers=4, intermediate_size=64)
    seen = []

    def serve() -> Any:
        seen.append(score(decoder, TEXTS[:2]).segments)
        return [segment for row in seen[-1] for segment in row]

    with Rotate(online=True).attach(decoder, Prepared()):
        assert audit(decoder, serve).ratio == pytest.approx(1, abs=1e-9)
    for segment in (segment for row in seen[0] for segment in row):
        work = segment.extra["hadamard"]
        # attention's way back reads 32 numbers and the MLP's 64: n log2 n additions each
        assert 2 * work.macs == segment.queries * 4 * (32 * 5 + 64 * 6)
    with Rotate().attach(decoder, Prepared()):
        assert all(not segment.extra for segment in serve())


def error(x: torch.Tensor, weight: torch.Tensor, turn: torch.Tensor | None = None) -> float:
    """Median relative error of a token in int8's product, over floats of two sides that are turned or not."""
    exact = x.double() @ weight.double().T
    turned = [each if turn is None else (each.double() @ turn).float() for each in (x, weight)]
    y = Int8Linear(turned[1], None, None)(turned[0])
    return float(((y - exact).norm(dim=1) / exact.norm(dim=1)).median())


def test_outliers_in_a_layer_cost_nothing_after_the_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 1024, generator=generator), torch.randn(256, 1024, generator=generator)
    normal = error(x, weight)
    x[:, :600:100] *= 50  # six channels that are large on every token
    assert normal < 0.011
    assert error(x, weight) > 4 * normal
    assert error(x, weight, random_orthogonal(1024, 0)) < 1.15 * normal


def planted(*, outliers: bool) -> Any:
    """A model whose norms blow six channels up, which the layers that read them take back; or the one without."""
    decoder = tiny_decoder("llama", layers=2, hidden_size=128, intermediate_size=256)
    if outliers:
        with torch.no_grad():
            for block in decoder.anatomy.blocks:
                for branch, names in ((block.attention, ("query", "key", "value")), (block.mlp, ("gate", "up"))):
                    branch.pre_norm.get_parameter("weight")[list(OUTLIERS)] *= 50
                    for name in names:
                        block.roles[name].module.get_parameter("weight")[:, list(OUTLIERS)] /= 50
    return decoder


def loss(text: str, *, outliers: bool, ids: torch.Tensor) -> float:
    """How far the logits of a stack are from dense's, relative."""
    decoder = planted(outliers=outliers)
    dense = logits(decoder, ids)
    products = dict.fromkeys((site.place for site in sites(decoder)), "dense")
    with decoder.computed_by(products), parse(text).attached(decoder, lambda _: Prepared()):
        return float((logits(decoder, ids) - dense).norm() / dense.norm())


def test_a_model_with_outliers_loses_what_one_without_does(ids: torch.Tensor) -> None:
    normal = loss("int8-dynamic", outliers=False, ids=ids)
    assert loss("int8-dynamic", outliers=True, ids=ids) > 2 * normal
    assert loss("rotate+int8-dynamic", outliers=True, ids=ids) < 1.3 * normal
    assert loss("rotate:online=true+int8-dynamic", outliers=True, ids=ids) < 1.3 * normal


def test_the_kurtosis_of_what_layers_read_falls(ids: torch.Tensor) -> None:
    decoder = planted(outliers=True)

    def kurtosis() -> float:
        kept: list[torch.Tensor] = []
        norm = decoder.anatomy.blocks[1].attention.pre_norm
        hook = norm.register_forward_hook(lambda module, args, output: kept.append(output))
        logits(decoder, ids)
        hook.remove()
        (y,) = kept
        return float(((y - y.mean(-1, keepdim=True)) ** 4).mean(-1).div(y.var(-1, correction=0) ** 2).mean())

    before = kurtosis()
    with Rotate().attach(decoder, Prepared()):
        assert kurtosis() < 4 < before  # 3 is that of normal values


@pytest.mark.parametrize(
    ("family", "says"),
    [("gemma2", "Gemma2.* normalises the outputs of its branches"), ("olmo2", "Olmo2.* normalises the outputs")],
)
def test_norms_after_a_branch_are_refused_before_the_model_is_loaded(family: str, says: str, tmp_path: Any) -> None:
    outline = tiny_decoder(family)
    outline.module.to("meta")
    with pytest.raises(UnsupportedModelError, match=says):
        parse("rotate+int8-dynamic").check_model(lambda: outline)
    with (
        pytest.raises(UnsupportedModelError, match=says),
        parse("rotate").applied(tiny_decoder(family), Preparation(States(tmp_path), TEXT)),
    ):
        pass


@pytest.mark.parametrize("name", ["xglm", "mixtral"])
def test_what_has_no_other_basis_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no other basis|without experts"):
        Rotate().check_model(architecture(name))


@pytest.mark.parametrize("first", ["wanda", "int8-dynamic", "int4-weight-only", "mx", "calm"])
def test_it_goes_before_what_uses_the_weights(first: str) -> None:
    with pytest.raises(MethodError, match=rf"that {first} uses: write rotate\+{first}"):
        parse(f"{first}+rotate").check_order()
    parse(f"rotate+{first}").check_order()
    parse("shuffle+rotate").check_order()


def test_another_method_finds_the_turned_weights(tmp_path: Any, ids: torch.Tensor) -> None:
    decoder, preparation = tiny_decoder("gpt2", layers=2), Preparation(States(tmp_path), TEXT)
    dense = logits(decoder, ids)
    for above in ("int4-weight-only:group=16", "wanda:samples=2,length=48", "layer-drop:layers=1"):
        with parse(f"rotate:online=true+{above}").applied(decoder, preparation):
            assert not torch.allclose(logits(decoder, ids), dense, atol=1e-4)
        assert torch.equal(logits(decoder, ids), dense)
