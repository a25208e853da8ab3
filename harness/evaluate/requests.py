"""What an evaluation would ask of the model, noted without running it: the requests that costs are measured with."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.core.errors import Enough
from harness.evaluate.batches import ScoringRequest, scored_row, scoring_batches
from harness.evaluate.context_first import Asked, contexts_of
from harness.evaluate.evaluation import Settings, simple_evaluate
from harness.evaluate.generation import arguments
from harness.evaluate.journal import Request
from harness.evaluate.score_mode import ContextFirst
from harness.evaluate.tasks import LoadedTask
from harness.measure.serve import CostRequest

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM, Score


def requests_of(
    lm: "HarnessLM",
    task: LoadedTask,
    settings: Settings,
    samples: dict[str, list[int]],
    context_first: ContextFirst | None = None,
) -> list[CostRequest]:
    """The requests of some documents, of the first kind that the task asks (its scored texts, or its generations).

    Scored texts ask for no new tokens, generations for as many as they may write. Of answers that share a forward,
    the first document's stands for all. Context first, a request is a context with one of its continuations.

    Args:
        samples: the documents, by task; lm-eval then numbers them by their place in the list.
        context_first: see ``harness.evaluate.observed.Observed``.
    """
    noted = _Noted(lm, context_first)
    with lm.answering(noted), suppress(Enough):
        simple_evaluate(lm, task, settings, samples)
    return noted.requests


@dataclass
class _Noted:
    """The mode that notes requests and runs none."""

    lm: "HarnessLM"
    context_first: ContextFirst | None
    requests: list[CostRequest] = field(default_factory=list)
    _keys: list[Request] = field(default_factory=list)  # of the requests that are not asked yet

    def begin(self, keys: list[Request]) -> None:
        self._keys = keys

    def end(self) -> None:
        """All requests of the kind are known; metrics of answers that nobody gave are of no use."""
        raise Enough

    def score(self, requests: Sequence[ScoringRequest]) -> list["Score"]:
        keys, self._keys = self._keys[: len(requests)], self._keys[len(requests) :]
        if self.context_first is not None:
            for asked in contexts_of(self.lm, requests, keys, self.context_first.suffix, lambda key: key.document):
                self._note_continuations(asked, keys)
            return [(0.0, False)] * len(requests)
        for batch in scoring_batches(requests, self.lm.batch_size, shared=self.lm.logits_cache):
            for row in batch:
                tokens, prompt = scored_row(requests[row[0]], self.lm.max_length)
                self._note([keys[index] for index in row], tokens, prompt)
        return [(0.0, False)] * len(requests)

    def generate(self, instances: list[Instance]) -> list[str]:
        for instance in instances:  # one by one, each the next of the keys
            HFLM.generate_until(self.lm, [instance], disable_tqdm=True)
        return [""] * len(instances)

    def generate_batch(
        self, prompts: torch.Tensor, max_length: int, stop: list[str], options: dict[str, Any]
    ) -> torch.Tensor:
        tokens = prompts[0].tolist()
        most = max_length - len(tokens)
        self._note([self._keys.pop(0)], tokens, len(tokens), new_tokens=most, most=most, options=arguments(options))
        return prompts

    def _note_continuations(self, asked: Asked, keys: list[Request]) -> None:
        context = asked.context
        for members, each in zip(asked.members, context.continuations, strict=True):
            tokens = [*context.tokens, *each.tokens]
            self._note([keys[index] for index in members], tokens, each.row.prompt_length, read=len(context.tokens))

    def _note(
        self, keys: list[Request], tokens: list[int], prompt_length: int, new_tokens: int = 0, **more: Any
    ) -> None:
        task, document, parts = keys[0].task, keys[0].document, tuple(key.part for key in keys)
        self.requests.append(CostRequest(task, document, tuple(tokens), prompt_length, new_tokens, parts, **more))
