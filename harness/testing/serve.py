"""Score, in one forward or context first, and generate: as a run does it, without lm-eval, everything traced."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from harness.contract.decoder import Row, input_shape
from harness.measure.trace import Tracer
from harness.model.reading import Cached
from harness.model.speculation.verification import rounding_at
from harness.testing.outcome import Failed

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.measure.segment import Segment

PAD = 0
STEPS = 4

TOLERANCE = 5e-3
"""Largest difference of logits, in parts of the largest, that rounding explains; mistakes make it twenty times more."""


@dataclass(frozen=True)
class Text:
    """Tokens to score: a prompt and a continuation of it."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """All of them."""
        return self.prompt + self.continuation


@dataclass(frozen=True)
class Answers:
    """The answers of a batch.

    Attributes:
        tokens: the generated tokens of each row; empty where a text was scored.
        logits: of each row, [tokens, vocabulary]: of every token of a scored text, of every step of a generation;
            None where a generation did not take one forward per step.
    """

    tokens: list[list[int]]
    logits: list[torch.Tensor] | None
    tracer: Tracer

    def row(self, index: int) -> torch.Tensor:
        """The logits of one row, where there are any."""
        assert self.logits is not None
        return self.logits[index]

    @cached_property
    def segments(self) -> list[list["Segment"]]:
        """What ran for each row."""
        return self.tracer.collect()


def score(decoder: "Decoder", texts: Sequence[Text], padding: int = 0) -> Answers:
    """One forward over a batch, padded on the right by at least ``padding`` tokens."""
    width = max(len(text.tokens) for text in texts) + padding
    ids = torch.tensor([[*text.tokens, *[PAD] * (width - len(text.tokens))] for text in texts], device=decoder.device)
    rows = [Row("text", i, (0,), len(text.prompt), len(text.tokens)) for i, text in enumerate(texts)]
    with torch.no_grad(), decoder.serving(rows, "score", width), Tracer(decoder) as tracer:
        logits = decoder.module(ids).logits
    return Answers([], [logits[i, : row.length] for i, row in enumerate(rows)], tracer)


def score_context_first(decoder: "Decoder", text: Text) -> Answers:
    """A text whose context is read into a cache before the continuation; the logits of what is read after it."""
    read = len(text.prompt) - (not decoder.manner.whole)
    row = Row("text", 0, (0,), len(text.prompt), len(text.tokens))
    with decoder.serving([row], "score", read=read), Tracer(decoder) as tracer:
        cached = Cached(decoder, 1, len(text.tokens))
        cached.read([text.tokens[:read]], 1)
        logits = cached.continued([text.tokens[read:]], len(text.tokens) - read)
    return Answers([], list(logits), tracer)


def generate(decoder: "Decoder", texts: Sequence[Text], padding: int = 0, steps: int = STEPS) -> Answers:
    """Generate ``steps`` tokens greedily after each prompt, padded on the left by at least ``padding`` tokens."""
    width = max(len(text.prompt) for text in texts) + padding
    ids = torch.tensor([[*[PAD] * (width - len(text.prompt)), *text.prompt] for text in texts], device=decoder.device)
    lengths = [len(text.prompt) for text in texts]
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths], device=decoder.device)
    rows = tuple(Row("text", i, (0,), length, length) for i, length in enumerate(lengths))
    last: list[torch.Tensor] = []
    read: list[int] = []  # tokens of each forward

    def watch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read.append(input_shape(args, kwargs)[1])
        last.append(output.logits[:, -1])

    watching = decoder.module.register_forward_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad(), decoder.serving(rows, "generate", width), Tracer(decoder) as tracer:
            written = decoder.module.generate(
                input_ids=ids,
                attention_mask=mask,
                max_length=width + steps,
                min_new_tokens=steps,  # an end token would make the rows' lengths differ
                do_sample=False,
                use_cache=True,
                pad_token_id=PAD,
            )[:, width:]
    finally:
        watching.remove()
    plain = len(last) == steps and set(read[1:]) <= {1}  # a draft that is verified is several tokens
    logits = list(torch.stack(last, 1)) if plain else None
    return Answers(written.tolist(), logits, tracer)


def require_greedy(decoder: "Decoder", texts: Sequence[Text], written: Sequence[Sequence[int]], what: str) -> None:
    """Fail unless every token of every text is the model's own choice after those before it, up to rounding.

    One forward of the model reads a text, so that many tokens are looked at in little time.

    Args:
        written: the tokens that followed each prompt, none of them an end token.
    """
    ends = decoder.module.generation_config.eos_token_id
    for text, tokens in zip(texts, written, strict=True):
        ids = torch.tensor([[*text.prompt, *tokens]], device=decoder.device)  # [1, all tokens]
        with torch.no_grad():
            logits = decoder.module(ids).logits[0, len(text.prompt) - 1 : -1].float()  # [written, vocabulary]
        if ends is not None:
            logits[:, ends] = -torch.inf
        best, chosen = logits.amax(-1), logits.gather(-1, ids[0, len(text.prompt) :, None])[:, 0]  # [written] each
        for step, (wanted, given) in enumerate(zip(best.tolist(), chosen.tolist(), strict=True)):
            if wanted - given > rounding_at(wanted, decoder.module.dtype):
                raise Failed(f"{what}: token {step} of {len(tokens)} has a logit of {given:.4f}, the best {wanted:.4f}")


def require_same_scores(logits: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Fail unless logits of the shape [tokens, vocabulary] are equal up to rounding."""
    worst = difference(logits, expected)
    if not worst <= TOLERANCE:
        raise Failed(f"{what}: the logits differ by {worst:.0%} of the largest")


def require_same_text(answers: Answers, expected: Answers, row: int, expected_row: int, what: str) -> None:
    """Fail unless a row of one generation and a row of another have the same tokens, and logits up to rounding.

    Where the logits agree and the tokens do not, two tokens tie, and the rest cannot be compared.
    """
    tokens, wanted_tokens = answers.tokens[row], expected.tokens[expected_row]
    if answers.logits is None or expected.logits is None:
        if tokens != wanted_tokens:
            raise Failed(f"{what}: it writes {tokens} instead of {wanted_tokens}")
        return
    pairs = zip(tokens, wanted_tokens, answers.logits[row], expected.logits[expected_row], strict=True)
    for step, (token, wanted, logits, reference) in enumerate(pairs):
        worst = difference(logits, reference)
        if not worst <= TOLERANCE:
            raise Failed(f"{what}: at generated token {step} the logits differ by {worst:.0%} of the largest")
        if token != wanted:
            return


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in parts of the largest magnitude; NaN where either has one."""
    return float((logits - expected).abs().max() / expected.abs().max())


def identical(first: Answers, second: Answers) -> bool:
    """Whether two batches gave the same tokens and the same logits to the last bit."""
    if first.tokens != second.tokens or (first.logits is None) != (second.logits is None):
        return False
    pairs: Any = zip(first.logits or [], second.logits or [], strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def write(decoder: "Decoder", texts: Sequence[Text], steps: int) -> list[list[int]]:
    """Generate as ``generate`` does, after prompts of one length, without looking on."""
    ids = torch.tensor([text.prompt for text in texts], device=decoder.device)  # [rows, prompt]
    rows = tuple(Row("text", number, (0,), ids.shape[1], ids.shape[1]) for number in range(len(texts)))
    with torch.no_grad(), decoder.serving(rows, "generate"):
        written = decoder.module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_length=ids.shape[1] + steps,
            min_new_tokens=steps,
            do_sample=False,
            use_cache=True,
            pad_token_id=PAD,
        )
    tokens: list[list[int]] = written[:, ids.shape[1] :].tolist()
    return tokens


def _random(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, 259, (length,), generator=generator).tolist())


TEXTS = tuple(Text(_random(length, seed), _random(5, 100 + seed)) for seed, length in enumerate((9, 12, 6, 9)))
"""Prompts of unequal length, the first and the last of the same, each with a continuation."""

LONG_TEXTS = tuple(Text(_random(8, 300 + seed)) for seed in range(5))
LONG = 240
"""Tokens that are written after each of these: a thousand in all, and no more than the models have positions."""

OTHER_CONTINUATIONS = tuple(_random(length, 200 + seed) for seed, length in enumerate((5, 5, 8)))
