"""What fused attentions multiply, by the shapes of their arguments, against attention that is written out.

No kernel for a GPU runs here: each operator is called on the device "meta", where it gives shapes alone.
"""

import pytest
import torch
from torch import Tensor
from torch.utils import flop_counter

from harness.measure.audit import count_flops
from harness.measure.formulas import added, formula_of

ATEN = torch.ops.aten
BATCH, QUERIES, KEYS, WIDTH = 2, 5, 9, 16


def tensors(heads: int, groups: int, values: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, [batch, heads, tokens, width], without numbers."""
    shapes = (heads, QUERIES, WIDTH), (groups, KEYS, WIDTH), (groups, KEYS, values)
    first, second, third = (torch.empty(BATCH, *shape, dtype=torch.float16, device="meta") for shape in shapes)
    return first, second, third


def written_out(query: Tensor, key: Tensor, value: Tensor) -> int:
    """FLOPs of both products as PyTorch counts them, every group of keys repeated for its queries."""
    repeats = query.shape[1] // key.shape[1]

    def attend() -> Tensor:
        scores = query @ key.repeat_interleave(repeats, 1).mT
        return scores.softmax(-1) @ value.repeat_interleave(repeats, 1)

    return count_flops(attend)[1]


FUSED = {
    "flash": lambda q, k, v: ATEN._scaled_dot_product_flash_attention(q, k, v),
    "flash on a CPU": lambda q, k, v: ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v),
    "efficient": lambda q, k, v: ATEN._scaled_dot_product_efficient_attention(q, k, v, None, False),
    "cudnn": lambda q, k, v: ATEN._scaled_dot_product_cudnn_attention(q, k, v, None, False),
}


@pytest.mark.parametrize("groups", [8, 2, 1])
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_attention_is_counted_as_one_that_is_written_out(name: str, groups: int) -> None:
    given = tensors(8, groups)
    assert count_flops(lambda: FUSED[name](*given))[1] == written_out(*given) > 0


@pytest.mark.parametrize("groups", [8, 2])
def test_attention_that_is_made_of_products(groups: int) -> None:
    given = tensors(8, groups)
    counted = count_flops(lambda: ATEN._scaled_dot_product_attention_math(*given, enable_gqa=True))[1]
    assert counted == written_out(*given)


@pytest.mark.parametrize("name", ["flash", "efficient", "cudnn"])
def test_a_counter_of_pytorch_that_refuses_groups_is_not_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of PyTorch until 2.11 did."""

    def refuse(*_: object, **__: object) -> int:
        raise AssertionError("query/key/value shapes are incompatible")

    for operator in added():
        if "attention" in str(operator):
            monkeypatch.setitem(flop_counter.flop_registry, operator, refuse)
    given = tensors(8, 2)
    assert count_flops(lambda: FUSED[name](*given))[1] == written_out(*given)


def test_every_fused_attention_has_a_formula_of_ours() -> None:
    """An encoder's whole layer, which no decoder runs, is left out: what nothing counts is named in a record."""
    made = {"scaled_dot_product_attention", "_scaled_dot_product_attention_math"}  # of others
    whole = {"_native_multi_head_attention", "_triton_multi_head_attention"}
    schemas = {schema.name.removeprefix("aten::") for schema in torch._C._jit_get_all_schemas()}
    fused = {name for name in schemas if "attention" in name and "backward" not in name and "::" not in name}
    chosen = {name for name in fused if "fused_sdp_choice" not in name} - made - whole
    ours = added()
    assert {name for name in chosen if getattr(ATEN, name) not in ours} == set()


@pytest.mark.parametrize("values", [WIDTH, 24])
def test_a_batch_in_the_layout_beneath(values: int) -> None:
    """[batch, tokens, heads, width], as flash and memory-efficient kernels take it."""
    query, key, value = tensors(8, 2, values)
    turned = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    pairs = 2 * BATCH * 8 * QUERIES * KEYS * (WIDTH + values)
    flash, efficient = ATEN._flash_attention_forward.default, ATEN._efficient_attention_forward.default
    cudnn = ATEN._cudnn_attention_forward.default
    rest = (None, None, QUERIES, KEYS, 0.0)
    assert formula_of(flash)(*turned, *rest, False, False, out_val=None) == pairs
    assert formula_of(efficient)(*turned, None, *rest, 0, out_val=None) == pairs
    assert formula_of(cudnn)(query, key, value, None, None, None, QUERIES, KEYS, False, out_val=None) == pairs


TEXTS = [0, 3, 3, 10], [0, 5, 6, 18]  # 3 queries over 5 keys, none over 1, 7 over 12
PAIRS = 3 * 5 + 7 * 12


@pytest.mark.parametrize(("heads", "groups"), [(8, 8), (8, 2)])
def test_texts_behind_one_another(heads: int, groups: int) -> None:
    offsets = [torch.tensor(begins, dtype=torch.int32) for begins in TEXTS]
    query, key = torch.empty(10, heads, WIDTH), torch.empty(18, groups, WIDTH)
    expected = 2 * heads * PAIRS * 2 * WIDTH
    rest = (*offsets, 7, 12, 0.0)
    flash, efficient = ATEN._flash_attention_forward.default, ATEN._efficient_attention_forward.default
    assert formula_of(flash)(query, key, key, *rest, False, False, out_val=None) == expected
    assert formula_of(efficient)(query[None], key[None], key[None], None, *rest, 0, out_val=None) == expected
    into = ATEN._flash_attention_forward_no_dropout_inplace
    assert added()[into](query, query, key, key, *rest, False, False, out_val=None) == expected


def test_lengths_that_cannot_be_read_are_those_of_the_longest() -> None:
    offsets = torch.empty(4, dtype=torch.int32, device="meta")
    query = torch.empty(10, 8, WIDTH, device="meta")
    flash = ATEN._flash_attention_forward.default
    counted = formula_of(flash)(query, query, query, offsets, offsets, 7, 12, 0.0, True, False, out_val=None)
    assert counted == 2 * 8 * 3 * 7 * 12 * 2 * WIDTH


def test_texts_of_the_operator_for_several_lengths() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this PyTorch has no attention of that kind")
    assert varlen is not None
    offsets = torch.tensor(TEXTS[0], dtype=torch.int32)
    query = torch.empty(10, 8, WIDTH)
    counted = added()[torch.ops.torch_attn._varlen_attn](query, query, query, offsets, None, 7, 7, out_val=None)
    assert counted == 2 * 8 * (3 * 3 + 7 * 7) * 2 * WIDTH


def test_what_an_older_pytorch_lacks_is_left_out() -> None:
    assert all(packet is not None for packet in added())
    assert ATEN._scaled_dot_product_flash_attention in added()
