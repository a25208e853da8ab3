"""The mode of a run: each batch is answered by the journal, or by a forward that is traced and then kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.contract.decoder import Row
from harness.core.errors import Enough
from harness.evaluate.batches import ScoringRequest, generation_batches, scored_row, scoring_batches
from harness.evaluate.context_first import Asked, context_batches, contexts_of, score
from harness.evaluate.generation import arguments, require_traceable, writing
from harness.evaluate.journal import PADDING, Journal, Request, Served
from harness.evaluate.replay import NEW_TOKENS, REPLAYED, Replay, replay
from harness.evaluate.score_mode import ContextFirst
from harness.evaluate.shard import Shard
from harness.measure.serve import CostRequest
from harness.measure.trace import Tracer
from harness.model.reading import reads_together

if TYPE_CHECKING:
    from harness.core.progress import Bar
    from harness.evaluate.lm import HarnessLM, Score


@dataclass
class Observed:
    """Answers an evaluation under observation.

    Attributes:
        lm: the model, with the method attached.
        tracer: watches the model.
        journal: holds the answers of finished batches, also those of an earlier run that was interrupted.
        bar: shows how many requests are answered.
        chosen: the documents that ``--samples`` chose, by task; lm-eval numbers these by their place in the list.
        context_first: how contexts are read before their continuations; None scores texts in lm-eval's own forwards.
        shard: the batches that are answered, where that is not all of them.
        kinds: how many kinds of requests the evaluation asks; a shard ends with the last.
    """

    lm: "HarnessLM"
    tracer: Tracer
    journal: Journal
    bar: "Bar"
    chosen: Mapping[str, Sequence[int]] = field(default_factory=dict)
    context_first: ContextFirst | None = None
    shard: Shard | None = None
    kinds: Callable[[], int] = lambda: 0
    _asked: int = 0  # kinds of requests so far
    _formed: int = 0  # batches so far
    _keys: list[Request] = field(default_factory=list)  # of the requests that are not asked yet
    _padding: list[Request] = field(default_factory=list)  # the key of a request that only fills up a process
    _batch: list[Request] = field(default_factory=list)  # of the prompts that are being continued
    _tokens: list[tuple[int, int]] = field(default_factory=list)  # of each of them: read, generated and used
    _broken: list[bool] = field(default_factory=list)  # of each of them: whether logits were no numbers
    _written: int | None = None  # tokens that a finished batch wrote for its first prompt, where that is being noted
    _examples: list[CostRequest] = field(default_factory=list)  # the first rows of the first batches

    def begin(self, keys: list[Request]) -> None:
        """Take the requests' keys in the order in which HFLM will ask."""
        self._keys, self._padding = keys, [key._replace(turn=PADDING) for key in keys[:1]]
        self.bar.expect(len(keys))

    def end(self) -> None:
        """All requests of a kind are answered: of a shard, metrics of answers that nobody gave are of no use.

        Raises:
            Enough: a shard is done.
        """
        self._asked += 1
        if self.shard is not None and self._asked == self.kinds():
            raise Enough

    def audit(self) -> Replay:
        """Run a few of the finished requests again under PyTorch's operator counter."""
        return replay(self.lm.decoder, self.tracer, self._examples)

    def score(self, requests: Sequence[ScoringRequest]) -> list["Score"]:
        """Score requests batch by batch."""
        keys, self._keys = self._keys[: len(requests)], self._keys[len(requests) :]
        # processes of a launch are padded to equal numbers of windows
        keys += self._padding * (len(requests) - len(keys))
        answers: list[Any] = [(0.0, False)] * len(requests)
        for members, example, run in self._batches(requests, keys):
            if not self._next_is_mine():
                continue
            if len(self._examples) < REPLAYED:
                self._examples.append(example())
            answered = self.journal.answers([keys[index] for index in members])
            if answered is None:
                answered = run()
            for index, answer in zip(members, answered, strict=True):
                answers[index] = answer
            self.bar.advance(len(members))
        return answers

    def _batches(
        self, requests: Sequence[ScoringRequest], keys: list[Request]
    ) -> Iterator[tuple[list[int], Callable[[], CostRequest], Callable[[], list["Score"]]]]:
        """The requests that are served together, by their indices, the first row, and what gives their answers."""
        lm = self.lm
        if self.context_first is None:
            for batch in scoring_batches(requests, lm.batch_size, shared=lm.logits_cache):
                members = sorted(index for row in batch for index in row)
                first = partial(self._first_row, requests, keys, batch[0])
                yield members, first, partial(self._score_batch, requests, keys, batch, members)
            return
        contexts = contexts_of(lm, requests, keys, self.context_first.suffix, self._document)
        for together in context_batches(contexts, lm.batch_size if reads_together(lm.decoder) else 1):
            members = sorted(index for asked in together for row in asked.members for index in row)
            first = partial(_first_text, together[0])
            yield members, first, partial(self._score_contexts, requests, keys, together, members)

    def _score_contexts(
        self, requests: Sequence[ScoringRequest], keys: list[Request], batch: list[Asked], members: list[int]
    ) -> list["Score"]:
        """Forwards over contexts and over what continues them; the answers of the members, in their order."""
        answers, rows = score(self.lm, self.tracer, batch, requests)
        self.journal.write(
            [
                Served(
                    tuple(keys[index] for index in row.members),
                    tuple(answers[index] for index in row.members),
                    row.tokens,
                    0,
                    row.segments,
                    any(isnan(answers[index][0]) for index in row.members),
                )
                for row in rows
            ]
        )
        return [answers[index] for index in members]

    def _first_row(self, requests: Sequence[ScoringRequest], keys: list[Request], row: list[int]) -> CostRequest:
        """A row of a batch, by the requests that it answers, as it is served alone."""
        tokens, prompt = scored_row(requests[row[0]], self.lm.max_length)
        return _example(self._row([keys[index] for index in row], prompt, len(tokens)), tokens, 0)

    def _score_batch(
        self, requests: Sequence[ScoringRequest], keys: list[Request], batch: list[list[int]], members: list[int]
    ) -> list["Score"]:
        """One forward over the batch's rows; the answers of its members, in their order."""
        texts = [scored_row(requests[row[0]], self.lm.max_length) for row in batch]
        rows = [
            self._row([keys[index] for index in row], prompt, len(tokens))
            for row, (tokens, prompt) in zip(batch, texts, strict=True)
        ]
        with self.lm.decoder.serving(rows, "score"):
            inputs = [requests[index] for index in members]
            answers = HFLM._loglikelihood_tokens(self.lm, inputs, disable_tqdm=True, override_bs=len(batch))
        by_index = dict(zip(members, answers, strict=True))
        self._keep(
            [([keys[index] for index in row], [by_index[index] for index in row]) for row in batch],
            [(row.length, 0) for row in rows],
            [any(isnan(by_index[index][0]) for index in row) for row in batch],
        )
        return list(answers)

    def generate(self, instances: list[Instance]) -> list[str]:
        """Continue prompts batch by batch."""
        keys, self._keys = self._keys, []
        texts: list[Any] = [""] * len(instances)
        prompts = [instance.args for instance in instances]
        for members in generation_batches(prompts, self.lm.batch_size, self.lm.tok_encode):
            if not self._next_is_mine():
                continue
            self._batch = [keys[index] for index in members]
            answered = self.journal.answers(self._batch)
            if answered is not None and len(self._examples) < REPLAYED:
                self._note_prompt(instances[members[0]])
            if answered is None:
                # calls generate_batch, which alone sees the prompts as tokens
                answered = HFLM.generate_until(self.lm, [instances[index] for index in members], disable_tqdm=True)
                rows = [([key], [text]) for key, text in zip(self._batch, answered, strict=True)]
                self._keep(rows, self._tokens, self._broken)
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
            ModelError: tokens are to be drawn by logits that are no numbers.
        """
        require_traceable(self.lm.model.generation_config, options)
        if self._written is not None:
            self._remember_prompt(prompts[0].tolist(), self._written, max_length - prompts.shape[1], options)
            return prompts
        lengths = options["attention_mask"].sum(1).tolist()
        rows = [self._row([key], length, length) for key, length in zip(self._batch, lengths, strict=True)]
        with writing(self.lm.decoder, rows, prompts.shape[1]) as watch:
            output: torch.Tensor = HFLM._model_generate(
                self.lm, prompts, max_length, stop, **options, logits_processor=watch.processors
            )
        generated = output[:, prompts.shape[1] :].tolist()
        ends = self._ends(options)
        used = [self._used(tokens, stop, ends) for tokens in generated]
        self._tokens, self._broken = list(zip(lengths, used, strict=True)), watch.rows(used)
        self._remember_prompt(prompts[0, -lengths[0] :].tolist(), used[0], max_length - prompts.shape[1], options)
        return output

    def _note_prompt(self, instance: Instance) -> None:
        """Let HFLM write the first prompt of a finished batch as tokens, which generates nothing."""
        batch, self._batch = self._batch, self._batch[:1]
        self._written = self.journal.row(batch[0]).output_tokens
        HFLM.generate_until(self.lm, [instance], disable_tqdm=True)
        self._batch, self._written = batch, None

    def _ends(self, options: dict[str, Any]) -> set[int | None]:
        """Tokens that end a text: those that ``generate`` takes, and lm-eval's."""
        lm = self.lm
        own = options.get("eos_token_id", lm.model.generation_config.eos_token_id)
        return {lm.eot_token_id, lm.tokenizer.pad_token_id, *(own if isinstance(own, list) else [own])}

    def _used(self, tokens: list[int], stop: list[str], ends: set[int | None]) -> int:
        """How many generated tokens a row needed: up to its own end or stop string, however long the batch ran."""
        lm = self.lm
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

    def _remember_prompt(self, tokens: list[int], written: int, most: int, options: Mapping[str, Any]) -> None:
        """Keep the first prompt of a batch for the audit, if the batch is one of the first."""
        if len(self._examples) < REPLAYED:
            row = self._row(self._batch[:1], len(tokens), len(tokens))
            new_tokens = min(max(written, 1), NEW_TOKENS)
            self._examples.append(_example(row, tokens, new_tokens, most=most, options=arguments(options)))

    def _next_is_mine(self) -> bool:
        """Whether the next batch is one of those that are answered."""
        self._formed += 1
        return self.shard is None or self.shard.has(self._formed - 1)

    def _keep(
        self, rows: list[tuple[list[Request], list[Any]]], tokens: list[tuple[int, int]], broken: list[bool]
    ) -> None:
        """Write a finished batch: for each row the requests that it answered, its answers, tokens, broken logits."""
        self.journal.write(
            [
                Served(tuple(keys), tuple(answers), read, generated, tuple(segments), is_broken)
                for (keys, answers), (read, generated), segments, is_broken in zip(
                    rows, tokens, self.tracer.collect(), broken, strict=True
                )
            ]
        )

    def _row(self, keys: list[Request], prompt_length: int, length: int) -> Row:
        return Row(keys[0].task, self._document(keys[0]), tuple(key.part for key in keys), prompt_length, length)

    def _document(self, key: Request) -> int:
        """The number of a request's document in its task."""
        chosen = self.chosen.get(key.task)
        return chosen[key.document] if chosen else key.document


def _example(row: Row, tokens: Sequence[int], new_tokens: int, **more: Any) -> CostRequest:
    """A row of a batch as a request of its own."""
    return CostRequest(row.task, row.document, tuple(tokens), row.prompt_length, new_tokens, row.requests, **more)


def _first_text(asked: Asked) -> CostRequest:
    """A context with its longest continuation."""
    longest = asked.context.continuations[0]
    tokens = asked.context.tokens
    return _example(longest.row, [*tokens, *longest.tokens], 0, read=len(tokens))
