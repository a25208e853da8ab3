"""Wherever a method puts code of its own, and whatever it multiplies with, FLOPs are those that PyTorch counts."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, relu, scaled_dot_product_attention, silu

from harness.measure.audit import audit, count_flops
from harness.measure.branches import changed_blocks, changed_surroundings, is_changed_head, placed
from harness.measure.flops import executed_flops, unknown_flops
from harness.measure.segment import Segment, as_dense, depth, ran_as_dense
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.measure.traffic import traffic
from harness.model.cache.pressed import pressed
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.model.tokens.token_depth import token_depth
from harness.testing.tiny import tiny_decoder
from tests.model.tokens.test_token_depth import Table

WIDTH, INNER, ROWS, TOKENS = 32, 48, 2, 7


@pytest.fixture
def llama():
    return tiny_decoder("llama", layers=2)


@pytest.fixture
def layers(llama):
    return llama.module.model.layers


def served(model, batch):
    """Segments of all rows, and FLOPs, stated and counted, of a text that is scored."""
    torch.manual_seed(0)
    ids = torch.randint(3, 200, (ROWS, TOKENS))

    def run():
        with torch.no_grad(), Tracer(model) as tracer, model.serving(*batch("score", *[TOKENS] * ROWS)):
            model.module(ids)
            return [segment for row in tracer.collect() for segment in row]

    segments, counted = count_flops(run)
    return segments, executed_flops(ModelShape.of(model), segments).total, counted


def added_of(segments):
    return sum(segment.forwards * work.macs for segment in segments for work in segment.extra.values())


class WithLora(nn.Linear):
    def forward(self, states):
        return super().forward(states) + states @ self.first @ self.second


class Half(nn.Linear):
    def forward(self, states):
        return linear(states[..., :16], self.weight[:, :16])


def by_class(layers):
    for layer in layers:
        query = layer.self_attn.q_proj
        query.__class__ = WithLora
        query.first, query.second = nn.Parameter(torch.randn(WIDTH, 4)), nn.Parameter(torch.randn(4, WIDTH))
        layer.mlp.up_proj.__class__ = Half


def hooks_on(part):
    def change(layers):
        for layer in layers:
            module = part(layer)
            width = module.out_features if isinstance(module, nn.Linear) else WIDTH
            matrix = torch.randn(width, width)

            def after(_, args, output, matrix=matrix):
                return (output[0] @ matrix, *output[1:]) if isinstance(output, tuple) else output @ matrix

            module.register_forward_hook(after)

    return change


def hook_before(layers):
    matrix = torch.randn(WIDTH, WIDTH)
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: (args[0] @ matrix,))


def function_in_an_attribute(layers):
    matrix = torch.randn(INNER, INNER)
    for layer in layers:
        del layer.mlp.act_fn
        layer.mlp.act_fn = lambda states: silu(states @ matrix)


def norm_with_a_linear(layers):
    for layer in layers:
        layer.post_attention_layernorm = nn.Sequential(layer.post_attention_layernorm, nn.Linear(WIDTH, WIDTH))


def product_in_a_block(layers):
    matrix = torch.randn(WIDTH, WIDTH)
    for layer in layers:
        layer.forward = lambda states, *args, usual=layer.forward, **kwargs: usual(states @ matrix, *args, **kwargs)


CHANGES = {
    "class": by_class,
    "hook on mlp": hooks_on(lambda layer: layer.mlp),
    "hook on attention": hooks_on(lambda layer: layer.self_attn),
    "hook on linear": hooks_on(lambda layer: layer.mlp.up_proj),
    "hook on block": hooks_on(lambda layer: layer),
    "hook on norm": hooks_on(lambda layer: layer.input_layernorm),
    "hook before": hook_before,
    "function": function_in_an_attribute,
    "norm": norm_with_a_linear,
    "block": product_in_a_block,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_code_in_layers_is_counted(llama, layers, batch, change):
    change(layers)
    segments, stated, counted = served(llama, batch)
    assert stated == counted
    assert not ran_as_dense(segments)
    assert depth(segments, "score").mean == 1


def around_the_head(model):
    head, matrix = model.lm_head, torch.randn(WIDTH, 259)
    head.forward = lambda states: linear(states, head.weight) + states @ matrix


def hook_on_the_head(model):
    matrix = torch.randn(WIDTH, WIDTH)
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] @ matrix,))


def head_of_two(model):
    model.lm_head = nn.Sequential(nn.Linear(WIDTH, 8, bias=False), nn.Linear(8, 259, bias=False))


@pytest.mark.parametrize("change", [around_the_head, hook_on_the_head, head_of_two])
def test_a_head_is_counted(llama, batch, change):
    change(llama.module)
    segments, stated, counted = served(llama, batch)
    assert stated == counted
    assert all(segment.head == segment.queries for segment in segments)
    assert not ran_as_dense(segments)
    bare = traffic(ModelShape.of(llama), [segment.__class__.from_json(segment.to_json()) for segment in segments])
    of_head = sum(weight.nbytes for weight in llama.module.lm_head.parameters())
    of_layers = sum(
        weight.nbytes for layer in llama.module.model.layers for weight in layer.parameters() if weight.ndim > 1
    )
    assert bare.weights >= of_layers + of_head


def hook_on_the_embedding(model, matrix):
    model.model.embed_tokens.register_forward_hook(lambda _, args, states: states @ matrix)


def forward_of_the_stack(model, matrix):
    usual = model.model.forward

    def forward(*args, **kwargs):
        output = usual(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state @ matrix
        return output

    model.model.forward = forward


@pytest.mark.parametrize("change", [hook_on_the_embedding, forward_of_the_stack])
def test_code_around_the_layers_is_counted(llama, batch, change):
    change(llama.module, torch.randn(WIDTH, WIDTH))
    segments, stated, counted = served(llama, batch)
    assert stated == counted
    assert added_of(segments) == ROWS * TOKENS * WIDTH * WIDTH


def inlined(layer):
    """A layer's forward in which its MLP, or all of it, is written out."""

    def forward(hidden_states, **kwargs):
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        states, mlp = hidden_states + attended, layer.mlp
        inner = layer.post_attention_layernorm(states)
        gated = silu(linear(inner, mlp.gate_proj.weight)) * (inner @ mlp.up_proj.weight.T)
        return states + linear(gated, mlp.down_proj.weight)

    return forward


def test_an_mlp_that_a_block_writes_out_ran(llama, layers, batch):
    dense, of_dense, _ = served(llama, batch)
    for layer in layers:
        layer.forward = inlined(layer)
    segments, stated, counted = served(llama, batch)
    assert stated == counted == of_dense
    assert segments == dense


def test_a_block_of_another_class(llama, layers, batch):
    class Inlined(type(layers[0])):
        def forward(self, *args, **kwargs):
            return inlined(self)(*args, **kwargs)

    for layer in layers:
        layer.__class__ = Inlined
    segments, stated, counted = served(llama, batch)
    assert stated == counted
    assert depth(segments, "score").mean == 1


def test_engines_code_is_no_code_of_a_method(llama):
    press = pressed(llama, lambda entries: entries.ends(4, 4), name="press")
    for engine in (routed(llama, FixedPaths(((1, 1),))), token_depth(llama, Table(torch.ones(2, 1, 9))), press):
        with engine:
            assert not changed_blocks(llama)
            assert not changed_surroundings(llama)
            assert not is_changed_head(llama)
            assert not placed(llama, ModelShape.of(llama))[1].changed


class Mlp(nn.Module):
    def __init__(self, product):
        super().__init__()
        self.up = nn.Parameter(torch.randn(INNER, WIDTH) / 6)
        self.down = nn.Parameter(torch.randn(WIDTH, INNER) / 6)
        self.product = [product]

    def forward(self, states):
        (product,) = self.product
        return product(relu(product(states, self.up)), self.down)


def token_by_token(states, weight):
    flat = states.reshape(-1, states.shape[-1])
    return torch.stack([torch.mv(weight, token) for token in flat]).view(*states.shape[:-1], -1)


PRODUCTS = {
    "einsum of a list": lambda states, weight: torch.einsum("rtw,nw->rtn", [states, weight]),
    "bmm": lambda states, weight: torch.bmm(states, weight.T.expand(len(states), -1, -1)),
    "multi_dot": lambda states, weight: torch.linalg.multi_dot([states.flatten(0, 1), weight.T]).unflatten(
        0, (ROWS, -1)
    ),
    "conv1d": lambda states, weight: torch.conv1d(states.mT, weight[:, :, None]).mT,
    "vmap": lambda states, weight: torch.vmap(lambda row: linear(row, weight))(states),
    "rmatmul": lambda states, weight: weight.T.__rmatmul__(states),
    "aten": lambda states, weight: torch.ops.aten.linear(states, weight),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_products_and_their_weights(llama, layers, batch, product):
    shape = ModelShape.of(llama)
    for layer in layers:
        layer.mlp = Mlp(product)
    segments, stated, counted = served(llama, batch)
    assert stated == counted
    assert depth(segments, "score").mean == 1
    of_mlps = 2 * 2 * WIDTH * INNER * 4
    others = sum(layer.attention.bytes for layer in shape.layers) + shape.head.bytes
    assert traffic(shape, segments).weights == of_mlps + others


def distances(states, weight):
    return torch.cdist(states, weight)


def sparse(states, weight):
    return torch.sparse.mm(weight.to_sparse(), states.flatten(0, 1).T).T.unflatten(0, states.shape[:2])


def vmapped(states, weight):
    return torch.vmap(torch.vmap(lambda token: weight @ token))(states)


@pytest.mark.parametrize("product", [token_by_token, distances, sparse, vmapped])
def test_products_that_are_seldom(llama, layers, batch, product):
    for layer in layers:
        layer.mlp = Mlp(product)
    segments, stated, counted = served(llama, batch)
    assert stated == counted
    assert depth(segments, "score").mean == 1
    assert all(set(segment.own["mlp"]) == {0, 1} for segment in segments)


def test_bilinear(llama, layers, batch):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = nn.Bilinear(WIDTH, WIDTH, WIDTH)

        def forward(self, states):
            return self.pair(states, states)

    layers[0].mlp = Pair()
    segments, stated, counted = served(llama, batch)
    assert stated == counted
    assert segments[0].own["mlp"][0].macs == TOKENS * WIDTH**3


def test_attention_by_names_in_another_order(llama, layers, batch):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden_states, **_):
            states = self.project(hidden_states)[:, None]  # [rows, 1, tokens, width]
            few = states[:, :, :3]
            return scaled_dot_product_attention(value=few, key=few, query=states)[:, 0], None

    layers[1].self_attn = Attention()
    segments, stated, counted = served(llama, batch)
    assert stated == counted
    assert segments[0].own["scores"][1].macs == TOKENS * 3 * 2 * WIDTH


@torch.library.custom_op("changed_code_test::mlp", mutates_args=())
def whole_mlp(states: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """An MLP as one operator that has no formula."""
    return linear(relu(linear(states, up)), down)


class Operator(Mlp):
    def forward(self, states):
        return whole_mlp(states, self.up, self.down)


def quantized():
    with torch.no_grad():
        plain = nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH)).eval()
        return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("made", "name"),
    [(lambda: Operator(None), "changed_code_test.mlp"), (quantized, "quantized.linear_dynamic")],
    ids=["custom", "quantized"],
)
def test_what_an_operator_without_a_formula_multiplies_is_not_known(llama, layers, batch, made, name):
    dense, *_ = served(llama, batch)
    layers[1].mlp = made()
    segments, *_ = served(llama, batch)
    assert {segment.uncounted for segment in segments} == {(name,)}
    assert f"no formula counts {name}, which ran" in unknown_flops(ModelShape.of(llama), segments)
    assert not ran_as_dense(segments)
    assert [Segment.from_json(segment.to_json()) for segment in segments] == segments
    assert unknown_flops(ModelShape.of(llama), [*dense, *map(as_dense, segments)]) is None
    with pytest.raises(ValueError, match=f"no formula counts {name}"):
        audit(llama, lambda: segments)


def test_an_operator_in_a_block_is_not_known(llama, layers, batch):
    weights = Mlp(None)
    for layer in layers:

        def forward(hidden_states, layer=layer, **kwargs):
            attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
            return hidden_states + attended + whole_mlp(attended, weights.up, weights.down)

        layer.forward = forward
    segments, *_ = served(llama, batch)
    assert all(segment.uncounted == ("changed_code_test.mlp",) for segment in segments)


def test_an_operator_whose_work_is_charged_is_believed(llama, layers, batch):
    class Charged(Operator):
        def forward(self, states):
            llama.charge("mlp", layer=0, macs=ROWS * TOKENS * 10, bytes=1, tokens=ROWS * TOKENS)
            return super().forward(states)

    layers[0].mlp = Charged(None)
    segments, *_ = served(llama, batch)
    assert segments[0].own["mlp"][0].macs == TOKENS * 10
    assert not any(segment.uncounted for segment in segments)
