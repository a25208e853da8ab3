"""FLOPs of operators by the shapes of their arguments: PyTorch's own formulas, and those that it has none for.

An operator may multiply matrices without a formula: one of a library of its own, or one of those of PyTorch that are
named here. What ran in it is not known, and must not read as zero.
"""

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry, shape_wrapper

Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Both products of attention over shapes [batch, heads, tokens, width], the full rectangle."""
    batch, heads, queries, width = query
    # query-key, then probability-value
    return 2 * batch * heads * queries * key[2] * (width + value[3])


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


_ATEN: Final = torch.ops.aten
ADDED: Final[Mapping[Any, Callable[..., int]]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._int_mm: _int_mm,
    _ATEN._grouped_mm: _grouped_mm,
    **dict.fromkeys((_ATEN.mv, _ATEN.dot, _ATEN.vdot), _first),
    **dict.fromkeys((_ATEN.addmv, _ATEN.addmv_), _added),
    _ATEN._sparse_mm: _product,
    **dict.fromkeys((_ATEN.addmm_, _ATEN.baddbmm_, _ATEN.addbmm, _ATEN.addbmm_, _ATEN._sparse_addmm), _added_product),
    **dict.fromkeys((_ATEN._cdist_forward, _ATEN._euclidean_dist), _distances),
    _ATEN._trilinear: _trilinear,
}
"""Formulas over shapes that PyTorch's counter lacks."""

_HARMLESS: Final = frozenset(("aten", "prim", "prims", "profiler", "inductor", "_c10d_functional", "c10d"))
"""Namespaces whose operators multiply no matrices unless they are named below."""
_NAMED: Final = re.compile(
    r"(^|_)(\w*mm|mv|matmul|gemm|rnn|lstm|gru|attention|encoder|linear\w*|bilinear|trilinear|cdist|conv\w*)(_|$)"
)
_ELSE: Final = re.compile(r"upsample|convert|linear_dynamic_quantize|linspace")

_WRAPPED: Final = {
    packet: shape_wrapper(formula)  # type: ignore[no-untyped-call]
    for packet, formula in ADDED.items()
}


def formula_of(operator: OpOverload) -> Callable[..., int] | None:
    """What counts an operator, given its arguments and, as ``out_val``, its output; None where nothing does."""
    packet = operator._overloadpacket
    return flop_registry.get(packet) or _WRAPPED.get(packet)


def is_unknown(operator: OpOverload) -> bool:
    """Whether an operator without a formula may multiply matrices."""
    name = operator._opname
    return operator.namespace not in _HARMLESS or bool(_NAMED.search(name) and not _ELSE.search(name))
