"""What came of guessed tokens: the section of a record whose run verified drafts."""

from harness.results.section import Section


class Drafts(Section):
    """Tokens that were guessed, and what the whole model took of them.

    Attributes:
        verifications: forwards of the whole model over guessed tokens.
        drafted, accepted: tokens that were guessed, and that the model would have written itself.
        tokens_per_verification: tokens that a verification wrote: those accepted, and the model's own after them where
            the text went on.
        acceptance: by place in a draft, of the drafts that reach it, the share that was right up to there.
        draft_flops: of all FLOPs, those of guessing; null where the run's FLOPs are.
        passes_per_token: passes over the layers' weights for each token written after a text's first, drafts included;
            1 in dense. What another model reads to draft counts by its bytes, in parts of the layers'.
    """

    verifications: int
    drafted: int
    accepted: int
    tokens_per_verification: float
    acceptance: list[float]
    draft_flops: int | None
    passes_per_token: float
