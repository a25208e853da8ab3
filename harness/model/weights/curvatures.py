"""The Hessians of a model's linear layers, as calibration meets them, and what is to be said of them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from harness.model.weights.compensation import DAMPING, Hessian
from harness.model.weights.linear import Site
from harness.model.weights.observers import Gram

log = logging.getLogger("harness")


@dataclass
class Curvatures:
    """The Hessians of a model's linear layers, one in memory at a time, and what is to be said of them.

    Attributes:
        largest_first: see ``Hessian.of``.
        damping: of the linear layers where it is not ``DAMPING``, by name.
        short: names of linear layers that read fewer tokens than they have inputs: their second moments are singular.
        errors: what each change left of the squared error that a weight of zeros would make.
    """

    largest_first: bool = False
    damping: dict[str, float] = field(default_factory=dict)
    short: list[str] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    _latest: tuple[Gram, Hessian] | None = None

    def hessian(self, site: Site, gram: Gram) -> Hessian:
        """The Hessian of a linear layer; those that read one tensor have one.

        Raises:
            MethodError: an input was not finite, or no damping helps.
        """
        if self._latest is None or self._latest[0] is not gram:
            self._latest = None  # its memory is free before the next is made
            self._latest = gram, Hessian.of(gram.value, largest_first=self.largest_first)
        hessian = self._latest[1]
        if hessian.damping != DAMPING:
            self.damping[site.name] = hessian.damping
        if gram.tokens < site.weight.shape[1]:
            self.short.append(site.name)
        return hessian

    def add(self, hessian: Hessian, weight: torch.Tensor, error: float) -> None:
        """Add the squared error that a change of a weight [out, in] leaves."""
        self.errors.append(error / (hessian.error(weight) or 1.0))

    def facts(self, tokens: int) -> dict[str, Any]:
        """What a state records of them."""
        error = fmean(self.errors) if self.errors else 0.0
        return {"tokens": tokens, "error": error, "damping": self.damping, "short": self.short}


def warn_if_short(method: str, facts: Mapping[str, Any]) -> None:
    """Warn about linear layers that were calibrated on fewer tokens than they have inputs."""
    if short := facts.get("short"):
        names = ", ".join(short[:3]) + (", ..." if len(short) > 3 else "")
        log.warning(
            f"{method}: {len(short)} linear layers have more inputs than the calibration text gave them tokens "
            f"({facts['tokens']} in all), so that damping decides what it does not show: {names}; give more samples or "
            "a greater length"
        )
