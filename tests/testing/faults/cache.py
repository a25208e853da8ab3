"""Faults of methods that choose what a cache holds."""

from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch

from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from harness.model.cache.mixins import Presses
from tests.testing.faults.declared import fault


class ByHand(Method):
    """Looks into the cache after each attention, once the prompt was read."""

    name = "by-hand"
    family = Family.CACHE
    phases = frozenset({Phase.DECODE})

    @contextmanager
    def attach(self, model, prepared):
        def after(module, args, kwargs, output):
            cache = kwargs.get("past_key_values")
            context = model.context
            goes_on = context is not None and (context.kind == "generate" or context.read is not None)
            if cache is not None and goes_on and not context.decoding:
                self.change(cache.layers[module.layer_idx])

        with ExitStack() as undo:
            for block in model.anatomy.blocks:
                undo.callback(block.attention.modules[0].register_forward_hook(after, with_kwargs=True).remove)
            yield


@fault("padding-changes-nothing", "padding-is-never-kept")
class KeepsPads(ByHand):
    """Keeps the first columns of a prompt, which in a batch are padding."""

    def change(self, layer):
        layer.keys, layer.values = layer.keys[:, :, :4].clone(), layer.values[:, :, :4].clone()


@fault("padding-changes-nothing", "padding-is-never-kept", "decodes-as-if-masked")
class MovesPositions(ByHand):
    """Keeps entries, and forgets where they were."""

    def change(self, layer):
        layer.keys, layer.values = layer.keys[:, :, -4:].clone(), layer.values[:, :, -4:].clone()

    @contextmanager
    def attach(self, model, prepared):
        def renumber(module, args, kwargs):
            positions, cache = kwargs.get("position_ids"), kwargs.get("past_key_values")
            if positions is None or cache is None or positions.shape[-1] > 1:
                return None
            return args, {**kwargs, "position_ids": torch.full_like(positions, cache.get_seq_length())}

        handle = model.anatomy.parent.register_forward_pre_hook(renumber, with_kwargs=True)
        try:
            with super().attach(model, prepared):
                yield
        finally:
            handle.remove()


@fault("holds-less", "saves-measurably")
class HoldsWhatItHides(Presses):
    """Lets attention read all but the first key, and has everything in a drawer of the cache."""

    name = "hides"
    drawer: ClassVar = []

    def choose(self, entries):
        self.drawer[entries.layer :] = [(entries.keys, entries.values)]
        return entries.ends(0, len(entries) - 1)

    @contextmanager
    def attach(self, model, prepared):
        def hide(module, args, output):
            if output.past_key_values is not None:
                output.past_key_values.drawer = list(self.drawer)

        with super().attach(model, prepared):
            handle = model.module.register_forward_hook(hide)
            try:
                yield
            finally:
                handle.remove()


@fault("saves-what-it-declares", "holds-less", "saves-measurably")
class MasksWhatItKeeps(Method):
    """Hides entries in decode steps, and calls that saved."""

    name = "masks"
    family = Family.CACHE
    phases = frozenset({Phase.DECODE})

    @contextmanager
    def attach(self, model, prepared):
        def hide(module, args, kwargs):
            cache = kwargs.get("past_key_values")
            if cache is None or kwargs["hidden_states"].shape[1] > 1:
                return None
            keys = cache.get_seq_length(0) + (module.layer_idx == 0)
            mask = torch.arange(keys) >= keys - 4
            return args, {**kwargs, "attention_mask": mask[None, None, None]}

        with ExitStack() as undo:
            for block in model.anatomy.blocks:
                undo.callback(block.attention.modules[0].register_forward_pre_hook(hide, with_kwargs=True).remove)
            yield
