"""Verify drafts: one forward of the whole model over guesses of the next tokens.

A draft proposes tokens; one forward over the last token and the proposals gives the model's own choice after each of
them; the longest prefix of proposals that are its choices is taken, and the choice that follows it (Leviathan et al.,
arXiv:2211.17192, at temperature 0). What was rejected leaves the cache again. ``generate`` itself stays transformers':
its arguments, logits processors and stopping criteria are what they are, and both see one token more each time, in the
order of plain decoding, so that a text ends at the same token.

The text is that of plain greedy decoding up to rounding: a product of several rows rounds otherwise than one of a
single row, and where the two best tokens lie closer than that, either may be written. Each such place is counted.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from math import inf
from numbers import Integral
from typing import Any, Final

import torch
from transformers.generation.configuration_utils import GenerationMode

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.forwards import replace_forward
from harness.model.given import unusable
from harness.model.speculation.drafts import Draft, SharedDraft, StatefulDraft
from harness.model.speculation.text import Text

TIE: Final = 1e-4
"""Difference of the two best logits below which rounding in float32 may choose between them."""
_ROUNDINGS: Final = 4
"""The same in roundings of the best logit, which is more where numbers are shorter than float32."""


@contextmanager
def speculated(model: Decoder, draft: Draft, tokens: int, name: str = "the draft") -> Iterator[None]:
    """Let ``generate`` write several tokens in a forward where they were guessed, for the length of a ``with`` block.

    Scoring is untouched. A generation is of one row and greedy; others are refused.

    Args:
        draft: what guesses, such as a look-up or a ``SelfDraft``.
        tokens: guesses for each verification, at most; 0 leaves the model dense.
        name: the method's, for messages.

    Raises:
        MethodError: another method drafts already, or the model has no positions for so many tokens; or, while it
            generates: sampling or beams are asked for, the batch has several rows, the cache takes nothing back, or a
            draft is not tokens of this model.
    """
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise MethodError(f"{name}: tokens is how many are guessed at most, a whole number from 0 on, not {tokens!r}")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and tokens >= positions:
        raise MethodError(
            f"{name}: a draft of {tokens} tokens is longer than the model's {positions} positions: from 0 to "
            f"{positions - 1}"
        )
    if "generate" in vars(model.module):
        raise MethodError(f"{name}: another method drafts already; a stack has one that does")
    if not tokens:
        yield
        return
    if not callable(draft):
        raise MethodError(f"{name}: a draft is called for each verification, and {draft!r:.80} cannot be")
    speculation = _Speculation(model, draft, tokens, name)
    with ExitStack() as undo:
        replace_forward(undo, model.module, speculation.generate, "generate")
        yield


class _Speculation:
    """Stands in for the model's ``generate``."""

    def __init__(self, model: Decoder, draft: Draft, tokens: int, name: str) -> None:
        self._model, self._draft, self._tokens, self._name = model, draft, tokens, name
        self._generate: Any = model.module.generate
        self._positions = getattr(model.config, "max_position_embeddings", None) or inf
        self._vocabulary: int = model.module.get_input_embeddings().weight.shape[0]
        self._ties = set[tuple[int, ...]]()  # texts before a tie: the cost pass writes them again

    def generate(self, *args: Any, streamer: Any = None, **options: Any) -> Any:
        """Generate as transformers does, but for the loop over tokens."""
        loop = partial(self._write, streamer=streamer)
        return self._generate(*args, streamer=streamer, custom_generate=loop, **options)

    def _write(
        self,
        module: Any,
        input_ids: torch.Tensor,
        *,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        """The loop: token ids, [1, prompt], to those of prompt and continuation, [1, tokens]."""
        self._require_greedy(input_ids, generation_config, model_kwargs)
        mask = model_kwargs.get("attention_mask")
        text: list[int] = (input_ids if mask is None else input_ids[mask.bool()]).flatten().tolist()
        if isinstance(self._draft, StatefulDraft):
            self._draft.begin()
        outputs = module._prefill(input_ids, generation_config, model_kwargs)
        self._require_rollback(outputs.past_key_values)
        written = Text(module, input_ids, outputs, model_kwargs)
        if isinstance(self._draft, SharedDraft):
            self._draft.text = written
        drafts: list[int] = []
        ended = False
        with module._optimize_model_for_decode():
            while True:
                logits = written.outputs.logits[0, -1 - len(drafts) :].float()  # [drafts + 1, vocabulary]
                ids, ended = self._accepted(written.ids, text, drafts, logits, logits_processor, stopping_criteria)
                tokens = written.write(ids)
                self._roll_back(written.cache, len(drafts) + 1 - tokens)
                if streamer is not None:
                    streamer.put(ids[0, -tokens:].cpu())
                if ended:
                    break
                room = min(generation_config.max_length, self._positions) - ids.shape[1] - 1
                drafts = self._proposed(text, room)
                written.outputs = self._verified(written, drafts)
        if streamer is not None:
            streamer.end()
        return written.ids

    def _accepted(
        self,
        ids: torch.Tensor,
        text: list[int],
        drafts: list[int],
        logits: torch.Tensor,
        processors: Any,
        criteria: Any,
    ) -> tuple[torch.Tensor, bool]:
        """Write the model's own choices for as long as they are the drafts', and the one that follows.

        Args:
            ids: token ids so far, [1, tokens].
            text: the same without padding; what is written is appended.
            logits: after the last token and after each draft, [drafts + 1, vocabulary].

        Returns:
            The ids with what was written, and whether the text ends there.
        """
        for draft, raw in zip([*drafts, None], logits, strict=True):
            scores = processors(ids, raw[None])  # [1, vocabulary]
            self._note_tie(scores[0], text)
            chosen = scores.argmax(-1, keepdim=True)  # [1, 1]
            ids = torch.cat([ids, chosen], -1)
            text.append(int(chosen))
            if criteria(ids, None).all():
                if self._model.context is not None:
                    self._model.context.ends_in_guess = text[-1] == draft
                return ids, True
            if text[-1] != draft:
                break
        return ids, False

    def _verified(self, text: Text, drafts: list[int]) -> Any:
        """One forward over the last token and the drafts; without any, a step of plain decoding."""
        if not drafts:
            return text.read((), 1)
        sharing = self._draft.verifying() if isinstance(self._draft, SharedDraft) else nullcontext()
        with self._model.verifying(), sharing:
            return text.read(drafts, len(drafts) + 1)

    def _proposed(self, text: list[int], room: float) -> list[int]:
        """The draft's tokens, checked.

        Args:
            room: tokens that may be written before the last one, and that the model has positions for.
        """
        count = int(min(self._tokens, room))
        if count < 1:
            return []
        given = _whole_numbers(draft := self._draft(list(text), count))
        if given is None:
            what = " ".join(repr(draft).split())[:80]
            raise MethodError(
                f"{self._name}: a draft is a list of token ids, or a tensor of them, [tokens], not {what}"
            )
        if len(given) > count:
            raise MethodError(f"{self._name}: a draft has {len(given)} tokens where {count} at most were asked for")
        for token in given:
            if not 0 <= token < self._vocabulary:
                raise MethodError(
                    f"{self._name}: a draft has token {token}, and the model's tokens are 0 to {self._vocabulary - 1}: "
                    "it is of another vocabulary"
                )
        return given

    def _roll_back(self, cache: Any, rejected: int) -> None:
        """Take the last tokens out of the cache; 0 lets a sliding window forget what it kept for that."""
        length = int(cache.get_seq_length())
        cache.crop(-rejected)
        if int(cache.get_seq_length()) != length - rejected:
            raise MethodError(self._no_rollback(cache))

    def _require_rollback(self, cache: Any) -> None:
        """Refuse a cache that takes nothing back, before anything is drafted."""
        try:
            if not cache.is_croppable:
                raise MethodError(self._no_rollback(cache))
            cache.activate_past_recording()
            self._roll_back(cache, 0)
        except (AttributeError, NotImplementedError, RuntimeError, MethodError) as error:
            raise MethodError(self._no_rollback(cache)) from error

    def _no_rollback(self, cache: Any) -> str:
        layers = {type(layer).__name__: None for layer in getattr(cache, "layers", ())}
        kind = type(cache).__name__ + (f" of {', '.join(layers)}" if layers else "")
        return (
            f"{self._name}: rejected tokens must leave the cache again, and {kind} gives none back: run it with "
            "transformers' own dynamic cache"
        )

    def _require_greedy(self, ids: torch.Tensor, config: Any, inputs: dict[str, Any]) -> None:
        """Refuse what is not greedy decoding of one row with a cache."""
        mode = config.get_generation_mode()
        if mode is not GenerationMode.GREEDY_SEARCH:
            raise MethodError(
                f"{self._name} drafts for greedy decoding, and {mode.value.replace('_', ' ')} was asked for: give "
                f"--gen_kwargs do_sample=false, or run without {self._name}"
            )
        if len(ids) > 1:
            raise MethodError(f"{self._name} drafts for one row, and the batch has {len(ids)}: give --batch_size 1")
        if not inputs.get("use_cache"):
            raise MethodError(f"{self._name} verifies drafts against a cache: give --gen_kwargs use_cache=true")
        if config.return_dict_in_generate:
            raise MethodError(f"{self._name} gives tokens alone: give --gen_kwargs return_dict_in_generate=false")

    def _note_tie(self, scores: torch.Tensor, text: list[int]) -> None:
        """Count a place where rounding may choose: one warning each, which a record gathers with their number."""
        best, second = scores.topk(2).values.tolist()
        is_tie = best - second < rounding_at(best, self._model.module.dtype)
        if is_tie and (place := tuple(text)) not in self._ties:
            self._ties.add(place)
            logging.getLogger("harness").warning(
                f"{self._name}: a token was written whose logit lies so close to the next best one that rounding may "
                "choose another than dense does"
            )


def rounding_at(best: float, dtype: torch.dtype) -> float:
    """How close to the best logit another one may be chosen by rounding, of a model in this number format."""
    return max(TIE, _ROUNDINGS * torch.finfo(dtype).eps * abs(best))


def _whole_numbers(draft: Any) -> list[int] | None:
    """A draft's tokens; None if it is something else."""
    if isinstance(draft, torch.Tensor):
        if draft.is_meta or unusable(draft, draft.device):
            return None
        draft = draft.tolist()
    if not isinstance(draft, list | tuple):
        return None
    whole = all(isinstance(token, Integral) and not isinstance(token, bool) for token in draft)
    return [int(token) for token in draft] if whole else None
