"""What the methods that draft have in common: dense's text in fewer passes over the weights, one row at a time."""

from dataclasses import dataclass

from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from harness.core.errors import MethodError


@dataclass(frozen=True, kw_only=True)
class Drafting(Method):
    """A method whose guesses the whole model verifies."""

    family = Family.LOSSLESS
    exact = True
    input_dependent = True
    batchable = False
    phases = frozenset({Phase.DECODE})
    drafts = True


@dataclass(frozen=True, kw_only=True)
class DraftingByPart(Drafting):
    """A method that drafts by a part of the model, on the cache in which the text is."""

    def check_below(self, below: tuple[Method, ...]) -> None:
        """Refuse methods that decide which layers run, or what the cache has."""
        super().check_below(below)
        for method in below:
            if method.directs_layers or method.chooses_keys:
                what = "decides which layers run" if method.directs_layers else "decides what the cache has"
                raise MethodError(
                    f"{self.name} drafts by some of the layers on the cache of all, and {method.name} {what}: run them "
                    "apart"
                )
