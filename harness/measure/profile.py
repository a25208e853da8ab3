"""What a forward costs on this host, fitted: seconds of a layer's attention and MLP, of the head, of the rest.

Narayanan et al. (arXiv:2305.02440) time a model as T = F(p) + g (o - 1). Here the depth may change from token to
token, so the unit is a layer's branch:

    attention(n, c) = A0 + A1 n + A2 pairs(n, c)      mlp(n) = M0 + M1 n
    fixed(n)        = X0 + X1 n                       head(r) = H0 + H1 r

for n tokens and c key positions that they meet, themselves included: all that came before, or what a sliding window's
cache keeps of it. A window takes nothing off a prompt that is read at once: all of it is multiplied, and masked.
pairs(n, c) = n c - n (n - 1) / 2. Reading a prompt and decoding are fitted apart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from harness.results.stats.conventions import Floats

LINEAR_ENOUGH: Final = 0.02
"""Largest mean relative error at which prefill cost is modelled as linear; above it, a lookup table is used."""
FALLING: Final = 0.10
"""Largest mean relative error of a table whose costs may not fall with length; above it, they may."""
GOOD: Final = (0.05, 0.08, 0.05, 0.10)
"""Largest relative errors of a good profile: the mean fitted, the mean held out, and of held-out speed-ups the mean
and the largest; ``FAIR`` of a fair one."""
FAIR: Final = (0.10, 0.15, 0.10, 0.20)

GROWN: Final = 64
"""Tokens by which it is told whether time grows with the work: where launching counts, they take as long as one."""

Label = Literal["good", "fair", "poor"]


def pairs(n: float, c: float) -> float:
    """Causal query-key pairs of n queries with the c positions that they meet, of which they are the last."""
    within = min(n, c)  # a cache may show fewer positions than there are queries
    return n * c - within * (within - 1) / 2


def prompt_pairs(n: float) -> float:
    """Those of a prompt of n tokens that is read at once."""
    return pairs(n, n)


def met_keys(n: int, c: int, window: int | None) -> int:
    """Key positions that the last n of c positions meet: a cache that slides keeps ``window - 1`` once it is full."""
    return c if window is None or c - n < window else window - 1 + n


@dataclass(frozen=True, slots=True)
class Work:
    """One forward of one row, as what a cost depends on.

    Attributes:
        n: tokens.
        c: positions of the row, the tokens included.
        attention, mlp: how many layers ran their attention, and their MLP, on all tokens.
        head_rows: tokens that the head ran on.
        windows: sliding windows of those attentions that have one.
    """

    n: int
    c: int
    attention: int
    mlp: int
    head_rows: int = 1
    windows: tuple[int, ...] = ()

    @property
    def pairs(self) -> list[float]:
        """Query-key pairs of each attention, [attentions]."""
        met = [met_keys(self.n, self.c, window) for window in self.windows]
        met += [self.c] * (self.attention - len(self.windows))
        return [pairs(self.n, keys) for keys in met]

    def features(self) -> list[float]:
        """What the coefficients of ``LinearCosts`` are multiplied by, in their order."""
        a, m = self.attention, self.mlp
        return [1, self.n, a, a * self.n, sum(self.pairs), m, m * self.n, self.head_rows - 1]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Line(_Frozen):
    """Seconds of a call on n tokens: ``base + per_token * n``, and nothing for none."""

    base: float
    per_token: float

    def seconds(self, n: float) -> float:
        """Cost of one call."""
        return self.base + self.per_token * n if n else 0.0

    @classmethod
    def fit(cls, tokens: Sequence[float], seconds: Sequence[float]) -> Self:
        """The line through measurements, closest in relative terms, with nothing negative."""
        base, per_token = nonnegative_fit([[1, n] for n in tokens], seconds)
        return cls(base=base, per_token=per_token)


class LinearCosts(_Frozen):
    """Seconds of a forward as a sum of lines. ``head_row`` is a head row beyond the first, which ``fixed`` includes."""

    fixed: float
    fixed_token: float
    attention: float
    attention_token: float
    attention_pair: float
    mlp: float
    mlp_token: float
    head_row: float

    @classmethod
    def fit(cls, works: Sequence[Work], seconds: Sequence[float]) -> Self:
        """The costs closest to measurements in relative terms, none of them negative."""
        coefficients = nonnegative_fit([work.features() for work in works], seconds)
        return cls(**dict(zip(cls.model_fields, coefficients, strict=True)))

    def fixed_seconds(self, n: int) -> float:
        """What a forward costs around its layers."""
        return self.fixed + self.fixed_token * n

    def attention_seconds(self, n: int, pairs: float) -> float:
        """One layer's attention on n tokens, with so many query-key pairs."""
        return self.attention + self.attention_token * n + self.attention_pair * pairs

    def mlp_seconds(self, n: int) -> float:
        """One layer's MLP on n tokens."""
        return self.mlp + self.mlp_token * n

    def head_seconds(self, n: int) -> float:
        """One row of the head beyond the first, in a forward of n tokens."""
        return self.head_row


class TableCosts(_Frozen):
    """Seconds of a forward at some lengths, linear in between: on a CPU, caches and kernels bend the lines.

    ``attention`` is at context n; ``attention_pair`` is for pairs beyond those.
    """

    lengths: tuple[int, ...]
    fixed: tuple[float, ...]
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    head_row: tuple[float, ...]
    attention_pair: float

    @classmethod
    def fit(
        cls, works: Sequence[Work], seconds: Sequence[float], attention_pair: float, *, rising: bool = True
    ) -> Self:
        """One regression on the depth at each length; if ``rising``, costs may not fall as lengths grow."""
        lengths = tuple(sorted({work.n for work in works}))
        rows = []
        for length in lengths:
            timed = [(work, time) for work, time in zip(works, seconds, strict=True) if work.n == length]
            design = [[1, work.attention, work.mlp, work.head_rows - 1] for work, _ in timed]  # [timings, 4]
            rows.append(nonnegative_fit(design, [time for _, time in timed]))
        fixed, attention, mlp, head = np.array(rows).T  # [lengths] each
        if rising:
            fixed, attention, mlp = (np.maximum.accumulate(costs) for costs in (fixed, attention, mlp))
        return cls(
            lengths=lengths,
            fixed=tuple(fixed),
            attention=tuple(attention),
            mlp=tuple(mlp),
            head_row=tuple(head),
            attention_pair=attention_pair,
        )

    def fixed_seconds(self, n: int) -> float:
        """What a forward costs around its layers."""
        return self._at(self.fixed, n)

    def attention_seconds(self, n: int, pairs: float) -> float:
        """One layer's attention on n tokens, with so many query-key pairs: at context n, and what comes before it."""
        return self._at(self.attention, n) + self.attention_pair * max(pairs - prompt_pairs(n), 0.0)

    def mlp_seconds(self, n: int) -> float:
        """One layer's MLP on n tokens."""
        return self._at(self.mlp, n)

    def head_seconds(self, n: int) -> float:
        """One row of the head beyond the first, in a forward of n tokens."""
        return float(np.interp(n, self.lengths, self.head_row))

    def _at(self, values: tuple[float, ...], n: int) -> float:
        """Interpolated; the first value below the grid, the last segment's slope above it, unless that falls."""
        lengths = self.lengths
        if n <= lengths[-1] or len(lengths) < 2:
            return float(np.interp(n, lengths, values))
        slope = (values[-1] - values[-2]) / (lengths[-1] - lengths[-2])
        return values[-1] + max(slope, 0.0) * (n - lengths[-1])


Costs = LinearCosts | TableCosts


class Fit(_Frozen):
    """How well costs describe what was timed.

    Attributes:
        r2: share of the variance explained.
        mape: mean relative error; ``worst`` is the largest.
        left_out: mean relative error of each timing when the fit had not seen it; null where that cannot be had.
    """

    r2: float
    mape: float
    worst: float
    left_out: float | None = None

    @classmethod
    def of(cls, predicted: Floats, seconds: Floats, left_out: float | None = None) -> Self:
        """Compare predictions with what was timed."""
        errors = np.abs(predicted / seconds - 1)
        around = ((seconds - seconds.mean()) ** 2).sum()
        r2 = 1 - ((predicted - seconds) ** 2).sum() / around if around else 1.0
        return cls(r2=float(r2), mape=float(errors.mean()), worst=float(errors.max()), left_out=left_out)


class HeldOut(_Frozen):
    """Predictions of generations whose depth changed from token to token, which no fit had seen.

    Attributes:
        mape, bias: mean absolute and mean signed relative error of the time.
        speedup_error, speedup_worst: mean and largest relative error of the predicted speed-up over full depth.
    """

    schedules: int
    mape: float
    bias: float
    speedup_error: float
    speedup_worst: float


class CostProfile(_Frozen):
    """The costs of a model's parts on a host, and how far to trust them.

    Attributes:
        key: digest of the modules in place, their data type, the attention implementation and the host.
        layers: that the profiled model has, and ``windows`` of those whose attention slides.
        clock: what was read: CPU time of the thread, wall time, or events on the device.
        head: the head alone, as an exit check calls it.
        fill: keys and values alone, from a layer's norm to the cache; of a method that measured its own, not used.
        router: a small linear layer's call whose choice is read back, for which a device is waited, and seconds per
            multiply-accumulate in it; likewise.
        relative_iqr: median over the cells of the interquartile range of the raw timings over their median.
        others_share: share of the machine that other processes used meanwhile.
        seconds: that measuring took, of ``budget_s``; ``rounds`` that were completed.
        cut_short: whether the budget ended it before it was good.
        complete: whether every cell of the grid was timed; without it a profile is never good.
        longest: tokens of the longest prompt that was timed.
    """

    key: str
    host: dict[str, str]
    layers: int
    clock: Literal["thread_time", "wall", "cuda_events"]
    prefill: LinearCosts | TableCosts
    decode: LinearCosts
    head: Line
    fill: Line
    router: Line
    prefill_fit: Fit
    decode_fit: Fit
    held_out: HeldOut
    relative_iqr: float
    others_share: float
    load_average: tuple[float, float]
    seconds: float
    budget_s: float
    rounds: int
    cut_short: bool
    complete: bool
    longest: int
    windows: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """Of this measurement: two profiles of one key were fitted to other timings."""
        costs = self.model_dump_json(include={"prefill", "decode", "head", "fill", "router"})
        return f"{self.key}-{hashlib.sha256(costs.encode()).hexdigest()[:8]}"

    @property
    def fitted_error(self) -> float:
        """The larger mean relative error of the two fits."""
        return max(self.prefill_fit.mape, self.decode_fit.mape)

    @property
    def label(self) -> Label:
        """Whether to rank by it."""
        return label_of(self.fitted_error, self.held_out, complete=self.complete)

    def label_for(self, tokens: int) -> Label:
        """The label for prompts of so many tokens: poor beyond those that were timed."""
        return self.label if tokens <= self.longest else "poor"

    @property
    def growth(self) -> float:
        """Seconds of reading ``GROWN`` tokens at once, or as many as were timed, over those of reading one."""
        lengths = (min(GROWN, self.longest), 1)
        more, one = (
            forward_seconds(self.prefill, Work(n, n, self.layers, self.layers, windows=self.windows)) for n in lengths
        )
        return more / one

    def improvable(self, budget_s: float | None) -> bool:
        """Whether a budget that somebody asked for is more than the one that ended it; never without asking."""
        return self.cut_short and budget_s is not None and budget_s > self.budget_s


def label_of(fitted: float, held_out: HeldOut, *, complete: bool) -> Label:
    """How far to trust a profile, by the error of its fits and by what it predicts of generations it has not seen."""
    errors = (fitted, held_out.mape, held_out.speedup_error, held_out.speedup_worst)

    def within(limits: tuple[float, ...]) -> bool:
        return all(error <= limit for error, limit in zip(errors, limits, strict=True))

    if complete and within(GOOD):
        return "good"
    return "fair" if within(FAIR) else "poor"


def fit_prefill(works: Sequence[Work], seconds: Sequence[float], attention_pair: float) -> tuple[Costs, Fit]:
    """Costs of reading prompts: lines where they are close enough, a table where they are not.

    Args:
        attention_pair: seconds of a query-key pair, for a table, whose cells all have context n.
    """
    linear = LinearCosts.fit(works, seconds)
    fit = _quality(linear, works, seconds)
    if fit.mape <= LINEAR_ENOUGH:
        return linear, fit
    table = TableCosts.fit(works, seconds, attention_pair)
    fit = _quality(table, works, seconds)
    if fit.mape > FALLING:  # a kernel for one token may be slower than that for eight
        table = TableCosts.fit(works, seconds, attention_pair, rising=False)
        fit = _quality(table, works, seconds)
    return table, fit


def fit_decode(works: Sequence[Work], seconds: Sequence[float]) -> tuple[LinearCosts, Fit]:
    """Costs of a decode step."""
    costs = LinearCosts.fit(works, seconds)
    return costs, _quality(costs, works, seconds)


def forward_seconds(costs: Costs, work: Work) -> float:
    """Predicted seconds of a forward."""
    attention = sum(costs.attention_seconds(work.n, each) for each in work.pairs)
    layers = attention + work.mlp * costs.mlp_seconds(work.n)
    return costs.fixed_seconds(work.n) + layers + (work.head_rows - 1) * costs.head_seconds(work.n)


def nonnegative_fit(design: Sequence[Sequence[float]] | Floats, seconds: Sequence[float] | Floats) -> list[float]:
    """Least squares of relative errors with no negative coefficient: rows are divided by what was timed."""
    from scipy.optimize import nnls

    rows = np.array(design, dtype=float) / np.array(seconds, dtype=float)[:, None]  # [timings, coefficients]
    # columns of very different sizes would be solved to very different precision
    scale = np.linalg.norm(rows, axis=0)  # [coefficients]
    scale[scale == 0] = 1.0
    scaled, _ = nnls(rows / scale, np.ones(len(rows)))
    return [float(value) for value in scaled / scale]


def _quality(costs: Costs, works: Sequence[Work], seconds: Sequence[float]) -> Fit:
    predicted = np.array([forward_seconds(costs, work) for work in works])
    return Fit.of(predicted, np.array(seconds), _left_out_error(type(costs), works, seconds, costs.attention_pair))


def _left_out_error(
    kind: type[Costs], works: Sequence[Work], seconds: Sequence[float], attention_pair: float
) -> float | None:
    """Mean relative error when each timing, or for a table each inner length, is left out of the fit in turn."""
    lengths = sorted({work.n for work in works})
    table = kind is TableCosts
    groups = [[i for i, work in enumerate(works) if work.n == n] for n in lengths[1:-1]] if table else None
    errors = []
    for group in groups if groups is not None else [[i] for i in range(len(works))]:
        kept = [i for i in range(len(works)) if i not in group]
        given = [works[i] for i in kept], [seconds[i] for i in kept]
        costs = TableCosts.fit(*given, attention_pair) if table else LinearCosts.fit(*given)
        errors += [abs(forward_seconds(costs, works[i]) / seconds[i] - 1) for i in group]
    return float(np.mean(errors)) if errors else None
