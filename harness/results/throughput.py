"""Tokens a second of batches: a regime of its own, whose numbers stand beside no latency of single requests."""

from typing import Final, Literal

from pydantic import Field

from harness.results.baseline import RatioInfo
from harness.results.section import Section

BATCHES: Final = 6
"""Batches of each size: the least for an interval over them."""


class BatchTimes(Section):
    """Seconds of the same batches in the same rounds, [batches][rounds].

    Attributes:
        reading_s: until the first token of every row, or of a whole scored text.
        writing_s: from there to the last token; empty where texts are scored.
        written: tokens that came meanwhile, of all rows, [batches]; empty likewise.
    """

    reading_s: list[list[float]]
    writing_s: list[list[float]] = Field(default=[])
    written: list[int] = Field(default=[])


class BatchSize(Section):
    """What batches of one size took, dense and the run taking turns.

    Attributes:
        batch_size: rows of a batch, every one a text of the task.
        texts: how many different ones all batches have together.
        prompt_tokens: tokens read, padding left out, [batches]; ``pad_tokens`` of padding, of all batches.
        run, dense: times; ``dense`` is null in dense's own record, and where ``no_dense`` says why.
        reading, writing: tokens a second: those of all batches over the sum of each batch's median over rounds.
        reading_ratio, writing_ratio: tokens a second over dense's: above 1 is faster.
        layers_run: executed share of all layers over the tokens of all batches, padding included (counted); null where
            a model's layers are not seen.
        doubts: why not to trust it, in words.
    """

    batch_size: int = Field(ge=1)
    texts: int = Field(ge=1)
    prompt_tokens: list[int]
    pad_tokens: int
    run: BatchTimes
    dense: BatchTimes | None = None
    no_dense: str | None = None
    reading: float
    writing: float | None = None
    reading_ratio: RatioInfo | None = None
    writing_ratio: RatioInfo | None = None
    layers_run: float | None = None
    doubts: list[str] = Field(default=[])

    @property
    def repeated(self) -> str | None:
        """A doubt, where the batches have more rows than the task has texts."""
        if self.texts >= (rows := self.batch_size * BATCHES):
            return None
        what = f"{self.texts} different texts fill {rows} rows of {BATCHES} batches"
        return f"{what}: the interval is of these texts alone"


class Throughput(Section):
    """Tokens a second by batch size.

    Attributes:
        clock: what was read, in words.
        rounds: times that each batch was measured, dense and the method taking turns.
        new_tokens: tokens that a row may write at most; all rows of all batches write as many.
        seed: texts were drawn by it.
        sizes: rising.
        missing: why a batch size that was asked for has no numbers, by the size.
    """

    regime: Literal["batched"] = "batched"
    clock: str
    rounds: int
    new_tokens: int
    seed: int
    sizes: list[BatchSize] = Field(default=[])
    missing: dict[str, str] = Field(default={})

    @property
    def answered(self) -> set[int]:
        """The batch sizes that have numbers, or a reason."""
        return {each.batch_size for each in self.sizes} | set(map(int, self.missing))
