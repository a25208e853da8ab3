"""What a method answers: dense's answers where it declares so, the same every time, decided by the prompt alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.contract.facts import Phase
from harness.contract.method import Method
from harness.contract.stack import Stack
from harness.model.weights.mixins import OnLinears
from harness.testing.outcome import Failed, Skipped
from harness.testing.serve import (
    LONG,
    LONG_TEXTS,
    OTHER_CONTINUATIONS,
    STEPS,
    TEXTS,
    Text,
    generate,
    identical,
    require_greedy,
    require_same_scores,
    require_same_text,
    score,
    score_context_first,
    write,
)
from harness.testing.snapshot import kept_random_state
from harness.testing.subject import Subject, on

if TYPE_CHECKING:
    import torch

    from harness.contract.decoder import Decoder


def neutral_is_dense(subject: Subject) -> None:
    """With its neutral settings it scores and writes what dense does, to the last bit."""
    if any(type(part).neutral is None for part in subject.parts):
        raise Skipped("it declares no neutral settings")
    neutral = Stack(tuple(_neutral(part) for part in subject.parts))
    for family, decoder in subject.each():
        dense = score(decoder, TEXTS), generate(decoder, TEXTS)
        with subject.attached(decoder, neutral):
            answers = score(decoder, TEXTS), generate(decoder, TEXTS)
        if not all(map(identical, answers, dense)):
            raise Failed(f"{family}: {neutral.label} does not give the dense model's logits bit for bit")


def _neutral(part: Method) -> Method:
    neutral = type(part).from_args(type(part).neutral or {})
    if isinstance(part, OnLinears) and isinstance(neutral, OnLinears):
        # on a model with experts not every linear layer is offered
        neutral = replace(neutral, linears=part.linears)
    return neutral


def exact_is_exact(subject: Subject) -> None:
    """A method that declares itself exact writes the dense model's greedy text, token for token, a thousand of them."""
    if not subject.stack.exact:
        raise Skipped("it declares exact = False")
    for family, decoder in subject.each():
        for text in TEXTS:
            steps = max(subject.steps, 12)
            dense = generate(decoder, [text], steps=steps)
            with subject.attached(decoder):
                written = generate(decoder, [text], steps=steps)
            with on(family):
                require_same_text(written, dense, 0, 0, "it declares exact = True, but its text is not dense's")
        batches: list[Sequence[Text]] = [LONG_TEXTS] if subject.stack.batchable else [[text] for text in LONG_TEXTS]
        with subject.attached(decoder):
            long = [tokens for batch in batches for tokens in write(decoder, batch, LONG)]
        with on(family):
            require_greedy(decoder, LONG_TEXTS, long, "it declares exact = True, but dense writes other tokens")


def drafts_change_nothing(subject: Subject) -> None:
    """A stack writes with its parts that draft, exact and in decoding alone, what it writes without them."""
    others = Stack(tuple(part for part in subject.parts if not part.exact or Phase.PREFILL in part.phases))
    if not 0 < len(others.parts) < len(subject.parts):
        raise Skipped("it is no stack of a method that drafts and another one")
    for family, decoder in subject.each():
        for text in TEXTS[:2]:
            steps = 10 * STEPS  # until random weights repeat themselves, so that guesses are right
            with subject.attached(decoder, others):
                expected = generate(decoder, [text], steps=steps)
            with subject.attached(decoder):
                written = generate(decoder, [text], steps=steps)
            with on(family):
                require_same_text(written, expected, 0, 0, f"with drafts its text is not that of {others.label}")


def deterministic(subject: Subject) -> None:
    """The same input gives the same bits, whatever the global random states are."""
    for family, decoder in subject.each():
        with subject.attached(decoder):
            answers = []
            for seed in (0, 1):
                with kept_random_state(seed):
                    answers.append((score(decoder, TEXTS[:2]), generate(decoder, TEXTS[:1])))
        if not all(map(identical, *answers)):
            raise Failed(
                f"{family}: the same input gives other logits the second time; take random numbers from a "
                "torch.Generator that is seeded for each forward, or in prepare"
            )


def decides_from_the_prompt(subject: Subject) -> None:
    """Scoring is causal: no score depends on a later token, and what runs depends on the prompt alone."""
    for family, decoder in subject.each():
        with on(family), subject.attached(decoder):
            for text in TEXTS[:3]:  # one of each length
                _require_blind_to_the_future(decoder, text, in_one=not subject.stack.only_decodes)


def _require_blind_to_the_future(decoder: "Decoder", text: Text, *, in_one: bool) -> None:
    def scored(text: Text) -> "torch.Tensor":
        return (score(decoder, [text]) if in_one else score_context_first(decoder, text)).row(0)

    expected = scored(text)
    end = len(expected) - len(text.continuation)
    for continuation in OTHER_CONTINUATIONS:
        logits = scored(Text(text.prompt, continuation))
        what = "a prompt's scores depend on its continuation; decide from row.prompt_length tokens alone"
        require_same_scores(logits[:end], expected[:end], what)
    middle = Text(text.prompt, (*text.continuation[:2], *OTHER_CONTINUATIONS[0][2:]))
    logits = scored(middle)
    what = "tokens late in a continuation change the scores of earlier ones"
    require_same_scores(logits[: end + 2], expected[: end + 2], what)
