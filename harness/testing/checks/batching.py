"""Decoding, batching and padding: three ways to the same answer."""

from typing import TYPE_CHECKING

from harness.contract.facts import Phase
from harness.testing.outcome import Failed, Skipped
from harness.testing.serve import (
    TEXTS,
    TOLERANCE,
    Text,
    difference,
    generate,
    require_same_scores,
    require_same_text,
    score,
)
from harness.testing.subject import Subject, on

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.testing.serve import Answers


def cached_decoding(subject: Subject) -> None:
    """Each token generated with the cache has the logits that one forward over the whole text gives it."""
    partial = next((part for part in subject.parts if part.phases != frozenset(Phase)), None)
    if partial is not None:
        raise Skipped(f"{partial.name} declares {', '.join(partial.phases)} alone, so decode steps are meant to differ")
    for family, decoder in subject.each():
        with on(family), subject.attached(decoder):
            batch = generate(decoder, TEXTS) if subject.stack.batchable else None
            for row, text in enumerate(TEXTS):
                if batch is None:
                    _require_recomputable(decoder, text, generate(decoder, [text]), 0)
                else:
                    _require_recomputable(decoder, text, batch, row)


def _require_recomputable(decoder: "Decoder", text: Text, written: "Answers", row: int) -> None:
    tokens = written.tokens[row]
    whole = score(decoder, [Text(text.prompt, tuple(tokens[:-1]))])
    expected = whole.row(0)[len(text.prompt) - 1 :]
    if written.logits is None:
        if tokens != expected.argmax(-1).tolist():
            raise Failed(f"it writes {tokens}, but scored as one text the likeliest are {expected.argmax(-1).tolist()}")
        return
    for step, (logits, reference) in enumerate(zip(written.logits[row], expected, strict=True)):
        worst = difference(logits, reference)
        if not worst <= TOLERANCE:
            raise Failed(
                f"generated token {step} has logits that differ from those of one forward over the whole text by "
                f"{worst:.0%} of the largest; a layer that runs twice needs a cache slot for each pass, and one that "
                "is skipped must not be the slot that positions are read from"
            )


def rows_are_independent(subject: Subject) -> None:
    """A row's answer does not depend on the other rows of its batch, or batchable is False."""
    _require_batchable(subject)
    first, last = TEXTS[0], TEXTS[-1]  # of one length: no padding is involved
    what = "a row's answer depends on the other rows; decide for each row, or declare batchable = False"
    for family, decoder in subject.each():
        with on(family), subject.attached(decoder):
            alone, written = score(decoder, [first]), generate(decoder, [first])
            for batch, row in (([first, last], 0), ([last, first], 1)):
                require_same_scores(score(decoder, batch).row(row), alone.row(0), what)
                require_same_text(generate(decoder, batch), written, row, 0, what)


def padding_changes_nothing(subject: Subject) -> None:
    """A row's answer is the same with and without padding, right of a scored text and left of a prompt."""
    _require_batchable(subject)
    for family, decoder in subject.each():
        with on(family), subject.attached(decoder):
            for padding, text in enumerate(TEXTS, start=2):
                padded, expected = score(decoder, [text], padding), score(decoder, [text])
                what = "padding on the right of a text changes its scores; row.length says where the text ends"
                require_same_scores(padded.row(0), expected.row(0), what)
                what = "padding on the left of a prompt changes what it writes; row.length says where it begins"
                require_same_text(generate(decoder, [text], padding), generate(decoder, [text]), 0, 0, what)


def _require_batchable(subject: Subject) -> None:
    if not subject.stack.batchable:
        raise Skipped("it declares batchable = False, so it is run one row at a time")
