"""MAS, mixed attention spans: few layers read all keys, the others a window."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.method import Method
from harness.contract.mixins import OnText
from harness.contract.parameters import Indices
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.sparse_attention.mixins import InLayers

if TYPE_CHECKING:
    from collections.abc import Collection

    from harness.contract.decoder import Decoder
    from harness.contract.study import Study


@dataclass(frozen=True, kw_only=True)
class Mas(InLayers, OnText):
    """Let a few layers read all keys, those that need it most, and all others the last keys alone, without training.

    How: with a window in all layers, full attention comes back in one layer after the other, each time where the loss
    on the calibration text is least. A window's other keys are not multiplied (see ``window-attention``).

    Paper: after "Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer", Zhang
    et al., arXiv:2310.12442.

    Parameters:
        full: layers that keep full attention, where none are named.
        window: keys that a token reads in the other layers, its own included.
        sinks: keys of a text's first tokens that every token reads there too.
        layers: full attention in exactly these decoder layers (``layers=3/4/7``, counted from 0).

    Limits: texts no longer than window and sinks together are as dense, and so is the choice of layers: the windows of
    calibration text are to be longer. The cache stays whole. Layers that slide by themselves stay as they are.

    Deviations: the paper sets the layers by hand and trains on long text; here they are chosen, and nothing is trained.
    It has no sinks; untrained models need them (arXiv:2309.17453).

    Reference: logits equal those of dense attention under the same mask on every supported layout. The paper's tables
    have not been reproduced.
    """

    name = "mas"
    paper = "arXiv:2310.12442"
    examples = tuple({"full": 1, "window": window, "sinks": 1, "samples": 2, "length": 32} for window in (4, 3, 2))
    neutral = {"window": 1 << 30, "samples": 2, "length": 32}

    full: Annotated[int, Ge(0)] = 3
    window: Annotated[int, Ge(1)] = 256
    sinks: Annotated[int, Ge(0)] = 4
    layers: Indices = ()
    samples: Annotated[int, Ge(1)] = 4

    def chosen(self, model: "Decoder") -> tuple[int, ...]:
        """The layers that may have a window: none of those that are named."""
        named = super().chosen(model)
        return tuple(layer for layer in self._all(model) if not self.layers or layer not in named)

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse to leave no layer with a window."""
        super().check_model(model, below)
        kept, most = len(self.layers) or self.full, len(self._all(model))
        if kept >= most:
            raise MethodError(
                f"{self.name}: {kept} layers with full attention leave none with a window; give at most {most - 1}"
            )

    def sweeps_on(self, model: "Decoder") -> int:
        """Every layer is tried each time."""
        from harness.model.sparse_attention.greedy import forwards

        return 0 if self.layers else forwards(len(self._all(model)), self.full)

    def prepare(self, model: "Decoder", study: "Study") -> Prepared:
        """Choose the layers that keep full attention.

        Returns facts alone: ``full``, in the order in which they came back, and ``losses`` before and after each.
        """
        from functools import partial

        from harness.model.sparse_attention.greedy import greedy

        self.check_model(model)
        if self.layers or not self.full:
            return Prepared(facts={"full": list(self.layers)})
        windows = list(self.windows(model, study))
        taken = greedy(model, windows, self._all(model), self.full, partial(self._with_full, model))
        return Prepared(facts={"full": list(taken.layers), "losses": list(taken.losses)})

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with windows in the other layers."""
        return self._with_full(model, prepared.facts["full"])

    def _all(self, model: "Decoder") -> tuple[int, ...]:
        """The layers that read all keys in the dense model."""
        from harness.model.attention import full_layers

        return full_layers(model)

    def _with_full(self, model: "Decoder", full: "Collection[int]") -> AbstractContextManager[None]:
        from harness.model.windows import with_windows

        layers = [layer for layer in self._all(model) if layer not in full]
        return with_windows(model, layers, window=self.window, sinks=self.sinks, name=self.label)
