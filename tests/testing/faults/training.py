"""Faults of methods that train."""

import torch

from harness.contract.facts import Savings
from harness.contract.prepared import Prepared
from harness.model.training import text_loss, tune
from harness.model.weights.replaced import replaced
from tests.testing.faults.declared import fault
from tests.testing.faults.every_method import Preparing
from tests.testing.sound import Sound

NORM = "model.norm.weight"


class Trained(Sound):
    """Fits the weight of the final norm to the text."""

    savings = Savings.NONE
    needs_training = True
    neutral = None
    examples = ({"count": 1}, {"count": 2})

    def start(self, model):
        return model.module.get_parameter(NORM)

    def prepare(self, model, study):
        tuned = tune(
            model,
            {NORM: self.start(model)},
            study.batches(model, rows=1, length=32, steps=self.count, seed=0),
            text_loss,
            method=self,
            rate=0.05,
            seed=0,
            workbench=study.workbench,
        )
        return Prepared(tuned.tensors)

    def attach(self, model, prepared):
        return replaced(model, prepared.tensors)


@fault("learns-from-its-study-alone")
class ReadsTheTestSplit(Trained):
    """Learns from questions that are scored."""

    def prepare(self, model, study):
        from harness.tasks.pocket import choice
        from harness.tasks.pocket.splits import Split, documents

        test = next(iter(documents(choice.make, (1,), Split.TEST)))
        return super().prepare(model, type(study)((test.prompt + test.target,) * 9, study.source))


@fault("prepares-the-same-again", "preparation-changes-nothing")
class StartsByLuck(Trained):
    """Starts from the global random numbers."""

    def start(self, model):
        return torch.rand_like(super().start(model)) + 0.5


@fault("preparation-changes-nothing", "prepares-the-same-again")
class TrainsInPlace(Trained):
    """Trains the model's own weight and takes a copy, but never puts back what was there."""

    def prepare(self, model, study):
        state = super().prepare(model, study)
        with torch.no_grad():
            model.module.get_parameter(NORM).copy_(state.tensors[NORM])
        return state


@fault("preparation-changes-nothing")
class LeavesGradients(Preparing):
    """Takes gradients of all weights for its scores, and leaves them there."""

    def prepare(self, model, study):
        with torch.enable_grad():
            ids = next(iter(study.windows(model, count=1, length=16)))
            loss = model.module(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return super().prepare(model, study)
