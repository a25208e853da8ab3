"""Which batches lm-eval's HFLM will form of its requests, computed without running any.

Every batch that HFLM would form is formed here first, in the same order and of the same requests, and then handed to
HFLM alone. So its scores stay equal to the last digit, while each forward is known to serve given documents.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import Collator

from harness.evaluate.journal import PADDING, Request

Tokens = list[int]
ScoringRequest = tuple[tuple[str, str] | None, Tokens, Tokens]
"""What HFLM scores: the texts, the context's tokens and the continuation's tokens."""


def request_keys(instances: Iterable[Instance]) -> list[Request]:
    """A key for each instance; lm-eval repeats an instance that is to be answered several times."""
    turns: Counter[tuple[str, int, int, str]] = Counter()
    keys = []
    for instance in instances:
        place = (instance.task_name, instance.doc_id, instance.idx, instance.request_type)
        turn = turns[place] if turns[place] < instance.repeats else PADDING
        keys.append(Request(*place[:3], turn, instance.request_type))
        turns[place] += 1
    return keys


def scoring_batches(requests: Sequence[ScoringRequest], size: int, *, shared: bool) -> Iterator[list[list[int]]]:
    """The batches in which HFLM scores these requests, by their indices.

    Args:
        size: rows in a batch.
        shared: requests that differ in their last token only share a row (HFLM's ``logits_cache``).

    Yields:
        A batch as rows, each row the requests that it answers; the first is the one whose tokens HFLM takes.
    """
    indexed = [(index, context, continuation) for index, (_, context, continuation) in enumerate(requests)]

    def row(context: Tokens, continuation: Tokens) -> Tokens:
        return context + continuation[:-1]

    sharing: dict[tuple[int, ...], list[int]] = {}
    if shared:
        for index, context, continuation in indexed:
            sharing.setdefault(tuple(row(context, continuation)), []).append(index)
    order = Collator(
        indexed,
        sort_fn=lambda request: (-len(request[1] + request[2]), tuple(request[1] + request[2])),
        group_by="contexts" if shared else None,
        group_fn=lambda request: row(*request[1:]),
    )
    for chunk in order.get_batched(n=size):
        batch = []
        for index, context, continuation in chunk:
            same = sharing.get(tuple(row(context, continuation)), ())
            batch.append([index, *(member for member in same if member != index)])
        yield batch


def generation_batches(
    prompts: Sequence[tuple[str, dict[str, Any]]], size: int, encode: Callable[[str], Tokens]
) -> Iterator[list[int]]:
    """The batches in which HFLM continues prompts, by their indices.

    Args:
        prompts: each with its generation arguments; a batch has prompts of equal arguments.
        size: rows in a batch.
        encode: the tokenizer, by whose lengths HFLM sorts.
    """
    order = Collator(
        [(*prompt, index) for index, prompt in enumerate(prompts)],
        sort_fn=lambda prompt: (-len(encode(prompt[0])), prompt[0]),
        group_by="gen_kwargs",
        group_fn=lambda prompt: prompt[1],
    )
    for chunk in order.get_batched(n=size):
        yield [index for _, _, index in chunk]


def scored_row(request: ScoringRequest, max_length: int) -> tuple[Tokens, int]:
    """The tokens that HFLM gives the model to score a request, and how many of them are prompt.

    The continuation's last token is not read, and what is too long is cut from the left.
    """
    _, context, continuation = request
    tokens = (context + continuation)[-(max_length + 1) :][:-1]
    return tokens, max(len(tokens) + 1 - len(continuation), 0)
