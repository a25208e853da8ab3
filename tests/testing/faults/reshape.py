"""Faults of methods that make a smaller dense model."""

from contextlib import contextmanager

from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract.families import Family
from harness.contract.method import Method
from harness.core.errors import UnsupportedModelError
from harness.model.reshape import Keep, narrowed
from harness.model.units import heads_of, neurons_of
from tests.testing.faults.declared import fault


class Halves(Method):
    """A sound method: one group of heads goes from the first layer, and half of its neurons."""

    name = "halves"
    family = Family.PRUNING

    def attach(self, model, prepared):
        kept = len(neurons_of(model, 0)["down"]) // 2
        return narrowed(model, {0: Keep(groups=range(1, heads_of(model, 0).groups), neurons=range(kept))})


@fault("restores-model", "restores-after-an-exception")
class LeavesCounts(Halves):
    """Restores the weights, and leaves the width that a linear layer believes it has."""

    @contextmanager
    def attach(self, model, prepared):
        down = model.anatomy.blocks[0].roles["down"].module
        try:
            with super().attach(model, prepared):
                width = down.in_features
                yield
        finally:
            down.in_features = width


@fault("restores-model", "restores-after-an-exception")
class LeavesConfiguration(Halves):
    """Writes the smaller width into the configuration, for good."""

    def attach(self, model, prepared):
        model.config.intermediate_size = 24
        return super().attach(model, prepared)


@fault("saves-what-it-declares", "saves-measurably")
class MasksNeurons(Method):
    """Declares real savings, and sets the columns of the neurons to zero."""

    name = "halves"
    family = Family.PRUNING

    @contextmanager
    def attach(self, model, prepared):
        down = model.anatomy.blocks[0].roles["down"].module
        weight, masked = down.weight, down.weight.detach().clone()
        masked[(slice(0, 9),) if isinstance(down, Conv1D) else (slice(None), slice(0, 9))] = 0
        down.weight = nn.Parameter(masked, requires_grad=False)
        try:
            yield
        finally:
            down.weight = weight


@fault("keeps-units-whole")
class CutsHeadsOutOfOrder(Halves):
    """Keeps the last heads' queries, and the first heads' columns on the way back."""

    @contextmanager
    def attach(self, model, prepared):
        output = model.anatomy.blocks[0].roles.get("output")
        if output is None:
            raise UnsupportedModelError(f"{type(model.module).__name__}: no output projection")
        weight = output.module.weight
        with super().attach(model, prepared):
            now = output.module.weight
            columns = slice(0, now.shape[0 if isinstance(output.module, Conv1D) else 1])
            torn = weight[columns] if isinstance(output.module, Conv1D) else weight[:, columns]
            output.module.weight = nn.Parameter(torn.detach().clone(), requires_grad=False)
            try:
                yield
            finally:
                output.module.weight = now


@fault("keeps-units-whole")
class TearsNeurons(Halves):
    """Keeps the first neurons' way in, and others' way back."""

    @contextmanager
    def attach(self, model, prepared):
        with super().attach(model, prepared):
            down = model.anatomy.blocks[0].roles["down"].module
            now = down.weight
            dimension = 0 if isinstance(down, Conv1D) else 1
            down.weight = nn.Parameter(now.detach().flip(dimension).contiguous(), requires_grad=False)
            try:
                yield
            finally:
                down.weight = now
