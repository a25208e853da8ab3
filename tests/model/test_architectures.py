"""Architectures of every shape under the engines; the command of the same name goes through all there are."""

from itertools import product
from pathlib import Path

import pytest
import torch

from harness.contract.decoder import Row
from harness.contract.stack import parse
from harness.core.errors import UnsupportedModelError
from harness.evaluate.journal import Request, Served
from harness.evaluate.outcome import summary
from harness.measure.audit import audit, count_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.attention import attending, observing
from harness.model.influence import influence
from harness.model.paths.layer_path import require_routable
from harness.model.supported import COMPARED
from harness.model.surgery import without_blocks, without_branches
from harness.model.tokens.token_depth import token_depth
from harness.model.weights.linear import sites
from tests.benchmarks.architectures import CHECKS, decoder
from tests.model.dropping import assert_same, snapshot
from tests.model.tokens.test_token_depth import cached, masked
from tests.model.tokens.test_unfilled import Unfilled, falling

ONE_NORM = ("cohere", "falcon", "falcon, one norm by group", "gptj", "codegen", "stablelm, parallel")
OTHER = ("falcon, by group", "falcon, sequential", "glm4", "smollm3", "granite", "minicpm3")
EXPERTS = ("mixtral", "gpt_oss", "deepseek_v3")
BY_SHAPE = ("layer-drop", "paths", "token depth", "FLOPs")
"""Checks whose engines place layers and count by the shape; the others are compared on every layout too."""


@pytest.mark.parametrize(
    ("name", "check"),
    [
        *product([*ONE_NORM, *OTHER, *EXPERTS], BY_SHAPE),
        *product(["glm4", "granite"], [check for check in CHECKS if check not in BY_SHAPE]),
    ],
)
def test_an_engine_is_exact(name, check):
    compare, tolerance = CHECKS[check]
    assert compare(decoder(name)) <= tolerance


@pytest.mark.parametrize("name", ONE_NORM)
def test_one_branch_out_leaves_the_norm_that_the_other_reads(name, ids):
    model = decoder(name)
    block, ran = model.anatomy.blocks[1], []
    assert block.parallel
    (norm,) = {block.attention.pre_norm, block.mlp.pre_norm}
    norm.register_forward_hook(lambda *_: ran.append("norm"))
    block.attention.modules[0].register_forward_hook(lambda *_: ran.append("attention"))
    block.mlp.modules[-1].register_forward_hook(lambda *_: ran.append("mlp"))
    before = snapshot(model)
    for out, expected in (
        ({"attention": (1,)}, ["norm", "mlp"]),
        ({"mlp": (1,)}, ["norm", "attention"]),
        ({"attention": (1,), "mlp": (1,)}, []),
    ):
        ran.clear()
        with without_branches(model, **out), torch.no_grad():
            model.module(ids)
        assert ran == expected
    assert_same(before, snapshot(model))


@torch.no_grad()
def test_influence_of_branches_that_read_one_norm(ids):
    model = decoder("phi")
    block, seen = model.anatomy.blocks[2], {}
    block.module.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    block.attention.modules[0].register_forward_hook(lambda module, args, output: seen.update(attention=output[0]))
    block.mlp.modules[0].register_forward_hook(lambda module, args, output: seen.update(mlp=output))
    scores = influence(model, [ids]).scores
    for unit in ("attention", "mlp"):
        after = seen["x"] + seen[unit]
        assert scores[unit][2] == pytest.approx(
            1 - float(torch.cosine_similarity(seen["x"], after, dim=-1).mean()), abs=1e-5
        )


@pytest.mark.parametrize(
    "name", [*ONE_NORM, *OTHER, "gpt_bigcode", "gpt_bigcode, by head", "phi3", "gpt_neo", "diffllama"]
)
@torch.no_grad()
def test_the_cache_is_as_large_as_stated(name):
    model = decoder(name)
    cache = model.module(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    stored = [(layer.keys.nbytes + layer.values.nbytes) // 3 for layer in cache.layers]
    shape = ModelShape.of(model)
    assert stored == [shape.kv_bytes(layer) for layer in range(4)]


# ---- experts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_experts_are_counted_as_they_are_routed(name, implementation):
    model = decoder(name)
    model.module.set_experts_implementation(implementation)
    compare, tolerance = CHECKS["FLOPs"]
    assert compare(model) <= tolerance
    _, all_of_them = count_flops(lambda: model.module(torch.tensor([[5, 6, 7]])))
    routed = ModelShape.of(model).layers[0].experts
    assert (routed.count, routed.per_token) == (4, 2)
    assert all_of_them > 0


def test_numbers_of_a_mixture_by_hand():
    model = decoder("mixtral")
    shape, width, inner = ModelShape.of(model), 32, 48
    one = 3 * width * inner
    layer = shape.layers[1]
    assert layer.mlp.macs == 2 * one + 4 * width
    assert layer.mlp.bytes == 4 * width * 4  # the router's, in float32
    assert layer.experts.bytes == one * 4
    assert [layer.experts.hit_bytes(tokens) // (one * 4) for tokens in (1, 2, 3)] == [2, 4, 4]
    assert shape.parameters - shape.active_parameters == 4 * 2 * one


def test_layers_without_experts_have_none():
    shape = ModelShape.of(decoder("deepseek_v3"))
    assert [layer.experts is not None for layer in shape.layers] == [False, True, True, True]
    dense = ModelShape.of(decoder("llama"))
    assert dense.parameters == dense.active_parameters


@pytest.mark.parametrize("patterns", [("*",), ("*.mlp.*",), ("*.1.mlp.experts*",), ("*_proj",)])
def test_linear_layers_of_experts_are_not_left_out_in_silence(patterns):
    with pytest.raises(UnsupportedModelError, match=r"MixtralForCausalLM .*mlp.experts.*linears=\*self_attn\*"):
        sites(decoder("mixtral"), patterns)


def test_patterns_of_attention_alone_reach_it():
    model = decoder("mixtral")
    assert len(sites(model, ("*self_attn*",))) == 16
    assert len(sites(decoder("deepseek_v3"), layers=(0,))) > 0  # a layer without experts


@pytest.mark.parametrize("name", ["falcon", "falcon, by group", "gptj", "codegen", "gpt_neo", "gpt_bigcode"])
def test_tokens_may_leave_layers_of_every_shape_for_good(name):
    """Layers that give tuples, and attentions that keep their index in an inner module."""
    model, table = decoder(name), falling()
    ids = torch.randint(3, 259, table.shape[1:], generator=torch.Generator().manual_seed(2))
    with token_depth(model, Unfilled(table)):
        actual = cached(model, ids)
    torch.testing.assert_close(actual, masked(model, ids, table), rtol=1e-5, atol=1e-5)


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt_neo", "falcon, alibi", "diffllama"])
@pytest.mark.parametrize("method", ["kv-evict:scorer=knorm", "streaming"])
def test_attention_by_place_or_across_heads_has_no_presses(name, method):
    model = decoder(name)
    with pytest.raises(
        UnsupportedModelError, match=r"presses on the cache are not offered, because (its att|a head's)"
    ):
        parse(method).check_model(lambda: model)


@pytest.mark.parametrize("name", ["gpt_neo", "falcon, alibi"])
def test_attention_by_place_in_the_row_has_no_paths(name):
    with pytest.raises(
        UnsupportedModelError, match=r"CausalLM: layer paths are not offered.*place of a token in its row"
    ):
        require_routable(decoder(name))
    compare, tolerance = CHECKS["token depth"]
    assert compare(decoder(name)) <= tolerance


@pytest.mark.parametrize("name", ["mamba", "lfm2", "falcon_h1", "recurrent_gemma", "rwkv"])
def test_layers_that_scan_are_refused_by_every_engine(name):
    model = decoder(name)
    assert model.anatomy.blocks == ()
    assert model.live == []
    says = rf"{type(model.module).__name__}.*carry a state from token to token"
    for engine in (require_routable, lambda model: token_depth(model, None).__enter__(), dropped):
        with pytest.raises(UnsupportedModelError, match=says):
            engine(model)
    with pytest.raises(UnsupportedModelError, match=f"layer-drop: {says}"), attached("layer-drop:count=1", model):
        pass
    with pytest.raises(UnsupportedModelError, match=f"layer-drop: {says}"):
        parse("layer-drop:count=1").check_model(lambda: model)
    shape = ModelShape.of(model)
    assert shape.uncounted
    assert shape.parameters == sum(parameter.numel() for parameter in model.module.parameters())


def dropped(model):
    with without_blocks(model, (0,)):
        pass


def attached(method, model):
    return parse(method).applied(model, None)


def test_what_no_formula_counts_is_null(ids):
    model = decoder("mamba")
    with Tracer(model) as tracer, model.serving([Row("t", 0, (0,), 16, 16), Row("t", 1, (0,), 16, 16)], "score"):
        model.module(ids)
        rows = tracer.collect()
    served = [
        Served((Request("t", row, 0, 0, "loglikelihood"),), ((0.0, True),), 16, 0, tuple(rows[row])) for row in (0, 1)
    ]
    outcome = summary({"results": {}, "samples": {}, "configs": {}}, served, ModelShape.of(model), None)
    assert outcome.flops is None
    with pytest.raises(ValueError, match="no formula here counts"):
        audit(model, lambda: rows[0])


def test_the_documented_architectures_are_those_that_run():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    compared = {cells[0].strip("`").partition(",")[0] for cells in rows if len(cells) == 10 and cells[4] == "exact"}
    assert compared - {"gpt-sw3"} | {"gemma3"} == set(
        COMPARED
    )  # a name of GPT-2's, and a text model with images around


@pytest.mark.parametrize("name", ["falcon", "gptj", "codegen", "gpt_neo", "xglm"])
def test_attention_that_looks_no_function_up_is_not_replaced_or_observed(name):
    model = decoder(name)
    for engine in (
        lambda: attending(model, lambda *_: None, name="mine"),
        lambda: observing(model, lambda *_: None),
    ):
        with pytest.raises(UnsupportedModelError, match="multiplies queries and keys by itself"), engine():
            pass


def test_attention_with_sinks_of_its_own_is_not_replaced():
    model = decoder("gpt_oss")
    with pytest.raises(UnsupportedModelError, match="its attention has learned sinks"):
        parse("window-attention").check_model(lambda: model)


@torch.no_grad()
def test_attention_that_reads_twice_in_a_forward_is_observed_once(ids):
    model, layers = decoder("diffllama"), []
    with observing(model, lambda layer, queries, keys: layers.append(layer)):
        model.module(ids)
    assert layers == [0, 1, 2, 3]
