"""What methods that choose among the entries of a cache share: they write ``choose`` and nothing else."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder
    from harness.model.cache.press import Entries


@dataclass(frozen=True, kw_only=True)
class Presses(Method, mixin=True):
    """A method that keeps some of the cache's keys and values.

    Attributes:
        when: when it chooses (``harness.model.cache.pressed``).
        remembers: whether it keeps a number for each entry.
    """

    family = Family.CACHE
    phases = frozenset({Phase.DECODE})
    chooses_keys = True
    when: ClassVar[tuple[Literal["prefill", "decode"], ...]] = ("prefill",)
    remembers: ClassVar[bool] = False

    @property
    def reads_queries(self) -> bool:
        """Whether it looks at queries; a method that always does says ``reads_queries = True``."""
        return False

    @property
    def takes_back(self) -> bool:
        """Not where it chooses after a step: guesses push out what is no longer there when they are taken back."""
        return "decode" not in self.when

    @abstractmethod
    def choose(self, entries: "Entries") -> "torch.Tensor":
        """Which entries of a layer stay: their indices, ascending, [rows, kv heads, kept]."""

    def check_model(self, model: "Decoder", below: tuple[Method, ...] = ()) -> None:
        """Refuse a model whose cache cannot be chosen from."""
        from harness.model.attention import require_observable
        from harness.model.cache.engine import require_pressable

        super().check_model(model, below)
        require_pressable(model)
        if self.reads_queries:
            require_observable(model)

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Run the model with a cache that holds the chosen entries."""
        from harness.model.cache.pressed import pressed

        asked = {"reads_queries": self.reads_queries, "remembers": self.remembers}
        return pressed(model, self.choose, self.when, name=self.name, **asked)
