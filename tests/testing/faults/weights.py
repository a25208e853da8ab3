"""Methods that give a model other weights, and not as they should."""

from contextlib import contextmanager

from torch import nn

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from tests.testing.faults.declared import fault


class Rounding(Method):
    """Rounds the weight of a linear layer to a few values."""

    name = "rounding"
    family = Family.QUANTIZATION
    savings = Savings.SIMULATED

    @contextmanager
    def attach(self, model, prepared):
        linear = model.anatomy.blocks[1].mlp.linears()[-1]
        before = linear.weight
        linear.weight = nn.Parameter((8 * before.detach()).round() / 8)
        try:
            yield
        finally:
            self.restore(linear, before)

    def restore(self, linear, before):
        linear.weight = before


@fault("restores-model", "restores-after-an-exception")
class KeepsItsWeight(Rounding):
    """Leaves the model with the rounded weight, which rounded again is the same."""

    def restore(self, linear, before):
        pass


@fault("restores-model", "restores-after-an-exception")
class RestoresACopy(Rounding):
    """Gives the values back in a tensor of another place, which a tied or a watching part does not know."""

    def restore(self, linear, before):
        linear.weight = nn.Parameter(before.detach().clone())


@fault("restores-model", "restores-after-an-exception")
class RestoresByDividing(Rounding):
    """Scales a norm's gain in place and divides again."""

    neutral = None

    @contextmanager
    def attach(self, model, prepared):
        gain = model.anatomy.final_norm.weight.data
        gain.mul_(0.7)
        try:
            yield
        finally:
            gain.div_(0.7)


@fault("tied-weights-change-nothing")
class ChangesTheEmbeddingToo(Rounding):
    """Means the head, and changes the values that the embedding shares with it."""

    @contextmanager
    def attach(self, model, prepared):
        weight = model.anatomy.head.weight
        before = weight.data
        weight.data = (4 * before).round() / 4
        try:
            yield
        finally:
            weight.data = before
