"""FLOPs of operators by the shapes of their arguments: PyTorch's own formulas, and those that it has none for.

An operator may multiply matrices without a formula: one of a library of its own, or one of those of PyTorch that are
named here. What ran in it is not known, and must not read as zero.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from math import prod
from typing import Any, Final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry, shape_wrapper

Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Both products of attention over shapes [batch, heads, tokens, width], the full rectangle.

    Keys and values may have fewer heads (grouped-query attention): each is multiplied once for every query head.
    """
    batch, heads, queries, width = query
    # query-key, then probability-value
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _rows(query: Tensor, key: Tensor, value: Tensor, begins: Sequence[Tensor | None], most: tuple[int, int]) -> int:
    """The same over [batch, tokens, heads, width], or over texts behind one another, [..., all tokens, heads, width].

    Args:
        begins: where each text begins among the queries and among the keys, [texts + 1]; None of a batch.
        most: tokens of the longest text, of queries and of keys.
    """
    of_queries, of_keys = begins[0], begins[1] if begins[1] is not None else begins[0]
    if of_queries is None or of_keys is None:
        pairs = query.shape[0] * query.shape[1] * key.shape[1]
    else:
        lengths = [_lengths(offsets, longest) for offsets, longest in zip((of_queries, of_keys), most, strict=True)]
        pairs = sum(queries * keys for queries, keys in zip(*lengths, strict=True))
    return 2 * query.shape[-2] * pairs * (query.shape[-1] + value.shape[-1])


def _lengths(begins: Tensor, longest: int) -> list[int]:
    """Tokens of each text; where the numbers cannot be read (meta, fake), of as many as the longest has."""
    if begins.device.type == "meta" or isinstance(begins, FakeTensor):
        return [int(longest)] * (len(begins) - 1)
    return [int(length) for length in begins.diff().tolist()]


def _flash(query: Tensor, key: Tensor, value: Tensor, *args: Any, **_: Any) -> int:
    """Of the operator beneath flash attention: [batch, tokens, heads, width], or texts behind one another."""
    return _rows(query, key, value, args[:2], args[2:4])


def _flash_into(_: Tensor, *args: Any, **kwargs: Any) -> int:
    """The same, which writes into its first argument."""
    return _flash(*args, **kwargs)


def _efficient(query: Tensor, key: Tensor, value: Tensor, _: Any, *args: Any, **__: Any) -> int:
    """Of the operator beneath memory-efficient attention, which is given a bias too; texts are of a batch of one."""
    return _rows(query, key, value, args[:2], args[2:4])


def _cudnn(query: Tensor, key: Tensor, value: Tensor, _: Any, *args: Any, **__: Any) -> int:
    """Of the operator beneath cuDNN's attention: [batch, heads, tokens, width], or texts behind one another."""
    if args[0] is None:
        return _attention(*(tuple(tensor.shape) for tensor in (query, key, value)))
    return _rows(query, key, value, args[:2], args[2:4])


def _int_mm(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Of [tokens, inputs] times [inputs, outputs]."""
    return 2 * x[0] * x[1] * weight[1]


def _grouped_mm(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Of [tokens, inputs], each times its own expert's [inputs, outputs], out of [experts, inputs, outputs]."""
    return 2 * x[0] * x[1] * weight[-1]


def _first(first: Shape, *_: Any, **__: Any) -> int:
    """Of a matrix or vector with a vector: every number of the first is multiplied once."""
    return 2 * prod(first)


def _added(added: Shape, first: Shape, *_: Any, **__: Any) -> int:
    """The same, added to something."""
    return 2 * prod(first)


def _product(first: Shape, second: Shape, *_: Any, **__: Any) -> int:
    """Of [..., rows, inner] times [..., inner, columns]."""
    return 2 * prod(first) * second[-1]


def _added_product(added: Shape, first: Shape, second: Shape, *_: Any, **__: Any) -> int:
    """The same, added to something."""
    return 2 * prod(first) * second[-1]


def _distances(first: Shape, second: Shape, *_: Any, **__: Any) -> int:
    """Of every row of [..., rows, width] from every row of [..., others, width]."""
    return 2 * prod(first) * second[-2]


def _trilinear(*args: Any, **_: Any) -> int:
    """Sums of products of three tensors, each of which is given dimensions of size 1 at some places."""
    expanded: list[list[int]] = []
    for shape, places in zip(args[:3], args[3:6], strict=True):
        sizes = list(shape)
        for place in places:
            sizes.insert(place, 1)
        expanded.append(sizes)
    return 2 * int(prod(max(sizes) for sizes in zip(*expanded, strict=True)))


_SHAPES: Final[Mapping[str, Callable[..., int]]] = {
    **dict.fromkeys(
        (
            "aten::_scaled_dot_product_flash_attention",
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_efficient_attention",
            "aten::_scaled_dot_product_cudnn_attention",
            "aten::_scaled_dot_product_fused_attention_overrideable",
            "aten::_scaled_dot_product_attention_math_for_mps",
            "aten::_triton_scaled_dot_attention",
        ),
        _attention,
    ),
    "aten::_int_mm": _int_mm,
    "aten::_grouped_mm": _grouped_mm,
    **dict.fromkeys(("aten::mv", "aten::dot", "aten::vdot"), _first),
    **dict.fromkeys(("aten::addmv", "aten::addmv_"), _added),
    "aten::_sparse_mm": _product,
    **dict.fromkeys(
        ("aten::addmm_", "aten::baddbmm_", "aten::addbmm", "aten::addbmm_", "aten::_sparse_addmm"), _added_product
    ),
    **dict.fromkeys(("aten::_cdist_forward", "aten::_euclidean_dist"), _distances),
    "aten::_trilinear": _trilinear,
}
"""Formulas over shapes, by operator. PyTorch's counter lacks them, or has refused fewer heads of keys than of queries
(attention, until 2.11)."""
_TENSORS: Final[Mapping[str, Callable[..., int]]] = {
    "aten::_flash_attention_forward": _flash,
    "aten::_flash_attention_forward_no_dropout_inplace": _flash_into,
    "aten::_efficient_attention_forward": _efficient,
    "aten::_cudnn_attention_forward": _cudnn,
    "torch_attn::_varlen_attn": _flash,
    "torch_attn::_varlen_attn_out": _flash_into,
}
"""Formulas over the arguments themselves: how long texts are that lie behind one another is in a tensor."""


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """A formula as PyTorch's counter calls it when it is given the arguments themselves."""

    @wraps(formula)
    def counted(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(*args, **kwargs)

    counted._get_raw = True  # type: ignore[attr-defined]
    return counted


@cache
def added() -> Mapping[Any, Callable[..., int]]:
    """Formulas by operator, in place of PyTorch's own where it has one; of operators that this PyTorch has."""
    with suppress(ImportError):
        importlib.import_module("torch.nn.attention.varlen")  # which defines its operators
    wrapped = {name: shape_wrapper(formula) for name, formula in _SHAPES.items()}  # type: ignore[no-untyped-call]
    formulas = {}
    for name, formula in (wrapped | dict(_TENSORS)).items():
        namespace, operator = name.split("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None:
            formulas[packet] = _raw(formula)
    return formulas


_HARMLESS: Final = frozenset(("aten", "prim", "prims", "profiler", "inductor", "_c10d_functional", "c10d"))
"""Namespaces whose operators multiply no matrices unless they are named below."""
_NAMED: Final = re.compile(
    r"(^|_)(\w*mm|mv|matmul|gemm|rnn|lstm|gru|attention|encoder|linear\w*|bilinear|trilinear|cdist|conv\w*)(_|$)"
)
_ELSE: Final = re.compile(r"upsample|convert|linear_dynamic_quantize|linspace")


def formula_of(operator: OpOverload) -> Callable[..., int] | None:
    """What counts an operator, given its arguments and, as ``out_val``, its output; None where nothing does."""
    packet = operator._overloadpacket
    return added().get(packet) or flop_registry.get(packet)


def is_unknown(operator: OpOverload) -> bool:
    """Whether an operator without a formula may multiply matrices."""
    name = operator._opname
    return operator.namespace not in _HARMLESS or bool(_NAMED.search(name) and not _ELSE.search(name))
