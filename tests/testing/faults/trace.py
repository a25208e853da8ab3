"""Faults of methods whose work the trace must see: it is hidden, or said to be less than it is."""

from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from harness.model.surgery import put
from tests.testing.faults.declared import fault


class Sparse(Method):
    """Scales the output of every MLP; saves nothing and says so."""

    name = "scales-mlps"
    family = Family.SPARSE
    savings = Savings.NONE

    @contextmanager
    def attach(self, model, prepared):
        with ExitStack() as undo:
            for block in model.anatomy.blocks:
                self.change(undo, model, block)
            yield


@fault("counts-what-runs")
class PredictsInAHook(Sparse):
    """Multiplies by a predictor's matrix in a hook on the whole model, and charges nothing."""

    def change(self, undo, model, block):
        predictor = torch.eye(model.config.vocab_size) / 2

        def scale(_, args, output):
            output.logits = output.logits @ predictor
            return output

        undo.callback(model.module.register_forward_hook(scale).remove)


class _Halving(nn.Module):
    """The MLP, and a product that halves its output."""

    def __init__(self, model, block):
        super().__init__()
        self.inner, self.model, self.layer = block.mlp.modules[-1], [model], block.index
        self.half = torch.eye(model.config.hidden_size) / 2

    def forward(self, states):
        return self.inner(states) @ self.half


@fault("counts-what-runs", "saves-what-it-declares")
class ReplacesAModuleThatUnderstatesItself(Sparse):
    """Puts a module in the MLP's place that declares half of its work."""

    def change(self, undo, model, block):
        module = _Halving(model, block)
        module.macs_per_token = sum(linear.weight.numel() for linear in block.mlp.linears()) // 2
        put(undo, block.module, "mlp", module)


@fault("counts-what-runs", "saves-what-it-declares")
class ChargesLessThanItDoes(Sparse):
    """Charges half of what its MLP multiplies, in place of what was seen."""

    def change(self, undo, model, block):
        class Charging(_Halving):
            def forward(self, states):
                macs = states.shape[0] * states.shape[1] * sum(part.weight.numel() for part in block.mlp.linears())
                model.charge("mlp", layer=self.layer, macs=macs // 2)
                return super().forward(states)

        put(undo, block.module, "mlp", Charging(model, block))
