"""What is kept of a linear layer's inputs while calibration text runs: second moments, means, extremes.

Only one decoder layer's are in memory at a time, and linear layers that read the same tensor, such as those of queries,
keys and values, share one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, TypeVar

import torch

from harness.contract.anatomy import Block, Role
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.weights.layerwise import Observers, layer_by_layer
from harness.model.weights.linear import Site
from harness.model.weights.replaced import Place, replace

_IN_TURN: Final[tuple[tuple[Role, ...], ...]] = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",))
"""Roles in the order in which a layer computes them; those that stand together read one tensor."""


class Observer(ABC):
    """Accumulates over the inputs of a linear layer.

    Args:
        site: the linear layer, or the first of those that read the same tensor.
    """

    def __init__(self, site: Site) -> None:
        self.site, self.tokens = site, 0
        self.total = self.start(site.weight.shape[1], site.weight.device)

    def __call__(self, x: torch.Tensor) -> None:
        """Take the inputs [tokens, in] of one forward."""
        self.tokens += len(x)
        self.total = self.add(x)

    def start(self, inputs: int, device: torch.device) -> torch.Tensor:
        """What is accumulated, before the first input: [in], in double precision."""
        return torch.zeros(inputs, dtype=torch.float64, device=device)

    @abstractmethod
    def add(self, x: torch.Tensor) -> torch.Tensor:
        """What is accumulated, with the inputs [tokens, in]."""

    @property
    def value(self) -> torch.Tensor:
        """What came of it.

        Raises:
            MethodError: an input was not finite.
        """
        if not torch.isfinite(self.total).all():
            raise MethodError(f"on the calibration text, the inputs of {self.site.name} are not finite")
        return self.total


class SumOfSquares(Observer):
    """The sum of each input's squares, [in], whose root is the norm that Wanda multiplies with (arXiv:2306.11695)."""

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """What is accumulated, with the inputs [tokens, in]."""
        return self.total + x.double().square().sum(0)


class AbsMax(Observer):
    """The largest magnitude of each input, [in]."""

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """What is accumulated, with the inputs [tokens, in]."""
        return torch.maximum(self.total, x.abs().amax(0).double())


class MeanAbs(Observer):
    """The mean magnitude of each input, [in]."""

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """What is accumulated, with the inputs [tokens, in]."""
        return self.total + x.double().abs().sum(0)

    @property
    def value(self) -> torch.Tensor:
        """What came of it."""
        return super().value / max(self.tokens, 1)


class Gram(Observer):
    """The second moments of the inputs, H = (2/n) sum x x^T over n tokens, [in, in].

    It is the Hessian of the squared error of the linear layer's output, for each row of its weight. Sums are kept in
    single precision, as GPTQ keeps them (arXiv:2210.17323), and the result is in double.
    """

    def start(self, inputs: int, device: torch.device) -> torch.Tensor:
        """What is accumulated, before the first input."""
        return torch.zeros(inputs, inputs, device=device)

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """What is accumulated, with the inputs [tokens, in]."""
        x = x.float()
        return self.total.addmm_(x.T, x)

    @property
    def value(self) -> torch.Tensor:
        """What came of it."""
        return super().value.double() * (2 / max(self.tokens, 1))


Kind = TypeVar("Kind", bound=Observer)


@torch.no_grad()
def observe(kind: type[Kind], chosen: Sequence[Site], run: Callable[[Observers], None]) -> dict[str, Kind]:
    """Observe the inputs of linear layers in one run.

    Args:
        run: runs the decoder layer that they are in, under observers (harness.model.weights.layerwise).

    Returns:
        By the linear layer's name; those that read the same tensor have the same observer.
    """
    observers: dict[str, Kind] = {}
    latest: list[tuple[torch.Tensor, Kind]] = []  # held, so that no other tensor takes its place in memory

    def observing(site: Site) -> Callable[[torch.Tensor], None]:
        def take(x: torch.Tensor) -> None:
            if latest and latest[0][1].site is not site and _same(x, latest[0][0]):
                observers[site.name] = latest[0][1]
                return
            if site.name not in observers:
                observers[site.name] = kind(site)
            observers[site.name](x)
            latest[:] = [(x, observers[site.name])]

        return take

    run({site.module: observing(site) for site in chosen})
    return {site.name: observers.get(site.name) or kind(site) for site in chosen}  # an expert may read no token


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are views of the same numbers."""
    return (first.data_ptr(), first.shape, first.stride()) == (second.data_ptr(), second.shape, second.stride())


def calibrate(
    model: Decoder,
    windows: Iterable[torch.Tensor],
    chosen: Sequence[Site],
    kind: type[Kind],
    change: Callable[[Site, Kind], torch.Tensor],
    *,
    in_turn: bool = False,
) -> int:
    """Change the weights of linear layers by what they read, decoder layer after decoder layer, and restore them.

    Each layer reads what the layers before it give as they have been changed.

    Args:
        windows: tokens, each of shape [1, length].
        change: gives a linear layer's new weight [out, in], for the layers after it to be calibrated on.
        in_turn: inside a layer too, each reads what those before it give as they have been changed: queries, keys and
            values; output; gate and up; down. The layer runs four times as often. Where the roles of a layer are not
            known, all of it changes at once.

    Returns:
        The number of tokens in the windows.
    """

    def visit(block: Block, run: Callable[[Observers], None]) -> AbstractContextManager[Any]:
        own = [site for site in chosen if site.layer == block.index]
        with ExitStack() as changed:
            for group in _groups(block, own) if in_turn else filter(None, [own]):
                observers = observe(kind, group, run)
                for site in group:
                    weight = change(site, observers[site.name])
                    replace(changed, Place(site.module, "weight"), site.stored(weight))
            return changed.pop_all()

    return layer_by_layer(model, windows, visit)


def _groups(block: Block, own: list[Site]) -> list[list[Site]]:
    """A layer's linear layers in the order in which it computes them, those that read one tensor together."""
    turns = {
        block.roles[role].module: turn for turn, roles in enumerate(_IN_TURN) for role in roles if role in block.roles
    }
    if any(site.module not in turns for site in own):
        return [own]
    groups: list[list[Site]] = [[] for _ in _IN_TURN]
    for site in own:
        groups[turns[site.module]].append(site)
    return [group for group in groups if group]
