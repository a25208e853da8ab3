"""Parameters that many methods share, with their documentation and their checks: calibration text, a given state.

A method takes them by inheriting: ``class LayerDrop(OnText)``. They are listed after its own parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study


@dataclass(frozen=True, kw_only=True)
class OnText(Method, mixin=True):
    """A method that reads windows of calibration text.

    Parameters:
        samples: calibration windows, at least 1.
        length: tokens of a window, at least 2; longer than the model's positions is cut to them.
    """

    samples: Annotated[int, Ge(1)] = 32
    length: Annotated[int, Ge(2)] = 512

    def window_length(self, model: "Decoder") -> int:
        """Tokens of a window on this model."""
        return min(self.length, getattr(model.config, "max_position_embeddings", self.length))

    @property
    def sweeps(self) -> int:
        """How often ``prepare`` takes each window through each layer, by which its time is told beforehand."""
        return 1

    def sweeps_on(self, model: "Decoder") -> int:
        """``sweeps``, for a method that takes the text through more often the more parts a model has."""
        return self.sweeps

    def reads(self, model: "Decoder") -> int:
        """Tokens of calibration text, at most."""
        return self.samples * self.window_length(model)

    def windows(self, model: "Decoder", study: "Study") -> Iterator["torch.Tensor"]:
        """At most ``samples`` windows of token ids, each [1, length]; the last may be shorter.

        Raises:
            MethodError: the text gives fewer than two tokens.
        """
        return study.windows(model, count=self.samples, length=self.window_length(model))


@dataclass(frozen=True, kw_only=True)
class Shareable(Method, mixin=True):
    """A method whose prepared state may be given instead of made.

    Parameters:
        state: a folder that ``harness prepare -o`` wrote, to be used as it is.
    """

    state: Path | None = None

    def check(self) -> None:
        """Refuse a state that is not there."""
        super().check()
        if self.state is not None and not self.state.is_dir():
            raise MethodError(f"{self.name}: state={self.state} is no folder; `harness prepare -o` writes one")

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a state that cannot be read, or is of another method or model."""
        super().check_model(model, below)
        if self.state is not None:
            Prepared.load(self.state, {"name": self.name, "model": model.fingerprint})

    @property
    def needs_preparation(self) -> bool:
        """Whether there is no state yet."""
        return self.state is None and super().needs_preparation
