"""Draft and verify: cheap guesses of the next tokens, looked at by one forward of the whole model.

A draft proposes tokens; one forward over the last token and the proposals gives the model's own choice after each of
them; the longest prefix of proposals that are its choices is taken, and the choice that follows it (Leviathan et al.,
arXiv:2211.17192, at temperature 0). What was rejected leaves the cache again. ``generate`` itself stays transformers':
its arguments, logits processors and stopping criteria are what they are, and both see one token more each time, in the
order of plain decoding, so that a text ends at the same token.

The text is that of plain greedy decoding up to rounding: a product of several rows rounds otherwise than one of a
single row, and where the two best tokens lie closer than that, either may be written. Each such place is counted.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import takewhile
from numbers import Integral
from typing import Any, Final

import torch
from transformers import DynamicCache
from transformers.generation.configuration_utils import GenerationMode

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.forwards import replace_forward
from harness.model.given import unusable

Draft = Callable[[list[int], int], "Sequence[int] | torch.Tensor"]
"""Proposes what follows a text: takes its token ids without padding, and how many tokens at most; gives that many or
fewer, as whole numbers or a tensor of them, [tokens]."""

TIE: Final = 1e-4
"""Difference of the two best logits below which rounding in float32 may choose between them."""
_ROUNDINGS: Final = 4
"""The same in roundings of the best logit, which is more where numbers are shorter than float32."""


class StatefulDraft(ABC):
    """A draft that remembers something of the text that is being written."""

    @abstractmethod
    def begin(self) -> None:
        """Another text begins: forget the last one."""

    @abstractmethod
    def __call__(self, context: list[int], count: int) -> Sequence[int]:
        """See ``Draft``."""


@contextmanager
def speculated(model: Decoder, draft: Draft, tokens: int, name: str = "the draft") -> Iterator[None]:
    """Let ``generate`` write several tokens in a forward where they were guessed, for the length of a ``with`` block.

    Scoring is untouched. A generation is of one row and greedy; others are refused.

    Args:
        draft: what guesses, such as a look-up or a ``SelfDraft``.
        tokens: guesses for each verification, at most; 0 leaves the model dense.
        name: the method's, for messages.

    Raises:
        MethodError: another method drafts already; or, while it generates: sampling or beams are asked for, the batch
            has several rows, the cache takes nothing back, or a draft is not tokens of this model.
    """
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise MethodError(f"{name}: tokens is how many are guessed at most, a whole number from 0 on, not {tokens!r}")
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


class SelfDraft(StatefulDraft):
    """Drafts by a part of the model itself, token after token, with a cache of its own.

    Args:
        part: makes the model that part, such as ``partial(without_blocks, model, layers)``.
    """

    def __init__(self, model: Decoder, part: Callable[[], AbstractContextManager[Any]]) -> None:
        self._model, self._part = model, part
        self.begin()

    def begin(self) -> None:
        """Start with an empty cache."""
        self._cache: Any = None
        self._cached: list[int] = []  # the tokens whose keys and values it has

    def __call__(self, context: list[int], count: int) -> list[int]:
        """The part's own greedy continuation."""
        with self._model.drafting(), self._part():
            self._take_back(context)
            unread, drafts = context[len(self._cached) :], list[int]()
            for _ in range(count):
                drafts.append(self._next(unread))
                self._cached += unread
                unread = drafts[-1:]
        return drafts

    def _take_back(self, context: list[int]) -> None:
        """Leave in the cache what the text and it have in common."""
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)  # the part's: it may have fewer layers
            self._cache.activate_past_recording()
        pairs = zip(self._cached, context, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if self._cached:
            self._cache.crop(common - len(self._cached))
            del self._cached[common:]

    def _next(self, unread: list[int]) -> int:
        module: Any = self._model.module
        last = {"logits_to_keep": 1} if module._supports_logits_to_keep() else {}
        ids = torch.tensor([unread], device=self._model.device)  # [1, tokens]
        logits = module(
            input_ids=ids, past_key_values=self._cache, use_cache=True, **last
        ).logits  # [1, any, vocabulary]
        return int(logits[0, -1].argmax())


class _Speculation:
    """Stands in for the model's ``generate``."""

    def __init__(self, model: Decoder, draft: Draft, tokens: int, name: str) -> None:
        self._model, self._draft, self._tokens, self._name = model, draft, tokens, name
        self._generate: Any = model.module.generate
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
        drafts: list[int] = []
        ended = False
        with module._optimize_model_for_decode():
            while True:
                logits = outputs.logits[0, -1 - len(drafts) :].float()  # [drafts + 1, vocabulary]
                before = input_ids.shape[1]
                input_ids, ended = self._accepted(input_ids, text, drafts, logits, logits_processor, stopping_criteria)
                written = input_ids.shape[1] - before
                self._roll_back(outputs.past_key_values, len(drafts) + 1 - written)
                if streamer is not None:
                    streamer.put(input_ids[0, before:].cpu())
                if ended:
                    break
                model_kwargs = module._update_model_kwargs_for_generation(outputs, model_kwargs, num_new_tokens=written)
                drafts = self._proposed(text, generation_config.max_length - input_ids.shape[1] - 1)
                outputs = self._verified(module, input_ids, drafts, outputs, model_kwargs)
        if streamer is not None:
            streamer.end()
        return input_ids

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

    def _verified(self, module: Any, ids: torch.Tensor, drafts: list[int], outputs: Any, inputs: dict[str, Any]) -> Any:
        """One forward over the last token and the drafts; without any, a step of plain decoding."""
        if drafts:
            inputs = module._update_model_kwargs_for_generation(outputs, dict(inputs), num_new_tokens=len(drafts))
            ids = torch.cat([ids, ids.new_tensor([drafts])], -1)
        arguments = module.prepare_inputs_for_generation(ids, next_sequence_length=len(drafts) + 1, **inputs)
        if "logits_to_keep" in arguments:
            arguments["logits_to_keep"] = len(drafts) + 1
        with self._model.verifying() if drafts else nullcontext():
            return module(**arguments, return_dict=True)

    def _proposed(self, text: list[int], room: int) -> list[int]:
        """The draft's tokens, checked.

        Args:
            room: tokens that may be written before the last one.
        """
        count = min(self._tokens, room)
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
        rounding = _ROUNDINGS * torch.finfo(self._model.module.dtype).eps * abs(best)
        if best - second < max(TIE, rounding) and (place := tuple(text)) not in self._ties:
            self._ties.add(place)
            logging.getLogger("harness").warning(
                f"{self._name}: a token was written whose logit lies so close to the next best one that rounding may "
                "choose another than dense does"
            )


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
