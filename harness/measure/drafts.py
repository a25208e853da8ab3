"""Drafts and their verifications, read off a trace."""

from collections.abc import Iterable
from typing import Final

from harness.measure.extra import Extra
from harness.measure.flops import executed_flops, unknown_flops
from harness.measure.segment import WRITING, Segment
from harness.measure.shape import ModelShape
from harness.results.drafts import Drafts

DRAFT: Final = "draft"
"""What guessing is called that another model does, whose work is added to a verification's."""


def drafts(shape: ModelShape, segments: Iterable[Segment]) -> Drafts | None:
    """What came of the tokens that were guessed in these forwards; None where none were."""
    writing = [segment for segment in segments if segment.phase in WRITING]
    verified = [segment for segment in writing if segment.phase == "verify"]
    if not verified:
        return None
    lengths = [segment.queries - 1 for segment in verified for _ in range(segment.forwards)]  # of drafts
    stayed = [_kept(segment) for segment in verified for _ in range(segment.forwards)]  # as many were written
    accepted = [_accepted(segment) for segment in verified for _ in range(segment.forwards)]
    reached = [sum(length >= place for length in lengths) for place in range(1, max(lengths) + 1)]
    right = [sum(tokens >= place for tokens in accepted) for place in range(1, max(lengths) + 1)]
    written = sum(stayed) + sum(segment.forwards for segment in writing if segment.phase == "decode")
    guessing = [segment for segment in writing if segment.phase == "draft"]
    beside = _of_other_models(writing)
    layers = sum(layer.attention.bytes + layer.mlp.bytes for layer in shape.layers)
    return Drafts(
        verifications=len(stayed),
        drafted=sum(lengths),
        accepted=sum(accepted),
        tokens_per_verification=sum(stayed) / len(stayed),
        acceptance=[part / whole for part, whole in zip(right, reached, strict=True)],
        draft_flops=None if unknown_flops(shape, writing) else executed_flops(shape, guessing).total + 2 * beside.macs,
        passes_per_token=(sum(map(_passes, writing)) + beside.bytes / max(layers, 1)) / written,
    )


def _of_other_models(segments: Iterable[Segment]) -> Extra:
    """What other models did to guess, over all of the forwards."""
    total = Extra()
    for segment in segments:
        for _ in range(segment.forwards):
            total = total.plus(segment.extra.get(DRAFT, Extra()))
    return total


def _kept(segment: Segment) -> int:
    """Tokens of a verification that stayed: as many were written, since the last of them is not in the cache yet."""
    return segment.queries if segment.kept is None else segment.kept


def _accepted(segment: Segment) -> int:
    """Guesses that were right: what was written but for the model's own token after them, if the text went on to it."""
    return min(_kept(segment) - (not segment.ends_in_guess), segment.queries - 1)


def _passes(segment: Segment) -> float:
    """Passes over the layers' weights, as a share of all layers."""
    reads = sum(segment.attention_reads) + sum(segment.mlp_reads)
    return segment.forwards * reads / (2 * len(segment.attention))
