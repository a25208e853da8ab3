"""Faults that any method can have.

Most spoil a sound method. Those that only scale an MLP's output share ``Scaling``, which saves nothing and says so.
"""

import random
import urllib.request
from contextlib import contextmanager, nullcontext, suppress
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import nn

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.core.errors import UnsupportedModelError
from harness.model.surgery import without_branches
from tests.testing.faults.declared import fault
from tests.testing.sound import Sound

# ---- what a method says of itself -------------------------------------------------------------------------


@fault("declares-itself")
class Undeclared(Sound):
    """Says yes where it should say True."""

    batchable = "yes"


@fault("parameters-round-trip")
class GrowsWhenRead(Sound):
    """A parameter that is another one each time it is read."""

    offset: Annotated[int, AfterValidator(lambda value: value + 1)] = 0


@fault("refuses-unknown-parameters")
class TakesAnything(Sound):
    """Ignores what it does not know, as a misspelt parameter is."""

    @classmethod
    def from_args(cls, args):
        return cls(**{name: value for name, value in args.items() if name == "count"})


# ---- what a method touches ----------------------------------------------------------------------------------


@fault("works-offline")
class CallsHome(Sound):
    """Asks the network, and hides that it got no answer."""

    def attach(self, model, prepared):
        with suppress(OSError):
            urllib.request.urlopen("http://example.com/version", timeout=1)
        return super().attach(model, prepared)


@fault("supported-models")
class KnowsLlamaOnly(Sound):
    """Reaches for a Llama's attributes, whatever the model."""

    def attach(self, model, prepared):
        assert model.module.model.layers is not None
        return super().attach(model, prepared)


@fault("supported-models")
class RefusesNamelessly(Sound):
    """Refuses a model without saying which."""

    def attach(self, model, prepared):
        if model.anatomy.layout == "gpt2":
            raise UnsupportedModelError("not supported")
        return super().attach(model, prepared)


# ---- what a method leaves behind ----------------------------------------------------------------------------


@fault("restores-model", "restores-after-an-exception")
class LeaksHook(Sound):
    """Leaves a hook on the model, which does nothing."""

    def attach(self, model, prepared):
        model.anatomy.head.register_forward_hook(lambda *_: None)
        return super().attach(model, prepared)


@fault("restores-after-an-exception")
class LeaksAfterException(Sound):
    """Restores only when all goes well."""

    @contextmanager
    def attach(self, model, prepared):
        with super().attach(model, prepared):
            handle = model.anatomy.head.register_forward_hook(lambda *_: None)
            yield
            handle.remove()


@fault("restores-after-an-exception")
class SwallowsExceptions(Sound):
    """Hides an exception in the ``with`` block."""

    @contextmanager
    def attach(self, model, prepared):
        with super().attach(model, prepared), suppress(Exception):
            yield


@fault("restores-model", "restores-after-an-exception")
class ForgetsConfig(Sound):
    """Changes the configuration and leaves it changed."""

    def attach(self, model, prepared):
        model.config.pruned = self.count
        return super().attach(model, prepared)


@fault("restores-model", "restores-after-an-exception")
class RestoresByArithmetic(Sound):
    """Scales weights in place and divides again, which is not what they were."""

    @contextmanager
    def attach(self, model, prepared):
        weight = model.anatomy.blocks[0].mlp.linears()[-1].weight.data
        weight.mul_(0.7)
        try:
            with super().attach(model, prepared):
                yield
        finally:
            weight.div_(0.7)

    neutral = None


@fault("restores-the-process")
class SeedsGlobally(Sound):
    """Seeds everybody's random numbers."""

    def attach(self, model, prepared):
        torch.manual_seed(0)
        return super().attach(model, prepared)


@fault("restores-the-process")
class ForgetsPatch(Sound):
    """Replaces a function of torch and leaves it replaced."""

    def attach(self, model, prepared):
        original = torch.nn.functional.softsign
        torch.nn.functional.softsign = lambda tensor: original(tensor)
        return super().attach(model, prepared)


# ---- what a method prepares ---------------------------------------------------------------------------------


class Preparing(Sound):
    """Chooses the MLPs in a preparation."""

    neutral = None

    def prepare(self, model, study):
        return Prepared(facts={"layers": list(range(1, 1 + self.count))})

    def attach(self, model, prepared):
        return without_branches(model, mlp=prepared.facts["layers"])


@fault("prepares-the-same-again", "preparation-changes-nothing")
class PreparesByLuck(Preparing):
    """Chooses by the global random numbers."""

    def prepare(self, model, study):
        scores = torch.rand(len(model.anatomy.blocks))
        return Prepared({"scores": scores}, {"layers": scores.argsort()[: self.count].tolist()})


@fault("preparation-changes-nothing")
class PreparesInPlace(Preparing):
    """Marks the model while it prepares."""

    def prepare(self, model, study):
        model.config.calibrated = True
        return super().prepare(model, study)


@fault("state-survives")
class KeepsStateOnItself(Preparing):
    """Keeps what it prepared on the object, which another run does not have."""

    examples = ({"count": 1},)

    def prepare(self, model, study):
        object.__setattr__(self, "layers", [1])
        return Prepared()

    def attach(self, model, prepared):
        return without_branches(model, mlp=self.layers)


@fault("state-survives")
class KeysByNumber(Preparing):
    """Keys its facts by numbers, which JSON makes strings, and takes what it misses for nothing."""

    def prepare(self, model, study):
        return Prepared(facts={layer: layer < self.count for layer in range(4)})

    def attach(self, model, prepared):
        return without_branches(model, mlp=[layer for layer in range(4) if prepared.facts.get(layer)])


# ---- what a method answers ----------------------------------------------------------------------------------


class Scaling(Method):
    """Scales the output of an MLP, in some rows or always."""

    name = "scaling"
    family = Family.ROUTING
    savings = Savings.SIMULATED

    @contextmanager
    def attach(self, model, prepared):
        state: dict[str, Any] = {}

        def decide(module, args, kwargs):
            if model.context is not None and not model.context.decoding:
                ids = args[0] if args else kwargs["input_ids"]
                state["factor"] = torch.tensor(self.factors(ids, model.context)).float()

        def scale(module, args, output):
            return output * state["factor"].view(-1, 1, 1) if "factor" in state else output

        handles = [
            model.module.register_forward_pre_hook(decide, with_kwargs=True),
            model.anatomy.blocks[1].mlp.output.register_forward_hook(scale),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def factors(self, ids, context):
        """One for each row, from its prompt."""
        return [_coin(own[: row.prompt_length]) for own, row in zip(_own(ids, context), context.rows, strict=True)]


def _own(ids, context):
    """Each row without its padding."""
    right = context.padding == "right"
    return [own[: row.length] if right else own[-row.length :] for own, row in zip(ids, context.rows, strict=True)]


def _coin(tokens):
    return 0.0 if int(tokens.sum()) % 2 else 0.5


@fault("neutral-is-dense")
class NotNeutral(Sound):
    """Calls settings neutral that are not."""

    neutral = {"count": 1}


@fault("exact-is-exact")
class NotExact(Sound):
    """Claims that its text is dense's."""

    exact = True


@fault("deterministic", "attaches-again")
class Jitters(Scaling):
    """Adds a little noise of its own, unseeded."""

    def factors(self, ids, context):
        return [0.5 + random.Random().random() * 1e-4 for _ in ids]


@fault("decides-from-the-prompt", "cached-decoding")
class ReadsTheAnswer(Scaling):
    """Decides by the whole text, continuation included."""

    def factors(self, ids, context):
        return [_coin(own) for own in _own(ids, context)]


# ---- decoding, batches, padding -----------------------------------------------------------------------------


@fault("cached-decoding")
class RepeatsIntoOneSlot(Method):
    """Runs a layer twice, and both passes put their keys and values into one cache slot."""

    name = "repeats"
    family = Family.ROUTING
    savings = Savings.NONE
    batchable = False

    @contextmanager
    def attach(self, model, prepared):
        layer = model.anatomy.blocks[1].module

        def again(module, args, kwargs, output):
            if args:
                return module.forward(output, *args[1:], **kwargs)
            return module.forward(**{**kwargs, "hidden_states": output})

        handle = layer.register_forward_hook(again, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@fault("cached-decoding", "padding-changes-nothing")
class SkipsTheFirstSlot(Method):
    """Leaves the first layer out and its cache slot empty, where positions are read from."""

    name = "skips-first"
    family = Family.PRUNING

    @contextmanager
    def attach(self, model, prepared):
        parent, name = model.anatomy.parent, model.anatomy.layers_name
        layers = getattr(parent, name)
        setattr(parent, name, nn.ModuleList(list(layers)[1:]))
        try:
            yield
        finally:
            setattr(parent, name, layers)


@fault("rows-are-independent", "cached-decoding")
class FollowsTheFirstRow(Scaling):
    """Decides for a whole batch by its first row."""

    def factors(self, ids, context):
        return super().factors(ids, context)[:1] * len(context.rows)


@fault("padding-changes-nothing", "cached-decoding")
class CountsFromTheLeft(Scaling):
    """Takes the first columns for the prompt, which are padding in a generation."""

    def factors(self, ids, context):
        return [_coin(own[: row.prompt_length]) for own, row in zip(ids, context.rows, strict=True)]


# ---- what a method runs and saves ---------------------------------------------------------------------------


@fault("affects-its-phases", "saves-what-it-declares", "saves-measurably")
class NeverExecuted(Method):
    """Does nothing."""

    name = "never-executed"
    family = Family.PRUNING

    def attach(self, model, prepared):
        return nullcontext()


@fault("affects-its-phases", "cached-decoding")
class GeneratesOnly(Scaling):
    """Leaves scoring as it is, so that a multiple-choice score says nothing about it."""

    def factors(self, ids, context):
        return [0.5 if context.kind == "generate" else 1.0 for _ in ids]


@fault("affects-its-phases", "cached-decoding")
class ScoresOnly(Scaling):
    """Leaves generating as it is."""

    def factors(self, ids, context):
        return [0.5 if context.kind == "score" else 1.0 for _ in ids]


@fault("saves-what-it-declares", "saves-measurably")
class OnlyMasks(Scaling):
    """Claims to save what it multiplies by nought."""

    savings = Savings.REAL

    def factors(self, ids, context):
        return [0.0 for _ in ids]


@fault("saves-what-it-declares")
class SavesButDeniesIt(Sound):
    """Counts savings that it declares to be on paper only."""

    savings = Savings.SIMULATED


@fault("stronger-is-cheaper")
class WeakerWhenStronger(Sound):
    """Drops less the more it is asked to."""

    def attach(self, model, prepared):
        return without_branches(model, mlp=range(1 + self.count, 4) if self.count else ())


@fault("counts-what-runs", "saves-measurably")
class UnderstatesItself(Method):
    """Replaces a linear layer by one that says it computes half of what it does."""

    name = "understates"
    family = Family.SPARSE

    @contextmanager
    def attach(self, model, prepared):
        linears = [(block.module.mlp, *part) for block in model.anatomy.blocks for part in _linears(block.module.mlp)]
        for owner, name, linear in linears:
            setattr(owner, name, _Understated(linear))
        try:
            yield
        finally:
            for owner, name, linear in linears:
                setattr(owner, name, linear)


def _linears(mlp):
    return [(name, part) for name, part in mlp.named_children() if hasattr(part, "weight")]


class _Understated(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.macs_per_token = linear.weight.numel() // 2

    def forward(self, tokens):
        return self.linear(tokens)


@fault("affects-its-phases", "saves-what-it-declares", "counts-what-runs")
class HidesItsRows(Method):
    """Runs an MLP one row at a time and does not say on which."""

    name = "hides-rows"
    family = Family.ROUTING
    savings = Savings.NONE

    @contextmanager
    def attach(self, model, prepared):
        layer = model.anatomy.blocks[1].module
        mlp = layer.mlp
        layer.mlp = _RowByRow(mlp)
        try:
            yield
        finally:
            layer.mlp = mlp


class _RowByRow(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, tokens):
        return torch.cat([self.mlp(row) for row in tokens.split(1)]) * 0.5
