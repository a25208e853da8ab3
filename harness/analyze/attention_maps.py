"""Where attention goes, layer by layer: its entropy, and its share on the first and on the last keys."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from harness.contract.decoder import Decoder
from harness.core.progress import Progress
from harness.model.attention import attending, visible

SCORES: Final = 1 << 22
"""Scores that are in memory at once, over all heads: 16 MiB of float32."""


@dataclass(frozen=True)
class LayerAttention:
    """Attention probabilities of a layer, averaged over queries and texts, [heads] each.

    Attributes:
        layer: index of the layer.
        entropy: in nats; of n keys that are read alike it is log n.
        uniform: what it would be if every key were read alike.
        sinks: share on the first keys.
        recent: share on the last keys, the query's own among them.
    """

    layer: int
    entropy: list[float]
    uniform: float
    sinks: list[float]
    recent: list[float]


@dataclass
class _Sums:
    entropy: torch.Tensor  # [heads], as the two below
    sinks: torch.Tensor
    recent: torch.Tensor
    uniform: float
    queries: int


@dataclass
class Observed:
    """Sums over queries, by layer.

    Attributes:
        sinks, window: how many first and last keys are meant.
    """

    sinks: int
    window: int
    _sums: dict[int, _Sums] = field(default_factory=dict)

    def add(self, layer: int, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float) -> None:
        """Count a call of a layer's attention: those of its queries that are in the second half of the text.

        Args:
            q: [rows, heads, queries, head width]; k: [rows, kv heads, keys, head width]; scale, mask: as an attention
                function is given them (``harness.model.attention.Attention``).
        """
        rows, heads, queries, _ = q.shape
        keys, group = k.shape[2], heads // k.shape[1]
        k = k.repeat_interleave(group, 1).float()  # [rows, heads, keys, head width]
        allowed = visible(mask, queries, keys, q.device)  # [rows or 1, heads or 1, queries, keys]
        chunk = max(1, SCORES // (rows * heads * keys))
        for start in range(max(0, keys // 2 - (keys - queries)), queries, chunk):
            part = slice(start, min(start + chunk, queries))
            scores = q[:, :, part].float() @ k.transpose(2, 3) * scale  # [rows, heads, chunk, keys]
            seen = allowed[:, :, part]
            weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1)
            own = torch.arange(keys - queries + part.start, keys - queries + part.stop, device=q.device)
            near = torch.arange(keys, device=q.device) > (own - self.window)[:, None]  # [chunk, keys]
            self._count(
                layer,
                _Sums(
                    entropy=torch.special.entr(weights).sum((0, 2, 3)),
                    sinks=weights[..., : self.sinks].sum((0, 2, 3)),
                    recent=(weights * near).sum((0, 2, 3)),
                    uniform=float(seen.sum(-1).float().log().mean()) * rows * scores.shape[2],
                    queries=rows * scores.shape[2],
                ),
            )

    def _count(self, layer: int, more: _Sums) -> None:
        if (sums := self._sums.get(layer)) is None:
            self._sums[layer] = more
            return
        for name in ("entropy", "sinks", "recent", "uniform", "queries"):
            setattr(sums, name, getattr(sums, name) + getattr(more, name))

    def layers(self) -> list[LayerAttention]:
        """The averages."""
        return [
            LayerAttention(
                layer,
                entropy=(sums.entropy / sums.queries).tolist(),
                uniform=sums.uniform / sums.queries,
                sinks=(sums.sinks / sums.queries).tolist(),
                recent=(sums.recent / sums.queries).tolist(),
            )
            for layer, sums in sorted(self._sums.items())
        ]


def observe(
    model: Decoder, texts: Sequence[Sequence[int]], sinks: int, window: int, progress: Progress
) -> list[LayerAttention]:
    """Read texts of token ids one by one and look on; the model's attention computes as ever.

    Raises:
        UnsupportedModelError: a model whose attention cannot be looked at from outside.
    """
    observed = Observed(sinks, window)

    def look(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> None:
        observed.add(layer, q, k, mask, scale)

    with progress.bar("attention, layer by layer") as bar, attending(model, look, name="analyze"), torch.no_grad():
        bar.expect(len(texts))
        for ids in texts:
            model.module(torch.tensor([ids], device=model.device), use_cache=False)
            bar.advance(1)
    return observed.layers()
