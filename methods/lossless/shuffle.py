"""Shuffle: channels, values and neurons in another order, so that groups of neighbours are others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.model.weights.rewriting import RewritesWeights

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.method import Method
    from harness.contract.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class Shuffle(RewritesWeights):
    """Give the channels, values and neurons of a model a random order; the answers stay the same.

    How: one order for the channels of the residual stream, which embeddings, norms, linear layers and head follow; one
    for the values of each key-value head; and one for the neurons of each MLP. No weight is rounded. It is for models
    whose weights were rounded in groups of neighbours once (GGUF): a method above it that rounds in groups of the same
    size meets other groups, and not the grid that the weights are on already, which one with float offsets would find.

    Paper: none; that the units of a layer have no order of their own is common knowledge.

    Parameters:
        seed: of the orders.

    Limits: it saves nothing. Values move within their head alone, so that where a head is no wider than a group the
    groups of attention's way back stay what they were. Models whose stream, values or neurons have no other order are
    refused, and so is half precision, where the order of sums shows. It goes before other methods in a stack.

    Reference: parameters are permutations of dense's bit for bit, and logits equal to float rounding; on weights that
    were rounded to Q4_1 (four bits, groups of 32) rounding to Q4_1 errs as on other weights, and without it by next to
    nothing.
    """

    name = "shuffle"
    family = Family.LOSSLESS
    savings = Savings.NONE
    exact = True

    seed: Annotated[int, Ge(0)] = 0

    def check_model(self, model: "Decoder", below: "tuple[Method, ...]" = ()) -> None:
        """Refuse a model whose parts have no other order, and weights in half precision."""
        from harness.model.shuffle import new_orders

        super().check_model(model, below)
        new_orders(model, self.seed)
        self.require_float32(model)

    @contextmanager
    def attach(self, model: "Decoder", prepared: "Prepared") -> Iterator[None]:
        """Run the model in another order."""
        from harness.model.shuffle import new_orders, shuffled
        from harness.model.weights.replaced import replaced

        self.require_float32(model)
        with replaced(model, shuffled(model, new_orders(model, self.seed))):
            yield
