"""Times without launch overhead: a regime of its own, whose numbers stand beside no latency of single requests."""

from typing import Final, Literal

from pydantic import Field

from harness.results.baseline import RatioInfo
from harness.results.section import Section

CapturedBy = Literal["cuda graph", "torch.compile"]
NAMES: Final = ("latency", "ttft", "tpot")
"""Times that have a ratio to dense's; the last two where texts are written."""


class GraphTimes(Section):
    """Seconds of the same requests in the same rounds, [requests][rounds].

    Attributes:
        latency: from submission to the last token, or of reading a scored text.
        ttft: to the first token; empty where texts are scored.
        tpot: of each token after the first; empty likewise.
    """

    latency: list[list[float]]
    ttft: list[list[float]] = Field(default=[])
    tpot: list[list[float]] = Field(default=[])


class Graph(Section):
    """Requests served alone, with the model's steps captured beforehand, dense and the run taking turns.

    Attributes:
        captured_by: what captured the run's steps; ``dense_by`` dense's.
        reads: whether prompts were read by captured steps too; not where what is read decides what runs.
        clock: what was read, in words.
        prompts, rounds, new_tokens, seed: see ``harness.results.costs.CostSettings``.
        prompt_tokens: tokens read by each request, [requests].
        run, dense, dense_repeat: times; the last two, of which one is dense repeated, are null in dense's own record.
        typical: the median over requests of each request's median over rounds, by the names of ``NAMES``.
        ratios: over dense's, by the same names; ``noise`` of dense over dense.
        tokens: those that captured steps wrote for these requests, or found likeliest after each token of a scored
            text; ``differences`` is how many of them differ from those without captured steps.
        doubts: why not to trust it, in words.
    """

    regime: Literal["graph"] = "graph"
    captured_by: CapturedBy
    dense_by: CapturedBy | None = None
    reads: bool
    clock: str
    prompts: int
    rounds: int
    new_tokens: int
    seed: int
    prompt_tokens: list[int]
    run: GraphTimes
    dense: GraphTimes | None = None
    dense_repeat: GraphTimes | None = None
    typical: dict[str, float] = Field(default={})
    ratios: dict[str, RatioInfo] = Field(default={})
    noise: dict[str, RatioInfo] = Field(default={})
    tokens: int
    differences: int
    doubts: list[str] = Field(default=[])

    @property
    def differing(self) -> str | None:
        """A doubt, where captured steps gave other tokens than the model."""
        if not self.differences:
            return None
        what = f"{self.differences} of {self.tokens} tokens differ from those that the model writes"
        return f"{what} as the evaluation runs it"
