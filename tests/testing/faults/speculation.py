"""Methods that draft, and are wrong in one way: what they write is not what the whole model would have written."""

from contextlib import contextmanager
from itertools import count

import torch
from transformers import DynamicCache

from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from tests.testing.faults.declared import fault


class Drafting(Method):
    """Guesses the token that was written last, and verifies the guess by hand."""

    name = "drafting"
    family = Family.LOSSLESS
    exact = True
    batchable = False
    phases = frozenset({Phase.DECODE})

    @contextmanager
    def attach(self, model, prepared):
        module = model.module

        @torch.no_grad()
        def generate(input_ids, max_length, **options):
            cache, unread = DynamicCache(config=model.config), input_ids
            while input_ids.shape[1] < max_length:
                drafts = input_ids[:, -1:] if unread.shape[1] == 1 and input_ids.shape[1] + 1 < max_length else None
                read = unread if drafts is None else torch.cat([unread, drafts], 1)
                logits = module(input_ids=read, past_key_values=cache, use_cache=True).logits
                written = self.accepted(logits, drafts, cache)
                input_ids, unread = torch.cat([input_ids, written], 1), written[:, -1:]
            return input_ids

        module.generate = generate
        try:
            yield
        finally:
            del module.generate

    def accepted(self, logits, drafts, cache):
        """The tokens that are written, [1, tokens]."""
        if drafts is None:
            return logits[:, -1:].argmax(-1)
        first, second = logits[:, -2:].argmax(-1).split(1, 1)
        if torch.equal(first, drafts):
            return torch.cat([first, second], 1)
        self.reject(cache)
        return first

    def reject(self, cache):
        cache.crop(-1)


@fault("exact-is-exact")
class Unverified(Drafting):
    """Takes what it guessed for what the model would have written."""

    def accepted(self, logits, drafts, cache):
        last = logits[:, -1:].argmax(-1)
        return last if drafts is None else torch.cat([drafts, last], 1)


@fault("exact-is-exact")
class KeepsRejected(Drafting):
    """Leaves the keys and values of a rejected token in the cache."""

    def reject(self, cache):
        pass


@fault("exact-is-exact")
class RarelyWrong(Method):
    """Writes the second best token in place of one of a thousand."""

    name = "rarely-wrong"
    family = Family.LOSSLESS
    exact = True
    batchable = False

    @contextmanager
    def attach(self, model, prepared):
        generate, steps = model.module.generate, count(1)

        def second(ids, scores):
            if next(steps) % 1000 == 0:
                scores[0, scores[0].argmax()] = -torch.inf
            return scores

        model.module.generate = lambda **options: generate(logits_processor=[second], **options)
        try:
            yield
        finally:
            del model.module.generate
