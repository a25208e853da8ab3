"""Attention whose probabilities are rounded to powers of the root of two, as a few bits hold them.

    q = round(-2 log2(p / d)),    p' = d 2^-ceil(q / 2) (sqrt(2) where q is odd, else 1),    0 where q >= 2^bits

d is the largest probability of each query, so that no row of a batch depends on another.

Source: RepQ-ViT (arXiv:2212.08254), equations 9 and 10, and its authors' code, quant/quantizer.py.
"""

import torch

from harness.model.attention import visible


def rounded(p: torch.Tensor, bits: int) -> torch.Tensor:
    """Probabilities [..., keys] as codes of so many bits stand for them; the largest stays."""
    largest = p.amax(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    codes = (-2 * (p / largest).log2()).round()  # infinite for a probability of 0
    power = torch.exp2(-torch.ceil(codes / 2)) * torch.where(codes % 2 == 1, 2**0.5, 1.0)
    return torch.where(codes < 2**bits, power * largest, 0.0)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float, bits: int
) -> tuple[torch.Tensor, int]:
    """The product with rounded probabilities; see ``harness.model.attention.Attention``."""
    rows, heads, queries, width = q.shape
    keys, kv_heads = k.shape[2], k.shape[1]
    grouped = q.float().view(rows, kv_heads, -1, queries, width)  # [rows, kv heads, group, queries, width]
    scores = grouped @ k.float()[:, :, None].mT * scale  # [rows, kv heads, group, queries, keys]
    readable = visible(mask, queries, keys, q.device)
    if readable.shape[1] > 1:
        readable = readable.view(len(readable), kv_heads, -1, *readable.shape[2:])
    else:
        readable = readable[:, :, None]
    p = scores.masked_fill(~readable, -torch.inf).softmax(-1).nan_to_num()  # a row of padding reads nothing
    output = rounded(p, bits) @ v.float()[:, :, None]
    return output.view(rows, heads, queries, -1).to(q.dtype), rows * heads * queries * keys
