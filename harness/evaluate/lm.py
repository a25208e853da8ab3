"""lm-eval's Hugging Face model with three additions: rows are known, work is traced, finished batches are kept.

This is the one place that knows how lm-eval batches. Every batch that lm-eval would form is formed here first, in
the same order and of the same requests, and handed to lm-eval alone, so that its scores stay what they were to
the last digit while each forward is known to serve given documents.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator

from harness.contract.decoder import Decoder, ForwardContext, Row
from harness.core.errors import HarnessError, ModelError, UnknownNameError
from harness.evaluate.journal import PADDING, Journal, Request, Served
from harness.measure.audit import flops_audit_ratio
from harness.measure.segment import Segment
from harness.measure.serve import CostRequest
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.layouts import dissect

if TYPE_CHECKING:
    from harness.core.progress import Bar

AUDITED = 2
Tokens = list[int]
Scored = tuple[tuple[str, str] | None, Tokens, Tokens]


@dataclass
class Watch:
    """What observes a run: the tracer of the attached model, the journal of its answers, and a progress bar."""

    tracer: Tracer
    journal: Journal
    bar: "Bar"


class _EnoughError(Exception):
    """All requests are known; ends an evaluation that was only to ask them."""


class HarnessLM(HFLM):  # type: ignore[misc] # lm-eval has no type stubs
    """HFLM whose forwards are observed. Set ``watch`` before an evaluation.

    Attributes:
        decoder: the model as methods see it.
    """

    decoder: Decoder

    def __init__(self, *args: Any, fingerprint: str, **kwargs: Any) -> None:
        self._fingerprint = fingerprint
        self._owners: list[Request] = []
        self._generated: list[tuple[int, int]] = []
        self._examples: list[tuple[ForwardContext, torch.Tensor]] = []
        self._collected: list[CostRequest] | None = None
        self.watch: Watch | None = None
        super().__init__(*args, **kwargs)
        if not isinstance(self.max_length, int) or self.max_length < 1:
            raise ModelError(f"model argument max_length={self.max_length!r} is not valid: expected a positive number")
        if accelerator := getattr(self, "accelerator", None):  # lm-eval sets these for several GPUs only
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _create_model(self, *args: Any, **kwargs: Any) -> None:
        super()._create_model(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        self._model, loading = self._model  # type: ignore[has-type] # untyped lm-eval
        # transformers makes such weights up, and says so in a log alone
        absent = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
        if absent:
            raise ModelError(
                f"the checkpoint of {self._model.config.name_or_path!r} has no weights that fit {absent[0]}"
                + (f" and {len(absent) - 1} more" if absent[1:] else "")
            )
        self.decoder = Decoder(self._model, self.tokenizer, dissect(self._model), self._fingerprint)

    def _create_tokenizer(self, pretrained: Any, *args: Any, **kwargs: Any) -> None:
        try:
            super()._create_tokenizer(pretrained, *args, **kwargs)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"the tokenizer of {pretrained!r} is missing or cannot be loaded: {reason}") from error

    def use_chat_template(self, wanted: bool | str) -> None:
        """Render prompts with the model's chat template, or with the one of that name.

        Raises:
            ModelError: the tokenizer has no chat template.
            UnknownNameError: it has none of that name.
        """
        templates = self.tokenizer.chat_template
        if not templates:
            raise ModelError("--apply_chat_template: the model's tokenizer has no chat template")
        if isinstance(wanted, str):
            names = templates if isinstance(templates, dict) else ()
            if wanted not in names:
                see = f"The tokenizer has {', '.join(names) or 'one without a name: give the flag without a value'}."
                raise UnknownNameError("chat template", wanted, names, see=see)
            self.chat_template_args["chat_template"] = wanted  # lm-eval itself records the name and takes the default

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._remember_example(inps)
        logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        return logits

    # ---- scoring ------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations; see HFLM."""
        self._own(_requests(requests))
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self._stop_collecting()
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts window by window; see HFLM."""
        self._own(
            request._replace(turn=window)
            for request, instance in zip(_requests(requests), requests, strict=True)
            for window in range(self._windows(instance.args[0]))
        )
        answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        self._stop_collecting()
        return answers

    def _own(self, requests: Iterable[Request]) -> None:
        """Say whose the requests are that HFLM will ask for next, in its order."""
        self._owners = list(requests)
        self._filler = self._owners[0]._replace(turn=PADDING)
        if self.watch is not None:
            self.watch.bar.expect(len(self._owners))

    def _windows(self, text: str) -> int:
        windows = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return sum(1 for _ in windows)

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self._collected is not None:
            return self._collect_scored(requests)
        if self.watch is None:
            return list(super()._loglikelihood_tokens(requests, True, override_bs))
        owners, self._owners = self._owners[: len(requests)], self._owners[len(requests) :]
        # processes of a launch are padded to equal numbers of windows
        owners += [self._filler] * (len(requests) - len(owners))
        results: list[Any] = [None] * len(requests)
        for batch in self._scoring_batches(requests):
            members = sorted(index for row in batch for index in row)
            answered = self._kept([owners[index] for index in members])
            if answered is None:
                answered = self._score(requests, owners, batch, members)
            for index, answer in zip(members, answered, strict=True):
                results[index] = answer
            self.watch.bar.advance(len(members))
        return results

    def _score(
        self, requests: Sequence[Scored], owners: list[Request], batch: list[list[int]], members: list[int]
    ) -> list[Any]:
        """One forward: the batch's rows, each of which answers all requests that differ in the last token only."""
        rows = []
        for row in batch:
            _, context, continuation = requests[row[0]]
            length = min(len(context) + len(continuation) - 1, self.max_length)
            rows.append(_row([owners[index] for index in row], max(length + 1 - len(continuation), 0), length))
        self.decoder.context = ForwardContext(tuple(rows), "score", "right")
        try:
            inputs = [requests[index] for index in members]
            answers = list(super()._loglikelihood_tokens(inputs, disable_tqdm=True, override_bs=len(batch)))
        finally:
            self.decoder.context = None
        by_index = dict(zip(members, answers, strict=True))
        self._keep(
            [([owners[index] for index in row], [by_index[index] for index in row]) for row in batch],
            [(row.length, 0) for row in rows],
        )
        return answers

    def _scoring_batches(self, requests: Sequence[Scored]) -> Iterable[list[list[int]]]:
        """The batches that HFLM will form; each row is the requests that share its tokens, the longest
        continuation first."""
        indexed = [(index, context, continuation) for index, (_, context, continuation) in enumerate(requests)]
        shared: dict[tuple[int, ...], list[int]] = {}
        for index, context, continuation in indexed:
            key = (*context, *continuation[:-1]) if self.logits_cache else (index,)
            shared.setdefault(key, []).append(index)
        order = Collator(
            indexed,
            sort_fn=lambda item: (-len(item[1] + item[2]), tuple(item[1] + item[2])),
            group_by="contexts" if self.logits_cache else None,
            group_fn=lambda item: item[1] + item[2][:-1],
        )
        for chunk in order.get_batched(n=self.batch_size):
            batch = []
            for index, context, continuation in chunk:
                key = (*context, *continuation[:-1]) if self.logits_cache else (index,)
                batch.append([index, *(member for member in shared[key] if member != index)])
            yield batch

    # ---- generating ---------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate until a stop string; see HFLM."""
        if self._collected is not None:
            for request, owner in zip(requests, _requests(requests), strict=True):
                self._owners = [owner]
                super().generate_until([request], disable_tqdm=True)
            self._stop_collecting()
        if self.watch is None:
            texts: list[str] = super().generate_until(requests, disable_tqdm=True)
            return texts
        self._own(_requests(requests))
        owners = self._owners
        results: list[Any] = [None] * len(requests)
        order = Collator(
            [(*request.args, index) for index, request in enumerate(requests)],
            sort_fn=lambda item: (-len(self.tok_encode(item[0])), item[0]),
            group_by="gen_kwargs",
            group_fn=lambda item: item[1],
        )
        for chunk in order.get_batched(n=self.batch_size):
            members = [index for _, _, index in chunk]
            answered = self._kept([owners[index] for index in members])
            if answered is None:
                self._owners = [owners[index] for index in members]
                answered = super().generate_until([requests[index] for index in members], disable_tqdm=True)
                # the rows are published by _model_generate, which alone sees them as tokens
                self._keep([([owners[i]], [a]) for i, a in zip(members, answered, strict=True)], self._generated)
            for index, answer in zip(members, answered, strict=True):
                results[index] = answer
            self.watch.bar.advance(len(members))
        return results

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        if self._collected is not None:
            owner, tokens = self._owners[0], context[0].tolist()
            room = max_length - len(tokens)
            self._collected.append(CostRequest(owner.task, owner.document, tuple(tokens), len(tokens), room))
            return context
        if self.watch is None:
            unwatched: torch.Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
            return unwatched
        for several in ("num_beams", "num_return_sequences"):
            if generation_kwargs.get(several, 1) != 1:
                raise HarnessError(
                    f"{several}={generation_kwargs[several]}: only one continuation of a prompt is traced"
                )
        lengths = generation_kwargs["attention_mask"].sum(1).tolist()
        rows = [_row([owner], length, length) for owner, length in zip(self._owners, lengths, strict=True)]
        self.decoder.context = ForwardContext(tuple(rows), "generate", "left")
        self._remember_example(context)
        try:
            output: torch.Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
        finally:
            self.decoder.context = None
        written = output[:, context.shape[1] :].tolist()
        self._generated = [(length, self._used(tokens, stop)) for length, tokens in zip(lengths, written, strict=True)]
        return output

    def _used(self, tokens: Tokens, stop: list[str]) -> int:
        """How many generated tokens a row needed: up to its own end or stop string, whatever the batch went on to."""
        own = self._model.generation_config.eos_token_id
        ends = {self.eot_token_id, self.tokenizer.pad_token_id, *(own if isinstance(own, list) else [own])}
        used = next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))
        low, high = 0, used  # the first prefix that holds a stop string, by bisection
        if not any(text in self.tok_decode(tokens[:high]) for text in stop):
            return used
        while low < high - 1:
            middle = (low + high) // 2
            if any(text in self.tok_decode(tokens[:middle]) for text in stop):
                high = middle
            else:
                low = middle
        return high

    # ---- collecting ---------------------------------------------------------------------------------------

    def collect(self, evaluate: Callable[[], object]) -> list[CostRequest]:
        """What an evaluation would ask of the model, without asking it; of its first kind of request.

        Scored texts ask for no new tokens, generations for as many as they may write.
        """
        self._collected = []
        try:
            evaluate()
        except _EnoughError:
            pass
        finally:
            collected, self._collected = self._collected, None
        return collected

    def _collect_scored(self, requests: Sequence[Scored]) -> list[tuple[float, bool]]:
        """Note each distinct text that would be scored, for the first document that asks for it."""
        assert self._collected is not None
        for batch in self._scoring_batches(requests):
            for row in batch:
                (_, context, continuation), owner = requests[row[0]], self._owners[row[0]]
                tokens = (*context, *continuation)[-(self.max_length + 1) :][:-1]
                prompt = max(len(tokens) + 1 - len(continuation), 0)
                self._collected.append(CostRequest(owner.task, owner.document, tokens, prompt, 0))
        return [(0.0, False)] * len(requests)

    def _stop_collecting(self) -> None:
        if self._collected is not None:
            raise _EnoughError

    # ---- auditing -----------------------------------------------------------------------------------------

    def _remember_example(self, tokens: torch.Tensor) -> None:
        context = self.decoder.context
        if context is not None and len(self._examples) < AUDITED:
            row = context.rows[0]
            own = tokens[:1, -row.length :] if context.padding == "left" else tokens[:1, : row.length]
            self._examples.append((ForwardContext((row,), context.kind, context.padding), own.clone()))

    def audit(self, shape: ModelShape) -> float | None:
        """Run a few of the evaluation's own requests again under PyTorch's operator counter.

        Returns:
            Counted FLOPs over those of our formulas; None if no request ran (all answers were kept from before).
        """
        examples, self._examples = self._examples, []
        return flops_audit_ratio(shape, lambda: self._replay(examples)) if examples else None

    def _replay(self, examples: list[tuple[ForwardContext, torch.Tensor]]) -> list[Segment]:
        assert self.watch is not None
        segments: list[Segment] = []
        for context, tokens in examples:
            self.decoder.context = context
            try:
                if context.kind == "score":
                    super()._model_call(tokens)
                else:
                    length = min(tokens.shape[1] + 4, self.max_length)  # a prefill and three decode steps
                    mask = torch.ones_like(tokens)
                    super()._model_generate(tokens, max_length=length, stop=[], attention_mask=mask)
            finally:
                self.decoder.context = None
            segments += [segment for row in self.watch.tracer.collect() for segment in row]
        return segments

    # ---- keeping ------------------------------------------------------------------------------------------

    def _kept(self, requests: list[Request]) -> list[Any] | None:
        """The answers of a batch that an earlier, interrupted run finished; None if any is missing."""
        assert self.watch is not None
        journal = self.watch.journal
        with suppress(KeyError):
            return [journal[request] for request in requests]
        return None

    def _keep(self, rows: list[tuple[list[Request], list[Any]]], tokens: list[tuple[int, int]]) -> None:
        assert self.watch is not None
        traced = self.watch.tracer.collect()
        self.watch.journal.write(
            [
                Served(tuple(requests), tuple(answers), read, wrote, tuple(segments))
                for (requests, answers), (read, wrote), segments in zip(rows, tokens, traced, strict=True)
            ]
        )


def _requests(instances: Iterable[Instance]) -> list[Request]:
    """A key for each instance; lm-eval repeats an instance that is to be answered several times."""
    turns: Counter[tuple[str, int, int]] = Counter()
    keys = []
    for instance in instances:
        place = (instance.task_name, instance.doc_id, instance.idx)
        keys.append(Request(*place, turn=turns[place] if turns[place] < instance.repeats else PADDING))
        turns[place] += 1
    return keys


def _row(requests: list[Request], prompt_length: int, length: int) -> Row:
    first = requests[0]
    return Row(first.task, first.document, tuple(request.part for request in requests), prompt_length, length)
