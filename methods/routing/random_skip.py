"""Random skip: the control that any router must beat, which skips as many layers at random."""

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.methods.routing.routed import Routed

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.model.paths.routed_cache import LayerPath


@dataclass(frozen=True, kw_only=True)
class RandomSkip(Routed):
    """Skip layers drawn at random for each prompt: a control for methods that choose them.

    How: of the layers between the protected ends, as many are left out as bring the executed share of all layers to
    ``executed`` on average; where that is no whole number, some prompts skip one more than others. The draw depends on
    the seed and the prompt's tokens alone, so every answer to a document takes one path, and so does the next run.

    Parameters:
        executed: the share of layers that is to run, from 0 to 1; a router's row is to be compared at its own share.
        seed: of the draw; report several.
        first: layers at the beginning that are never skipped.
        last: layers at the end that are never skipped.

    Limits: no fewer layers than the protected ones can run.

    Reference: drawn shares and protected ends are tested; cached decoding equals recomputation without a cache.
    """

    name = "random-skip"
    family = Family.ROUTING
    input_dependent = True
    examples = tuple({"executed": executed, "first": 1, "last": 0} for executed in (0.75, 0.5, 0.25))
    neutral = {"executed": 1.0}

    executed: Annotated[float, Ge(0), Le(1)] = 0.75
    seed: Annotated[int, Ge(0)] = 0
    first: Annotated[int, Ge(0)] = 2
    last: Annotated[int, Ge(0)] = 2

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse to run fewer layers than are protected."""
        super().check_model(model, below)
        layers = len(model.anatomy.blocks)
        least = min(self.first + self.last, layers) / layers
        if self.executed < least:
            raise MethodError(
                f"random-skip: executed={self.executed} is out of range: {self.first} + {self.last} of {layers} layers "
                f"are protected, so from {least:.2f} to 1 can run"
            )

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[Any]:
        """Draw a path for every prompt.

        Raises:
            MethodError: the protected layers are more than are to run.
        """
        from harness.model.paths.controller import SkipPaths
        from harness.model.paths.layer_path import routed

        self.check_model(model)
        return routed(model, SkipPaths(partial(self.path, len(model.anatomy.blocks))))

    def path(self, layers: int, digest: bytes) -> "LayerPath":
        """The path of the prompt with this digest."""
        rng = random.Random(f"{self.seed}/{digest.hex()}")
        skipped = (1 - self.executed) * layers
        number = int(skipped) + (rng.random() < skipped - int(skipped))
        middle = range(self.first, layers - self.last)
        drawn = set(rng.sample(middle, min(number, len(middle))))
        return tuple(int(layer not in drawn) for layer in range(layers))
