"""N-gram drafts: what followed the last tokens when they came before is guessed to follow them again."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from harness.contract.prepared import Prepared
from harness.methods.lossless.drafting import Drafting

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

Match = Literal["first", "latest"]


@dataclass(frozen=True, kw_only=True)
class NGram(Drafting):
    """Guess the next tokens by looking the last ones up in the text, and verify all of them in one forward.

    How: the last ``longest`` tokens of prompt and answer are searched in what precedes them, and where they are not
    there, one token fewer, down to one. The tokens that followed them there are the draft. One forward of the whole
    model over the last token and the draft tells what the model itself would have written after each; what agrees is
    kept, with the model's next token after it, and the rest leaves the cache again. A text is that of greedy decoding,
    in fewer passes over the weights.

    Paper: "Prompt Lookup Decoding", Saxena, 2023; verification is that of "Fast Inference from Transformers via
    Speculative Decoding", Leviathan et al., arXiv:2211.17192.

    Parameters:
        tokens: tokens of a draft, at most; 0 guesses nothing and is dense.
        longest: tokens that are looked up, at most.
        match: where they came "first", as transformers looks them up, or "latest"; a latest match that is near the
            end goes on in the draft itself, so that what repeats goes on repeating.

    Limits: greedy generations of one row. It wins where answers copy from their prompt, such as summaries and edits,
    and loses elsewhere: FLOPs rise by every rejected token, while time and weight reads fall where drafts are right.
    Between a product of several rows and one of a single row rounding differs, so where two tokens' logits are all but
    equal the other one may be written; a record counts these places in its warnings. Scoring is dense's.

    Deviations: transformers' ``prompt_lookup_num_tokens`` drafts from the prompt before the first token is written, and
    ends a draft before an end token or one that a logits processor forbids; here the first token comes of the prompt
    alone, as in dense, and every draft is verified as it is.

    Reference: transformers' own prompt lookup: with ``match=first`` the same drafts on the same texts, and the same
    answers.
    """

    name = "ngram"
    paper = "https://github.com/apoorvumang/prompt-lookup-decoding"
    neutral = {"tokens": 0}

    tokens: Annotated[int, Ge(0)] = 8
    longest: Annotated[int, Ge(1)] = 3
    match: Match = "first"

    def attach(self, model: "Decoder", prepared: Prepared) -> AbstractContextManager[None]:
        """Verify what the text itself suggests."""
        from harness.model.speculation.verification import speculated

        return speculated(model, partial(lookup, longest=self.longest, match=self.match), self.tokens, self.name)


def lookup(text: list[int], count: int, longest: int, match: Match = "first") -> list[int]:
    """At most ``count`` tokens that followed the text's last ones where they came before; none if they did not.

    Args:
        text: token ids.
        longest: last tokens that are looked up, at most; the more of them are there, the better.
        match: which of several places.
    """
    for size in range(min(longest, len(text) - 1), 0, -1):
        ending, places = text[-size:], range(len(text) - size)
        for start in places if match == "first" else reversed(places):
            if text[start] == ending[0] and text[start : start + size] == ending:
                after = start + size
                return text[after : after + count] if match == "first" else _continued(text, after, count)
    return []


def _continued(text: list[int], start: int, count: int) -> list[int]:
    """As many tokens as were asked for, from a place in the text on, and on in what was taken from there."""
    copy = list(text)
    for place in range(start, start + count):
        copy.append(copy[place])
    return copy[len(text) :]
