"""The mode of a run: each batch is answered by the journal, or by a forward that is traced and then kept."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.contract.decoder import ForwardContext, Row
from harness.core.errors import HarnessError
from harness.evaluate.batches import ScoringRequest, generation_batches, scored_row, scoring_batches
from harness.evaluate.journal import PADDING, Journal, Request, Served
from harness.evaluate.replay import Example, audit_ratio
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer

if TYPE_CHECKING:
    from harness.core.progress import Bar
    from harness.evaluate.lm import HarnessLM, Score

AUDITED = 2
"""Batches of a run whose first rows the audit runs again."""


@dataclass
class Observed:
    """Answers an evaluation under observation.

    Attributes:
        lm: the model, with the method attached.
        tracer: watches the model.
        journal: holds the answers of finished batches, also those of an earlier run that was interrupted.
        bar: shows how many requests are answered.
    """

    lm: "HarnessLM"
    tracer: Tracer
    journal: Journal
    bar: "Bar"
    _keys: list[Request] = field(default_factory=list)  # of the requests that are not asked yet
    _padding: list[Request] = field(default_factory=list)  # the key of a request that only fills up a process
    _batch: list[Request] = field(default_factory=list)  # of the prompts that are being continued
    _tokens: list[tuple[int, int]] = field(default_factory=list)  # of each of them: read, generated and used
    _examples: list[Example] = field(default_factory=list)

    def begin(self, keys: list[Request]) -> None:
        """Take the requests' keys in the order in which HFLM will ask."""
        self._keys, self._padding = keys, [key._replace(turn=PADDING) for key in keys[:1]]
        self.bar.expect(len(keys))

    def end(self) -> None:
        """Nothing is left to do."""

    def audit(self, shape: ModelShape) -> float | None:
        """Run a few of the finished requests again under PyTorch's operator counter.

        Returns:
            Counted FLOPs over those of the formulas; None if no request ran, because the journal had all answers.
        """
        return audit_ratio(self.lm, self.tracer, self._examples, shape) if self._examples else None

    def score(self, requests: Sequence[ScoringRequest]) -> list["Score"]:
        """Score requests batch by batch."""
        keys, self._keys = self._keys[: len(requests)], self._keys[len(requests) :]
        # processes of a launch are padded to equal numbers of windows
        keys += self._padding * (len(requests) - len(keys))
        answers: list[Any] = [None] * len(requests)
        for batch in scoring_batches(requests, self.lm.batch_size, shared=self.lm.logits_cache):
            members = sorted(index for row in batch for index in row)
            answered = self._kept([keys[index] for index in members])
            if answered is None:
                answered = self._score_batch(requests, keys, batch, members)
            for index, answer in zip(members, answered, strict=True):
                answers[index] = answer
            self.bar.advance(len(members))
        return answers

    def _score_batch(
        self, requests: Sequence[ScoringRequest], keys: list[Request], batch: list[list[int]], members: list[int]
    ) -> list["Score"]:
        """One forward over the batch's rows; the answers of its members, in their order."""
        texts = [scored_row(requests[row[0]], self.lm.max_length) for row in batch]
        rows = tuple(
            _row([keys[index] for index in row], prompt, len(tokens))
            for row, (tokens, prompt) in zip(batch, texts, strict=True)
        )
        self.lm.decoder.context = ForwardContext(rows, "score", "right")
        try:
            inputs = [requests[index] for index in members]
            answers = HFLM._loglikelihood_tokens(self.lm, inputs, disable_tqdm=True, override_bs=len(batch))
        finally:
            self.lm.decoder.context = None
        self._remember(rows[0], "score", torch.tensor([texts[0][0]], device=self.lm.device))
        by_index = dict(zip(members, answers, strict=True))
        self._keep(
            [([keys[index] for index in row], [by_index[index] for index in row]) for row in batch],
            [(row.length, 0) for row in rows],
        )
        return list(answers)

    def generate(self, instances: list[Instance]) -> list[str]:
        """Continue prompts batch by batch."""
        keys, self._keys = self._keys, []
        texts: list[Any] = [None] * len(instances)
        prompts = [instance.args for instance in instances]
        for members in generation_batches(prompts, self.lm.batch_size, self.lm.tok_encode):
            self._batch = [keys[index] for index in members]
            answered = self._kept(self._batch)
            if answered is None:
                # calls generate_batch, which alone sees the prompts as tokens
                answered = HFLM.generate_until(self.lm, [instances[index] for index in members], disable_tqdm=True)
                self._keep([([key], [text]) for key, text in zip(self._batch, answered, strict=True)], self._tokens)
            for index, text in zip(members, answered, strict=True):
                texts[index] = text
            self.bar.advance(len(members))
        return texts

    def generate_batch(
        self, prompts: torch.Tensor, max_length: int, stop: list[str], options: dict[str, Any]
    ) -> torch.Tensor:
        """Continue the prompts of the current batch, [rows, tokens].

        Raises:
            HarnessError: more than one continuation of a prompt is asked for.
        """
        for several in ("num_beams", "num_return_sequences"):
            if options.get(several, 1) != 1:
                raise HarnessError(f"{several}={options[several]}: only one continuation of a prompt is traced")
        lengths = options["attention_mask"].sum(1).tolist()
        rows = tuple(_row([key], length, length) for key, length in zip(self._batch, lengths, strict=True))
        self.lm.decoder.context = ForwardContext(rows, "generate", "left")
        try:
            output: torch.Tensor = HFLM._model_generate(self.lm, prompts, max_length, stop, **options)
        finally:
            self.lm.decoder.context = None
        self._remember(rows[0], "generate", prompts[:1, -lengths[0] :].clone())
        generated = output[:, prompts.shape[1] :].tolist()
        self._tokens = [(length, self._used(tokens, stop)) for length, tokens in zip(lengths, generated, strict=True)]
        return output

    def _used(self, tokens: list[int], stop: list[str]) -> int:
        """How many generated tokens a row needed: up to its own end or stop string, however long the batch ran."""
        lm = self.lm
        own = lm.model.generation_config.eos_token_id
        ends = {lm.eot_token_id, lm.tokenizer.pad_token_id, *(own if isinstance(own, list) else [own])}
        used = next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))
        low, high = 0, used  # the first prefix that holds a stop string, by bisection
        if not any(text in lm.tok_decode(tokens[:high]) for text in stop):
            return used
        while low < high - 1:
            middle = (low + high) // 2
            if any(text in lm.tok_decode(tokens[:middle]) for text in stop):
                high = middle
            else:
                low = middle
        return high

    def _remember(self, row: Row, kind: Any, tokens: torch.Tensor) -> None:
        """Keep the first rows of the first batches for the audit, without padding: tokens [1, tokens]."""
        if len(self._examples) < AUDITED:
            padding: Any = "left" if kind == "generate" else "right"
            self._examples.append(Example(ForwardContext((row,), kind, padding), tokens))

    def _kept(self, keys: list[Request]) -> list[Any] | None:
        """The answers of a batch that an earlier, interrupted run finished; None if any is missing."""
        with suppress(KeyError):
            return [self.journal[key] for key in keys]
        return None

    def _keep(self, rows: list[tuple[list[Request], list[Any]]], tokens: list[tuple[int, int]]) -> None:
        """Write a finished batch: for each row the requests that it answered, its answers and its tokens."""
        self.journal.write(
            [
                Served(tuple(keys), tuple(answers), read, generated, tuple(segments))
                for (keys, answers), (read, generated), segments in zip(
                    rows, tokens, self.tracer.collect(), strict=True
                )
            ]
        )


def _row(keys: list[Request], prompt_length: int, length: int) -> Row:
    first = keys[0]
    return Row(first.task, first.document, tuple(key.part for key in keys), prompt_length, length)
