"""Branches that are not the dense model's are counted as they run: FLOPs are those that PyTorch counts."""

import math
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from harness.contract.decoder import Auxiliary
from harness.contract.facts import Savings
from harness.measure.audit import count_flops
from harness.measure.branches import placed
from harness.measure.flops import causal_flops, executed_flops
from harness.measure.segment import ran_as_dense
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.surgery import put
from harness.model.weights.linear import ReplacementLayer, installed, sites
from harness.testing.tiny import FAMILIES, tiny_decoder

WIDTH = 32


@pytest.fixture(scope="module")
def models():
    return {family: tiny_decoder(family) for family in ("llama", "gpt2", "opt")}


@pytest.fixture
def llama(models):
    return models["llama"]


def served(model, batch, rows=2):
    """Segments and FLOPs, stated and counted, of a text that is scored and a generation, of several rows each."""
    ids = torch.randint(3, 200, (rows, 7))
    shape = ModelShape.of(model)

    def run():
        with torch.no_grad(), Tracer(model) as tracer:
            with model.serving(*batch("score", *[7] * rows)):
                model.module(ids)
                scored = tracer.collect()
            with model.serving(*batch("generate", *[7] * rows)):
                sizes = {"max_new_tokens": 3, "min_new_tokens": 3}
                model.module.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **sizes)
                return scored + tracer.collect()

    traced, counted = count_flops(run)
    segments = [segment for row in traced for segment in row]
    return segments, executed_flops(shape, segments), counted


def audited(model, batch, rows=2):
    segments, stated, counted = served(model, batch, rows)
    assert stated.total == counted
    return segments


class Narrow(ReplacementLayer):
    """A linear layer with fewer inputs or outputs."""

    kernel, savings = "dense product of a smaller matrix", Savings.REAL

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias
        self.macs_per_token = self.weight_count = weight.numel()

    def forward(self, x):
        return linear(x, self.weight, self.bias)


@contextmanager
def one_head(model):
    """Leave each attention the first head of 8 features, by replacement layers."""
    with ExitStack() as undo:
        for block in model.anatomy.blocks:
            attention = block.attention.modules[0]
            for name, value in (("num_heads", 1), ("split_size", 8), ("embed_dim", 8), ("num_key_value_groups", 1)):
                if hasattr(attention, name):
                    put(undo, attention, name, value)
        replaced = []
        for site in sites(model):
            weight, bias = site.weight, site.bias
            name = site.place.rpartition(".")[2]
            if name in ("q_proj", "k_proj", "v_proj"):
                replaced.append((site, Narrow(weight[:8], None if bias is None else bias[:8])))
            elif name == "c_attn":
                rows = [*range(8), *range(32, 40), *range(64, 72)]
                replaced.append((site, Narrow(weight[rows], bias[rows])))
            elif name == "o_proj" or (name == "c_proj" and "attn" in site.place):
                replaced.append((site, Narrow(weight[:, :8], bias)))
        undo.enter_context(installed(replaced))
        yield


def one_head_by_modules(undo, model):
    for block in model.anatomy.blocks:
        attention = block.attention.modules[0]
        for name, value in (("num_heads", 1), ("split_size", 8), ("embed_dim", 8), ("num_key_value_groups", 1)):
            if hasattr(attention, name):
                put(undo, attention, name, value)
        if hasattr(attention, "c_attn"):
            put(undo, attention, "c_attn", Conv1D(24, WIDTH))
            put(undo, attention, "c_proj", Conv1D(WIDTH, 8))
        else:
            for name in ("q_proj", "k_proj", "v_proj"):
                put(undo, attention, name, nn.Linear(WIDTH, 8, bias=False))
            put(undo, attention, "o_proj", nn.Linear(8, WIDTH, bias=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_is_counted_without_looking(family):
    """Every branch of every layout is known by its modules."""
    model = tiny_decoder(family)
    assert not any(branch.changed for branch in placed(model, ModelShape.of(model)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_heads_that_replacement_layers_leave_out(models, batch, family):
    model = models[family]
    with one_head(model):
        segments = audited(model, batch)
        assert sum(segments[0].held) == 4 * 7 * 2 * 8 * 4  # layers, tokens, keys and values, features, bytes
    assert ran_as_dense(audited(model, batch))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_heads_that_replaced_modules_leave_out(models, batch, family):
    model = models[family]
    with ExitStack() as undo:
        one_head_by_modules(undo, model)
        audited(model, batch)


class OwnMLP(nn.Module):
    """Half of the neurons, by functions of torch that have no module."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(24, WIDTH) / 6), nn.Parameter(torch.randn(WIDTH, 24) / 6)

    def forward(self, states):
        inner = silu(torch.einsum("rtw,nw->rtn", states, self.up))
        return inner @ self.down.T


class LowRank(nn.Module):
    """In place of a linear layer, none of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(inputs, 3)), nn.Parameter(torch.randn(3, outputs))

    def forward(self, states):
        return torch.matmul(states @ self.first, self.second) / 10


@pytest.mark.parametrize("name", ["attn", "mlp"])
def test_modules_of_a_gpt2_replaced_whole(models, batch, name):
    model = models["gpt2"]
    other = tiny_decoder("gpt2", n_inner=20)
    with ExitStack() as undo:
        for block, another in zip(model.anatomy.blocks, other.anatomy.blocks, strict=True):
            put(undo, block.module, name, getattr(another.module, name))
        segments = audited(model, batch)
    assert all(segment.attention == (segment.queries,) * 4 == segment.mlp for segment in segments)


@pytest.mark.parametrize("names", [("fc1", "fc2"), ("fc2",)])
def test_linear_layers_of_an_opt_replaced(models, batch, names):
    model, width = models["opt"], 20 if len(names) == 2 else 48
    with ExitStack() as undo:
        for block in model.anatomy.blocks[1:]:
            put(undo, block.module, "fc2", nn.Linear(width, WIDTH))
            if "fc1" in names:
                put(undo, block.module, "fc1", nn.Linear(WIDTH, width))
        segments = audited(model, batch)
    assert all(segment.mlp == (segment.queries,) * 4 for segment in segments)


def test_own_mlp(llama, batch):
    with ExitStack() as undo:
        for block in llama.anatomy.blocks[:2]:
            put(undo, block.module, "mlp", OwnMLP())
        put(undo, llama.anatomy.blocks[2].mlp.modules[0], "up_proj", LowRank(WIDTH, 48))
        segments = audited(llama, batch)
    assert all(segment.mlp == (segment.queries,) * 4 for segment in segments)
    assert {layer for segment in segments for layer in segment.own["mlp"]} == {0, 1, 2}


class OwnAttention(nn.Module):
    """One head of its own width, multiplied by hand or by torch."""

    def __init__(self, layer_idx, fused):
        super().__init__()
        self.layer_idx, self.fused = layer_idx, fused
        self.project, self.back = nn.Linear(WIDTH, 3 * 12), nn.Linear(12, WIDTH)

    def forward(self, hidden_states, past_key_values=None, **kwargs):
        queries, keys, values = self.project(hidden_states)[:, None].split(12, -1)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        if self.fused:
            attended = scaled_dot_product_attention(queries, keys, values)
        else:
            attended = torch.softmax(queries @ keys.mT / math.sqrt(12), -1) @ values
        return self.back(attended[:, 0]), None


@pytest.mark.parametrize("fused", [False, True])
def test_own_attention(llama, batch, fused):
    with ExitStack() as undo:
        for index, block in enumerate(llama.anatomy.blocks[1:], 1):
            put(undo, block.module, "self_attn", OwnAttention(index, fused))
        segments = audited(llama, batch)
        assert segments[0].held[1] == 7 * 2 * 12 * 4  # tokens, keys and values, features, bytes
    assert all(segment.attention == (segment.queries,) * 4 for segment in segments)


def test_an_attention_function_of_ones_own(llama, batch):
    """Registered with transformers, for all layers: it attends to every second key."""

    def attend(module, query, key, value, attention_mask, scaling, **_):
        groups = module.num_key_value_groups
        key, value = (part[:, :, ::2].repeat_interleave(groups, 1) for part in (key, value))
        attended = torch.softmax(query @ key.mT * scaling, -1) @ value
        return attended.transpose(1, 2), None

    config, usual = llama.module.config, llama.module.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register("every-second", attend)
    try:
        config._attn_implementation = "every-second"
        _, stated, counted = served(llama, batch)
    finally:
        config._attn_implementation = usual
        del ALL_ATTENTION_FUNCTIONS._global_mapping["every-second"]
    assert stated.total == counted
    assert stated.attention_scores > 0


def sparse(model, mlp, charges=None):
    """An MLP's forward that multiplies the rows of the weights that this input needs alone."""

    def forward(states):
        gate = silu(mlp.gate_proj(states))  # [rows, tokens, neurons]
        needed = (gate.abs().amax((0, 1)) > 0.2).nonzero()[:, 0]
        inner = gate[..., needed] * linear(states, mlp.up_proj.weight[needed])
        if charges is not None:
            layer = next(block.index for block in model.anatomy.blocks if block.mlp.modules[0] is mlp)
            macs = states.shape[0] * states.shape[1] * WIDTH * (48 + 2 * len(needed))
            model.charge("mlp", layer=layer, macs=macs, bytes=4.0 * len(needed))
            charges.append(macs)
        return linear(inner, mlp.down_proj.weight[:, needed])

    return forward


@pytest.mark.parametrize("charges", [None, []])
def test_activation_sparsity(llama, batch, charges):
    with ExitStack() as undo:
        for block in llama.anatomy.blocks:
            mlp = block.mlp.modules[0]
            undo.callback(delattr, mlp, "forward")
            mlp.forward = sparse(llama, mlp, charges)
        segments, stated, counted = served(llama, batch)
    assert stated.total == counted
    assert sum(charges or ()) * 2 in (0, stated.mlp)
    assert stated.mlp < sum(s.forwards * sum(s.mlp) for s in segments) * 2 * 3 * WIDTH * 48
    assert not ran_as_dense(segments)


def test_a_linear_layer_whose_forward_is_replaced_by_hand(llama, batch):
    down = llama.anatomy.blocks[1].mlp.modules[0].down_proj
    down.forward = lambda states: linear(states[..., :16], down.weight[:, :16])
    try:
        audited(llama, batch)
    finally:
        del down.forward


def test_an_operator_with_a_formula_is_counted(llama, batch):
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    @torch.library.custom_op("counted_test::halves", mutates_args=())
    def halves(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([states, states], -1)[..., :32] * weight.mean()

    @register_flop_formula(torch.ops.counted_test.halves)
    def flops(states, weight, *_, **__):
        return 2 * math.prod(states) * weight[0]

    class Operator(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, WIDTH))

        def forward(self, states):
            return halves(states, self.weight)

    with ExitStack() as undo:
        undo.callback(flop_registry.pop, torch.ops.counted_test.halves)
        put(undo, llama.anatomy.blocks[0].module, "mlp", Operator())
        segments = audited(llama, batch)
    assert segments[0].own["mlp"][0].macs == 7 * 5 * WIDTH


def test_layers_that_are_none_of_the_dense_models(llama, batch):
    """A linear layer in place of a whole block is work that the method adds; the dense layers are counted as ever."""

    class Linear(nn.Module):
        attention_type = "full_attention"

        def __init__(self):
            super().__init__()
            self.map = nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden_states, **_):
            return self.map(hidden_states)

    class Around(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.map = block, nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden_states, **kwargs):
            return self.map(self.block(hidden_states, **kwargs))

    layers = llama.module.model.layers
    with ExitStack() as undo:
        put(undo, llama.module.model, "layers", nn.ModuleList([layers[0], Linear(), layers[2], Around(layers[3])]))
        ids = torch.randint(3, 200, (2, 7))
        with torch.no_grad(), Tracer(llama) as tracer, llama.serving(*batch("score", 7, 7)):
            _, counted = count_flops(lambda: llama.module(ids, use_cache=False))
            rows = tracer.collect()
        flops = [executed_flops(ModelShape.of(llama), row) for row in rows]
    assert sum(each.total for each in flops) == counted
    assert rows[0][0].attention == (7, 0, 7, 7)
    assert flops[0].extra == {"layer": 2 * 2 * 7 * WIDTH * WIDTH}


def test_a_module_that_declares_its_work_is_believed(llama, batch):
    class Declared(nn.Module):
        macs_per_token = 7

        def forward(self, states):
            return states @ torch.zeros(WIDTH, WIDTH)

    with ExitStack() as undo:
        put(undo, llama.anatomy.blocks[0].module, "mlp", Declared())
        segments, stated, counted = served(llama, batch)
    assert segments[0].own["mlp"][0].macs == 7 * 7
    assert stated.total < counted


def test_an_auxiliary_inside_a_changed_branch_is_counted_once(llama, batch):
    router = nn.Linear(WIDTH, 5)

    class Routed(OwnMLP):
        def forward(self, states):
            return super().forward(states) * (1 + router(states).mean())

    with ExitStack() as undo:
        undo.enter_context(llama.assisted([Auxiliary(router, "router")]))
        put(undo, llama.anatomy.blocks[0].module, "mlp", Routed())
        segments = audited(llama, batch)
    assert segments[0].extra["router"].macs == 7 * 5 * WIDTH


def test_what_wraps_the_dense_models_module_runs_as_dense(llama, batch):
    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    dense = audited(llama, batch)
    with ExitStack() as undo:
        for block in llama.anatomy.blocks:
            put(undo, block.module, "mlp", Around(block.mlp.modules[0]))
            put(undo, block.module, "self_attn", Around(block.attention.modules[0]))
        assert audited(llama, batch) == dense
        shape = ModelShape.of(llama)
        assert causal_flops(shape, dense).total < executed_flops(shape, dense).total


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_a_changed_branch_leaves_nothing(llama, batch, error):
    class Fails(nn.Module):
        def forward(self, states):
            raise error

    ids = torch.randint(3, 200, (1, 5))
    with ExitStack() as undo, torch.no_grad():
        put(undo, llama.anatomy.blocks[1].module, "mlp", Fails())
        with pytest.raises(error), Tracer(llama) as tracer, llama.serving(*batch("score", 5)):
            llama.module(ids)
        assert error is KeyboardInterrupt or tracer.collect() == [[]]
    assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == []
    assert ran_as_dense(audited(llama, batch))
