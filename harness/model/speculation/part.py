"""Drafts by a part of the model on the text's own cache, whose first layers the verification does not compute again.

Up to the first layer that the part leaves out, part and model do the same. What a draft computed there stands: of each
guess but the last, the keys and values and the state that leaves these layers, so that the verification runs them on
the last guess alone and all other layers on every one (LayerSkip, Elhoushi et al., arXiv:2404.16710, whose part is the
first layers). Behind that layer a draft's keys and values are not the model's, and are taken out of the cache again.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.forwards import by_name, cache_argument, replace_forward, returns_tuple, states_of
from harness.model.layouts import layer_number
from harness.model.speculation.drafts import SharedDraft
from harness.model.supported import require_supported
from harness.model.surgery import without_branches

_TOKEN_DIMENSION = {"attention_mask": -2, "position_embeddings": -2, "position_ids": -1, "cache_position": -1}
"""Where a layer's arguments have the tokens of the forward."""


@contextmanager
def drafted_by_part(
    model: Decoder, *, blocks: Collection[int] = (), attentions: Collection[int] = ()
) -> Iterator["PartialDraft"]:
    """A draft by the model without some layers, and without the attention of others, for ``speculated``.

    Args:
        blocks, attentions: by their layers' indices in the dense model.

    Raises:
        UnsupportedModelError: a model whose layers keep more than keys and values between tokens.
        MethodError: an attention goes that the cache's positions are read off, or another method directs the layers.
    """
    require_supported(model, "drafts by a part of the layers")
    if lost := sorted({*blocks, *attentions} & measuring(model)):
        raise MethodError(
            f"a draft needs the attention of layer {lost[0]}, off which positions in the cache are read: leave out "
            "others"
        )
    draft = PartialDraft(model, blocks, attentions)
    with ExitStack() as undo:
        draft.direct(undo)
        yield draft


def measuring(model: Decoder) -> set[int]:
    """Layers off whose cache positions and the sizes of masks are read: the first of each kind of attention."""
    kinds = [getattr(slot, "sliding_window", None) for slot in DynamicCache(config=model.config).layers]
    first = {kinds.index(kind) for kind in kinds}
    return {block.index for block in model.live if layer_number(block.attention.modules[0]) in first}


class PartialDraft(SharedDraft):
    """See the module; made by ``drafted_by_part``."""

    def __init__(self, model: Decoder, blocks: Collection[int], attentions: Collection[int]) -> None:
        self._model, self._attentions = model, tuple(attentions)
        self._layers = [_Layer(block, block.index in blocks) for block in model.live]
        out = {*blocks, *attentions}
        common = next((place for place, block in enumerate(model.live) if block.index in out), len(self._layers))
        self._common = self._layers[:common]  # what part and model begin with
        self._phase: Literal["draft", "verify"] | None = None
        self._queries = 0  # tokens of the verification that runs

    def direct(self, undo: ExitStack) -> None:
        """Replace the layers' forwards until ``undo`` closes."""
        for layer in self._layers:
            run = self._run_common if layer in self._common else self._run
            replace_forward(undo, layer.block.module, by_name(layer.forward, partial(run, layer)))

    def __call__(self, context: list[int], count: int) -> list[int]:
        """The part's greedy continuation."""
        drafts: list[int] = []
        self._states: list[torch.Tensor] = []  # [1, 1, width] of each token, behind the common layers
        slots = self._slots()
        with self._model.drafting(), self._phased("draft"), self._without_attentions():
            for _ in range(count):
                logits = self.text.read(drafts, 1).logits  # [1, any, vocabulary]
                drafts.append(int(logits[0, -1].argmax()))
        for layer in self._common:
            slot = slots[layer.slot]
            layer.held = slot.keys[..., -count:, :], slot.values[..., -count:, :]  # [1, heads, count, head width]
        for layer in self._layers:
            if not layer.is_out and layer.block.index not in self._attentions:
                slots[layer.slot].crop(-count)
        self._queries = count + 1
        return drafts

    def verifying(self) -> AbstractContextManager[None]:
        """The common layers take what they have of the draft."""
        return self._phased("verify")

    @contextmanager
    def _phased(self, phase: Literal["draft", "verify"]) -> Iterator[None]:
        self._phase = phase
        try:
            yield
        finally:
            self._phase = None

    def _without_attentions(self) -> AbstractContextManager[None]:
        """The model without the attentions that are left out, the others where they are in the cache."""
        if not self._attentions:
            return nullcontext()
        return without_branches(self._model, attention=self._attentions, keep_slots=True)

    def _slots(self) -> list[Any]:
        """The cache by layer.

        Raises:
            MethodError: it is not one of the keys and values of all tokens.
        """
        slots: list[Any] = self.text.cache.layers
        others = [type(slot).__name__ for slot in slots if type(slot) not in (DynamicLayer, DynamicSlidingWindowLayer)]
        if others:
            raise MethodError(
                f"a part of the model drafts on the text's own cache, and {others[0]} is not one of all keys and "
                "values: run the two methods apart"
            )
        return slots

    def _run(self, layer: "_Layer", states: torch.Tensor, **arguments: Any) -> Any:
        """A layer of the model, on states [1, tokens, width]; a draft goes around it where it is left out."""
        if layer.is_out and self._phase == "draft":
            return (states, None) if layer.in_tuple else states
        return layer.forward(states, **arguments)

    def _run_common(self, layer: "_Layer", states: torch.Tensor, **arguments: Any) -> Any:
        """A layer that is part of every draft; in a verification it runs on the last token, [1, 1, width]."""
        if self._phase == "verify":
            arguments = {name: _of_last(name, value, self._queries) for name, value in arguments.items()}
            arguments[layer.cache_name] = _WithDraft(arguments[layer.cache_name], *layer.held)
            states = states[:, -1:]
        output = layer.forward(states, **arguments)
        if self._phase is None or layer is not self._common[-1]:
            return output
        if self._phase == "draft":
            self._states.append(states_of(output))
            return output
        states = torch.cat([*self._states, states_of(output)], 1)  # [1, drafts + 1, width]
        return (states, *output[1:]) if isinstance(output, tuple) else states


class _Layer:
    """A decoder layer.

    Attributes:
        is_out: drafts go around it.
        slot: its place in the cache.
        held: keys and values of the draft that is verified, [1, heads, tokens, head width] each.
    """

    held: tuple[torch.Tensor, torch.Tensor]

    def __init__(self, block: Block, is_out: bool) -> None:
        self.block, self.is_out = block, is_out
        self.forward = block.module.forward
        self.in_tuple = returns_tuple(block.module)
        self.cache_name = cache_argument(self.forward)
        self.slot = layer_number(block.attention.modules[0])


class _WithDraft:
    """In place of the cache while a layer runs on the last token: what it has of those before goes in with it."""

    def __init__(self, cache: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._cache, self._held = cache, (keys, values)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append to the cache, and return all of the layer's, [1, heads, seen tokens, head width] each."""
        pair = [torch.cat([held, own], -2) for held, own in zip(self._held, (keys, values), strict=True)]
        return self._cache.update(*pair, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _of_last(name: str, value: Any, tokens: int) -> Any:
    """A layer's argument for the last token of a forward."""
    if isinstance(value, tuple):
        return tuple(_of_last(name, part, tokens) for part in value)
    dimension = _TOKEN_DIMENSION.get(name)
    if dimension is None or not isinstance(value, torch.Tensor) or value.shape[dimension] != tokens:
        return value
    return value.narrow(dimension, tokens - 1, 1)
