"""TidalDecode's lists: a few layers read all keys and say which of them the layers after them read.

Source: "TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention" (arXiv:2410.05076), and
its authors' code, src/tidal_build/modify_llama.py.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager

import torch

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.attention import attending
from harness.model.sparse_attention.lists import over_lists, unable
from harness.model.sparse_attention.places import grouped, is_decoding, readable_by


def tidal(
    model: Decoder, layers: Collection[int], choosing: Collection[int], *, count: int, shared: bool, name: str
) -> AbstractContextManager[None]:
    """Let tokens that follow a prompt read, in each layer, the keys that the last choosing layer before it chose.

    Args:
        layers: those that choose or read lists; others are dense.
        choosing: those that read all keys and choose ``count`` of them for each query.
        shared: one list for all heads, else one for each kv head.

    Raises:
        MethodError: in a forward, a layer has another number of kv heads than the layer that chose for it.
    """
    latest: list[torch.Tensor] = []  # of the running forward
    unable(str(model.device), model.module.dtype)  # compiled and checked now, and in no forward that is timed

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> tuple[torch.Tensor, int] | None:
        rows, heads, queries, width = q.shape
        keys = k.shape[2]
        if keys <= count or not is_decoding(model, queries, keys):
            return None
        if layer in choosing:
            latest[:] = [best(q, k, readable_by(mask, q, k), scale, count=count, shared=shared)]
            pairs = rows * heads * queries * keys
            # the model's own product comes after it, and is told apart from what chooses
            model.charge("attention", layer=layer, macs=pairs * (width + v.shape[-1]), tokens=rows * queries)
            model.charge("selection", layer=layer, macs=pairs * width, tokens=rows * queries)
            return None
        [lists] = latest
        if lists.shape[1] not in (1, k.shape[1]):
            raise MethodError(
                f"{name}: layer {layer} has {k.shape[1]} kv heads, and the layer that chose for it {lists.shape[1]}; "
                "give share=layer"
            )
        return over_lists(q, k, v, lists, scale)

    return attending(model, attend, layers, name=name)


def best(
    q: torch.Tensor, k: torch.Tensor, readable: torch.Tensor, scale: float, *, count: int, shared: bool
) -> torch.Tensor:
    """Places of the keys with the highest scores of each query, [rows, 1 or kv heads, queries, count], ascending.

    A list of a kv head is by the highest score before the softmax among its heads; one of all heads is by the highest
    probability among them, since scores of different heads have different scales. -1 is where there are fewer keys.

    Args:
        q, k: queries, [rows, heads, queries, width], and keys, [rows, kv heads, keys, width].
        readable: bool [rows, 1, queries, keys].
    """
    rows, kv_heads, keys = k.shape[:3]
    scores = (grouped(q, kv_heads) @ k.mT * scale).view(rows, kv_heads, -1, q.shape[2], keys)
    scores = scores.masked_fill(~readable[:, :, None], -torch.inf)
    by_list = scores.softmax(-1).nan_to_num().amax((1, 2))[:, None] if shared else scores.amax(2)
    top = by_list.masked_fill(~readable, -torch.inf).topk(count, -1)
    return top.indices.masked_fill(top.values == -torch.inf, -1).sort(-1).values
