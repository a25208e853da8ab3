"""The shape follows the modules that are in place."""

import pytest
import torch
from torch import nn

from harness.measure.shape import ModelShape
from harness.testing.tiny import FAMILIES, tiny_decoder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_the_layers_is_a_linear(family):
    model = tiny_decoder(family)
    shape = ModelShape.of(model)
    for block, layer in zip(model.anatomy.blocks, shape.layers, strict=True):
        matrices = [parameter for parameter in block.module.parameters() if parameter.ndim == 2]
        assert layer.attention.macs + layer.mlp.macs == sum(matrix.numel() for matrix in matrices)
        assert layer.attention.bytes + layer.mlp.bytes == sum(matrix.nbytes for matrix in matrices)
    assert shape.other.macs == 0
    assert shape.parameters == sum(parameter.numel() for parameter in model.module.parameters())


def test_json_keeps_the_shape():
    shape = ModelShape.of(tiny_decoder("gemma2"))
    assert ModelShape.model_validate_json(shape.model_dump_json()) == shape


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", [None] * 4),
        ("mistral", [6] * 4),
        ("qwen2", [None] * 4),
        ("gemma2", [6, None, 6, None]),
        ("gemma3", [6, None, 6, None]),
    ],
)
def test_windows_are_those_of_the_layers(family, windows):
    assert [layer.window for layer in ModelShape.of(tiny_decoder(family)).layers] == windows


def test_widths_of_grouped_heads():
    layer = ModelShape.of(tiny_decoder("llama")).layers[0]
    assert (layer.pair_macs, layer.cache_width) == (64, 32)


def test_tied_weights_count_once():
    tied = ModelShape.of(tiny_decoder("llama", tie_word_embeddings=True))
    untied = ModelShape.of(tiny_decoder("llama", tie_word_embeddings=False))
    assert untied.parameters - tied.parameters == untied.head.macs
    assert untied.bytes - tied.bytes == untied.head.bytes


def test_half_precision_halves_the_bytes():
    model = tiny_decoder("llama")
    full = ModelShape.of(model)
    model.module.to(torch.bfloat16)
    half = ModelShape.of(model)
    assert (2 * half.head.bytes, 2 * half.embedding_bytes) == (full.head.bytes, full.embedding_bytes)
    assert (half.kv_element_bytes, half.head.macs) == (2, full.head.macs)


def test_a_replaced_linear_shows():
    model = tiny_decoder("llama")
    mlp = model.module.model.layers[1].mlp
    dense = ModelShape.of(model)
    inner, hidden = mlp.up_proj.weight.shape
    mlp.up_proj = nn.Sequential(nn.Linear(hidden, 3, bias=False), nn.Linear(3, inner, bias=False))
    shape = ModelShape.of(model)
    assert dense.layers[1].mlp.macs - shape.layers[1].mlp.macs == hidden * inner - 3 * (hidden + inner)
    assert shape.layers[0] == dense.layers[0]
    assert shape != dense


def test_a_replaced_linear_may_know_its_own_cost():
    class Packed(nn.Module):
        macs_per_token = 7

        def __init__(self):
            super().__init__()
            self.register_buffer("packed", torch.zeros(5, dtype=torch.uint8))
            self.register_buffer("scales", torch.zeros(3, dtype=torch.float16))

    model = tiny_decoder("llama")
    before = ModelShape.of(model).layers[0].mlp
    mlp = model.module.model.layers[0].mlp
    down = mlp.down_proj.weight
    mlp.down_proj = Packed()
    after = ModelShape.of(model).layers[0].mlp
    assert after.macs == before.macs - down.numel() + 7
    assert after.bytes == before.bytes - down.nbytes + 5 + 2 * 3


def test_narrower_attention_shows():
    model = tiny_decoder("llama")
    attention = model.module.model.layers[0].self_attn
    attention.q_proj = nn.Linear(32, 16, bias=False)
    layers = ModelShape.of(model).layers
    assert (layers[0].pair_macs, layers[1].pair_macs) == (32, 64)


def test_a_removed_layer_frees_its_weights():
    model = tiny_decoder("llama")
    dense = ModelShape.of(model)
    freed = sum(parameter.numel() for parameter in model.module.model.layers[2].parameters())
    del model.module.model.layers[2]
    shape = ModelShape.of(model)
    assert dense.parameters - shape.parameters == freed
    assert dense.bytes - shape.bytes == 4 * freed
    assert shape.layers == dense.layers
