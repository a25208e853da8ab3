"""Scoring context first: which contexts an evaluation's requests have, in which batches they are read, their answers.

The answers are lm-eval's (log-likelihood, whether greedy decoding would write it); the forwards are not, so that a
method which acts between reading and writing shows in them (``harness.model.reading``).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.contract.decoder import Row
from harness.core.errors import SpecError
from harness.evaluate.batches import ScoringRequest, scored_row
from harness.evaluate.journal import PADDING, Request
from harness.evaluate.score_mode import Suffix
from harness.measure.segment import Segment
from harness.measure.trace import Tracer
from harness.model.reading import Context, Continuation, read

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM, Score


@dataclass(frozen=True)
class Asked:
    """A context of a document with the requests that it answers.

    Attributes:
        members: the requests of each continuation, by their indices; they predict as many tokens each.
    """

    context: Context
    members: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ReadRow:
    """What was read for some requests: a continuation, after its context where that is charged to it.

    Attributes:
        members: the requests, by their indices.
        tokens: how many tokens were read.
    """

    members: tuple[int, ...]
    tokens: int
    segments: tuple[Segment, ...]


def held_back(lm: "HarnessLM", request: ScoringRequest, suffix: Suffix | None, what: str) -> int:
    """How many of a request's context tokens are read with the continuation.

    Args:
        what: names the request's document.

    Raises:
        SpecError: the context, as the model reads it, does not have such an end.
    """
    tokens, prompt_length = scored_row(request, lm.max_length)
    texts = request[0]
    if suffix is None or (texts is not None and not texts[0]):  # no context but the token that stands for none
        return 1
    context = tokens[:prompt_length]
    if isinstance(suffix, int):
        if suffix > prompt_length:
            raise SpecError(
                f"{what}: --score_suffix {suffix} is longer than the context, which has {prompt_length} "
                f"token{'' if prompt_length == 1 else 's'}"
            )
        return suffix
    low, high = 0, prompt_length  # the shortest end that has the text, by bisection
    text = lm.tok_decode(context, skip_special_tokens=False)
    if suffix not in text:
        cut = " as it was cut to the model's length" if len(request[1]) > prompt_length else ""
        bare = suffix.rstrip()
        end = "; it is there without the space at its end" if bare != suffix and bare and bare in text else ""
        raise SpecError(f"{what}: --score_suffix {suffix!r} is nowhere in the context{cut}{end}")
    while low < high - 1:
        middle = (low + high) // 2
        is_there = suffix in lm.tok_decode(context[-middle:], skip_special_tokens=False)
        low, high = (low, middle) if is_there else (middle, high)
    return high


def contexts_of(
    lm: "HarnessLM",
    requests: Sequence[ScoringRequest],
    keys: Sequence[Request],
    suffix: Suffix | None,
    document: Callable[[Request], int],
) -> list[Asked]:
    """The contexts of the requests' documents, each once, in the order of the requests.

    Args:
        keys: of the requests.
        document: the number of a key's document in its task.

    Raises:
        SpecError: a context does not have the end that is to be held back.
    """
    continuations: dict[_Prefix, dict[tuple[int, ...], list[int]]] = defaultdict(dict)
    for index, (request, key) in enumerate(zip(requests, keys, strict=True)):
        tokens, prompt_length = scored_row(request, lm.max_length)
        what = f"{key.task}: document {document(key)}"
        held = 0 if lm.decoder.manner.whole else held_back(lm, request, suffix, what)
        split = prompt_length - held
        # processes of a launch are padded with requests that are another's
        prefix = _Prefix(key.task, document(key), key.turn == PADDING, tuple(tokens[:split]), held)
        continuations[prefix].setdefault(tuple(tokens[split:]), []).append(index)
    return [_asked(prefix, members, requests, keys) for prefix, members in continuations.items()]


class _Prefix(NamedTuple):
    """What the continuations of one context have in common."""

    task: str
    document: int
    is_padding: bool
    tokens: tuple[int, ...]
    held: int


def _asked(
    prefix: _Prefix,
    continuations: dict[tuple[int, ...], list[int]],
    requests: Sequence[ScoringRequest],
    keys: Sequence[Request],
) -> Asked:
    read_first = len(prefix.tokens)

    def row(members: list[int], length: int) -> Row:
        parts = tuple(dict.fromkeys(keys[index].part for index in members))
        return Row(prefix.task, prefix.document, parts, read_first + prefix.held, length)

    ordered = sorted(continuations.items(), key=lambda pair: -len(pair[0]))
    context = Context(
        row([index for _, members in ordered for index in members], read_first),
        prefix.tokens,
        tuple(
            Continuation(row(members, read_first + len(tokens)), tokens, len(requests[members[0]][2]))
            for tokens, members in ordered
        ),
    )
    return Asked(context, tuple(tuple(members) for _, members in ordered))


def context_batches(contexts: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    """Contexts that are read together, the longest first: as many as a batch has rows, and of one length."""

    def length(asked: Asked) -> int:
        return -len(asked.context.tokens)

    ordered = sorted(contexts, key=lambda asked: (length(asked), asked.context.tokens))
    for _, alike in groupby(ordered, key=length):
        members = list(alike)
        yield from (members[start : start + size] for start in range(0, len(members), size))


def score(
    lm: "HarnessLM", tracer: Tracer, batch: Sequence[Asked], requests: Sequence[ScoringRequest]
) -> tuple[dict[int, "Score"], list[ReadRow]]:
    """Read a batch of contexts and their continuations: the requests' answers by index, and what was read for them.

    A context's forwards are charged to its longest continuation, and to no other.
    """
    answers: dict[int, Score] = {}
    traces: dict[tuple[int, int | None], list[Segment]] = {}
    for part in read(lm.decoder, [asked.context for asked in batch]):
        traces.update(zip(part.members, tracer.collect(), strict=True))
        for (number, index), logits in part.logits.items():
            likely = torch.log_softmax(logits, dim=-1, dtype=lm.softmax_dtype)  # [predicted, vocabulary]
            for member in batch[number].members[index]:
                answers[member] = _answer(likely, requests[member][2])
    rows = []
    for number, asked in enumerate(batch):
        for index, (members, each) in enumerate(zip(asked.members, asked.context.continuations, strict=True)):
            charged = [(number, None)] * (index == 0) + [(number, index)]
            segments = [segment for place in charged for segment in traces.get(place, ())]
            read_before = len(asked.context.tokens) if index == 0 else 0
            rows.append(ReadRow(members, read_before + len(each.tokens), tuple(segments)))
    return answers, rows


def _answer(likely: torch.Tensor, targets: Sequence[int]) -> "Score":
    """lm-eval's answer, by the log-probabilities of all tokens, [targets, vocabulary]."""
    wanted = torch.tensor(targets, device=likely.device)
    return float(likely.gather(1, wanted[:, None]).sum()), bool((likely.argmax(-1) == wanted).all())
