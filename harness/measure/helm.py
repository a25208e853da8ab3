"""Idealized runtime as HELM published it: T = F(p) + g max(o - 1, 0) from its tables for an A100.

Narayanan et al., "Cheaply Estimating Inference Efficiency Metrics for Autoregressive Transformer Models",
arXiv:2305.02440; tables of stanford-crfm/helm-efficiency. For comparison with HELM's numbers only: its look-up
scales the next larger table entry by p / k, so that F(17) < F(16). The harness's own profiles do not.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from harness.core.errors import UnknownNameError


@dataclass(frozen=True)
class HelmModel:
    """One row of HELM's table.

    Attributes:
        per_token: seconds for each output token after the first.
        prompt: seconds to encode a prompt and write one token, by prompt tokens.
    """

    per_token: float
    prompt: Mapping[int, float]

    def prompt_seconds(self, tokens: int) -> float:
        """HELM's look-up: the smallest entry k >= p, times p / k; above the largest, that one times p / k."""
        keys = sorted(self.prompt)
        key = keys[min(bisect_left(keys, tokens), len(keys) - 1)]
        return self.prompt[key] * tokens / key

    def seconds(self, prompt: int, output: int) -> float:
        """Idealized runtime of a request of so many prompt and output tokens."""
        return self.prompt_seconds(prompt) + self.per_token * max(output - 1, 0)


def _row(per_token: float, *prompt: float) -> HelmModel:
    return HelmModel(per_token, MappingProxyType(dict(zip((1, 128, 256, 512, 1024, 1920), prompt, strict=True))))


PUBLISHED: Final[Mapping[str, HelmModel]] = MappingProxyType(
    {
        "davinci": _row(0.081, 0.084, 0.094, 0.109, 0.178, 0.323, 0.597),
        "j1-large": _row(0.024, 0.027, 0.027, 0.029, 0.047, 0.089, 0.167),
        "j1-grande": _row(0.038, 0.041, 0.042, 0.056, 0.097, 0.190, 0.380),
        "j1-jumbo": _row(0.064, 0.069, 0.078, 0.097, 0.164, 0.310, 0.603),
        "gpt-j-6b": _row(0.021, 0.023, 0.024, 0.025, 0.042, 0.076, 0.142),
        "mt-nlg-530b": _row(0.123, 0.125, 0.172, 0.273, 0.490, 0.951, 1.852),
        "anthropic-52b": _row(0.054, 0.055, 0.060, 0.068, 0.108, 0.189, 0.342),
        "bloom-176b": _row(0.061, 0.068, 0.078, 0.111, 0.191, 0.347, 0.669),
        "yalm-100b": _row(0.068, 0.071, 0.112, 0.167, 0.284, 0.527, 1.006),
    }
)
"""A part of HELM's grid of prompt lengths, as far as it was at hand; seconds on A100s."""


def published(name: str) -> HelmModel:
    """A model of HELM's table.

    Raises:
        UnknownNameError: it has none of that name.
    """
    if name not in PUBLISHED:
        raise UnknownNameError("model in HELM's table", name, PUBLISHED, see=f"It has: {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]
