"""How a layer's attention multiplies queries and keys, for presses that ask what a key receives, or will receive."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError

QUERIES: Final = 128
"""Queries whose attention is computed at once, so that what a long prompt takes stays small."""

TURNED: Final = (
    *("gemma", "gemma2", "gemma3_text", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"),
    *("gpt2", "opt"),  # positions are learned, and turn nothing
)
"""``model_type`` of the architectures on which ``Product.later`` was compared with queries before rotary embedding."""


@dataclass(frozen=True)
class Product:
    """Products of queries with keys, as attention makes them.

    Attributes:
        scale: what a product is multiplied by.
        cap: what scores are squeezed into by tanh; None where they are not.
        cosines, sines: of the rotary embedding of these queries, [rows, tokens, turned width]; None where positions
            turn nothing.
        turn: ``turn(queries, cosines, sines)``, the architecture's own rotary embedding.
    """

    scale: float
    cap: float | None
    cosines: torch.Tensor | None
    sines: torch.Tensor | None
    turn: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

    @classmethod
    def of(cls, attention: nn.Module, width: int, options: Mapping[str, Any], rotary: Any) -> "Product":
        """Of an attention's call.

        Args:
            width: of a head's queries.
            options: as the function that computes attention was given them.
            rotary: what the attention was given as ``position_embeddings``: cosines and sines, [rows or 1, tokens,
                turned width].
        """
        function = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)

        def turn(queries: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
            assert function is not None
            turned: torch.Tensor = function(queries, queries, cosines, sines)[0]
            return turned

        cosines, sines = rotary if isinstance(rotary, tuple) else (None, None)
        scale = options.get("scaling")
        return cls(width**-0.5 if scale is None else float(scale), options.get("softcap"), cosines, sines, turn)

    def rows(self, rows: list[int], tokens: torch.Tensor | None) -> "Product":
        """Of some of the rows, and of some of their tokens, bool [these rows, tokens], as many of each."""
        if self.cosines is None or self.sines is None:
            return self

        def own(turns: torch.Tensor) -> torch.Tensor:
            some = turns[rows] if len(turns) > 1 else turns.expand(len(rows), -1, -1)
            return some if tokens is None else some[tokens].view(len(rows), -1, some.shape[-1])

        return replace(self, cosines=own(self.cosines), sines=own(self.sines))

    def scores(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """What softmax is taken of, in float32 and without a mask.

        Args:
            queries: [rows, heads, queries, head width].
            keys: [rows, kv heads, keys, head width].

        Returns:
            [rows, heads, queries, keys].
        """
        groups = torch.unflatten(
            queries, 1, (keys.shape[1], -1)
        ).float()  # [rows, kv heads, group, queries, head width]
        scores = (groups @ keys[:, :, None].float().mT * self.scale).flatten(1, 2)
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap

    def received(self, queries: torch.Tensor, keys: torch.Tensor, last: int) -> torch.Tensor:
        """Attention that keys received from the last queries, summed over these.

        Args:
            queries: [rows, heads, tokens, head width].
            keys: the last of them are these tokens' own, [rows, kv heads, keys, head width].
            last: how many queries; those whose own key is gone are none of them.

        Returns:
            Float32 [rows, heads, keys].
        """
        count, most = keys.shape[2], min(last, queries.shape[2], keys.shape[2])
        total = queries.new_zeros(*queries.shape[:2], count, dtype=torch.float32)
        place = torch.arange(count, device=keys.device)
        for start in range(count - most, count, QUERIES):
            own = place[start : start + QUERIES]  # the queries, by the places of their own keys
            scores = self.scores(queries[:, :, own + (queries.shape[2] - count)], keys)
            later = place > own[:, None]  # [queries, keys]
            total += scores.masked_fill_(later, -torch.inf).softmax(-1).sum(2)
        return total

    def later(self, queries: torch.Tensor, horizon: int) -> torch.Tensor:
        """The queries as the same tokens would have them further on: the mean over the next ``horizon`` positions.

        A rotary embedding is linear in its cosines and sines, so the mean of turned queries is a query turned by their
        means. The angle of one step is that between the last two tokens.

        Args:
            queries: after rotary embedding, [rows, heads, tokens, head width]; of one token, they stay as they are.
        """
        if self.cosines is None or self.sines is None or self.cosines.shape[1] < 2:
            return queries
        cosines, sines = self.cosines.double(), self.sines.double()
        size = cosines**2 + sines**2  # of an embedding that is scaled too, as YaRN does it
        plain = self.turn(queries.double(), cosines / size, -sines / size)
        angles = torch.complex(cosines, sines)  # [rows, tokens, turned width]
        step = angles[:, -1] / angles[:, -2]
        steps = torch.arange(1, horizon + 1, device=step.device)[:, None, None]
        mean = (angles[:, -1] * (step.log() * steps).exp().mean(0))[:, None]  # [rows, 1, turned width]
        return self.turn(plain, mean.real, mean.imag).to(queries.dtype)


def require_turned(model: Decoder, name: str) -> None:
    """Refuse an architecture of which it is not known where its queries are turned.

    Raises:
        UnsupportedModelError: with the architectures that were compared.
    """
    if model.config.model_type not in TURNED:
        raise UnsupportedModelError(
            f"{model.kind}: {name} undoes the rotary embedding of queries, which was compared on these architectures "
            f"alone: {', '.join(sorted(TURNED))}"
        )
