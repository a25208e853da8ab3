"""Where the tokens of each row are among the columns of keys: rows of a batch may begin with padding."""

import torch

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.attention import visible


def is_decoding(model: Decoder, queries: int, keys: int) -> bool:
    """Whether a forward reads what follows a prompt; outside an evaluation, whether there is anything before it."""
    return keys > queries if model.context is None else model.context.decoding


def starts(mask: torch.Tensor | None, rows: int, device: torch.device) -> torch.Tensor:
    """The column of each row's first token, [rows]: padding on the left comes before it."""
    if mask is None:
        return torch.zeros(rows, dtype=torch.long, device=device)
    return mask[:, 0, -1].int().argmax(-1).expand(rows)


def own(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """The column of each query's own key, [queries]."""
    return torch.arange(keys - queries, keys, device=device)


def readable_by(mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What each row's queries may read: bool [rows, 1, queries, keys].

    Raises:
        MethodError: heads do not read alike.
    """
    allowed = visible(mask, q.shape[2], k.shape[2], q.device)
    if allowed.shape[1] > 1:
        raise MethodError("the heads of this model read different keys, and a choice of keys is not offered on it")
    return allowed.expand(len(q), -1, -1, -1)


def grouped(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Queries with those that share their keys, [rows, kv heads, group * queries, width]."""
    return q.reshape(len(q), kv_heads, -1, q.shape[-1])


def at(tensor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Of [rows, heads, keys, width] the keys of each row, [rows, heads, columns, width] of [rows, columns]."""
    return tensor.gather(2, columns[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[-1]))
