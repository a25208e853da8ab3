"""The record of a run: one JSON document, one schema, checked when written and when read.

Three kinds of number are kept apart: counted (FLOPs, bytes, layers), modelled (idealized runtime) and measured
(latency, energy; their sections are in ``harness.results.costs``). What was not measured is null, and ``missing`` says
why. All units are SI base units.
"""

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field

from harness.core.environment import Environment
from harness.core.rounding import Rounding
from harness.results.baseline import Baseline
from harness.results.costs import Energy, Memory, Time
from harness.results.drafts import Drafts
from harness.results.saving import Saving
from harness.results.scores import Score
from harness.results.section import Section


class MethodInfo(Section):
    """The method, or the stack of methods, that ran.

    Attributes:
        label: as written on the command line.
        params: hyper-parameters of each part.
        savings: what this run saved: "real" where the running code did less work than dense on the same tokens,
            "simulated" where the arithmetic on paper alone did, "none" where neither did, or where it did on a kernel
            that was asked for and is slower than dense.
        declared_real: whether its methods and the kernels that ran declare a real saving, which the run need not have
            had; in older records ``savings`` is what they declare.
        kernels: what computed the linear layers that the method changed, with how many each computed.
        kernel_asked: what was asked for by ``--kernel`` of a method that has it; null where the machine's choice was
            taken, and in older records. ``kernel_slower``: whether it is slower than dense on the machine.
        state: what preparation chose, part by part, such as the chosen layers.
        calibration: where the text for preparation came from and how much of it there was; null when none was needed.
        control: whether the run is a control: the same training as without ``control=same-training``, on the dense
            model, with the methods below it in the stack off.
        files: files of methods that are not installed, which lie beside the record: SHA-256 by name.
    """

    label: str
    name: str
    family: str
    params: list[dict[str, Any]]
    fingerprint: str
    savings: Saving
    declared_real: bool = False
    exact: bool
    kernels: dict[str, int] = Field(default={})
    kernel_asked: str | None = None
    kernel_slower: bool = False
    state: list[dict[str, Any]] = Field(default=[])
    calibration: str | None = None
    control: bool = False
    files: dict[str, str] = Field(default={})


class BaseInfo(Section):
    """The dense model that a run on another checkpoint is compared with; as in ``ModelInfo``."""

    name: str
    pretrained: str
    fingerprint: str


class ModelInfo(Section):
    """The model: where it came from and what it is.

    Attributes:
        name: short, for tables; ``pretrained`` is what the user gave.
        fingerprint: digest of weights, configuration and tokenizer, or the hub's commit.
        parameters: of the dense model, tied weights once.
        active_parameters: those that one token runs, without the experts that it is not sent to; null in older records,
            and where layers are not seen.
        layout: the anatomy that matched.
        license: as its model card names it; null where no card says it, and in older records.
        base: the dense model beside which this one, another checkpoint, is a row; null where it is itself the dense
            model of its row.
        rounding: how the weights were rounded in the GGUF file that they were read from; null where they were given as
            floats, and in older records.
    """

    name: str
    pretrained: str
    revision: str | None
    fingerprint: str
    dtype: str
    attention: str
    layout: str
    layers: int
    parameters: int
    active_parameters: int | None = None
    args: dict[str, Any] = Field(default={})
    license: str | None = None
    base: BaseInfo | None = None
    rounding: Rounding | None = None


class EvaluationInfo(Section):
    """What lm-eval was asked, by lm-eval's own names.

    Attributes:
        data: digest of the scored documents and of the few-shot documents.
        limited: fewer documents than the task has; never to be published.
        score_mode: how texts were scored: each in one forward, as lm-eval does it, or against the cache that its
            context left.
        score_suffix: what of a context's end was read with the continuation: so many tokens, or the text from its last
            occurrence on; null for its last token, and where nothing was scored context first.
    """

    task: str
    num_fewshot: int | None
    batch_size: int
    limit: float | None
    samples: dict[str, list[int]] | None
    seeds: list[int | None]
    gen_kwargs: dict[str, Any] | None
    apply_chat_template: bool | str
    system_instruction: str | None
    fewshot_as_multiturn: bool
    data: str
    limited: bool
    score_mode: Literal["lm-eval", "context-first"] = "lm-eval"
    score_suffix: int | str | None = None

    @property
    def scoring(self) -> str:
        """How texts were scored, in a few words; empty for lm-eval's own way."""
        return scoring(self.score_mode, self.score_suffix)


UNSAID: Final[dict[str, Any]] = {"score_mode": "lm-eval", "score_suffix": None}
"""How texts were scored where a record or a manifest does not say it: it was made when there was no other way."""


def scoring(score_mode: str, score_suffix: int | str | None) -> str:
    """How texts were scored, in a few words; empty for lm-eval's own way."""
    if score_mode == "lm-eval":
        return ""
    if score_suffix is None:
        return score_mode
    held_back = f"last {score_suffix} tokens" if isinstance(score_suffix, int) else repr(score_suffix)
    return f"{score_mode}, {held_back} held back"


class TraceTotals(Section):
    """Work observed on the modules that ran, summed over the run.

    Attributes:
        forwards: forward passes of the model.
        prompt_tokens, pad_tokens, output_tokens: tokens of prompts and scored texts, of padding, and generated.
        attention_layer_tokens, mlp_layer_tokens: executions of a layer's attention (MLP) times tokens; null where a
            model's layers are not seen.
        layer_tokens_total: the same if every layer ran once on every token; null likewise.
        mean_depth_prefill, mean_depth_decode: executed share of all layers, attention and MLP each counting half.
        head_tokens: tokens through the LM head.
        executed: False when the method's work never differed from dense on any document.
    """

    forwards: int
    prompt_tokens: int
    pad_tokens: int
    output_tokens: int
    attention_layer_tokens: int | None
    mlp_layer_tokens: int | None
    layer_tokens_total: int | None
    mean_depth_prefill: float | None
    mean_depth_decode: float | None
    head_tokens: int
    executed: bool | None


class Routes(Section):
    """The paths through the layers that documents took, read off what ran; rows count once each.

    Attributes:
        distinct: how many different paths.
        identity: share of rows whose path is the full one.
        entropy: of the paths, in bits.
        common: share of rows by path, the most frequent ones; a digit says how often a layer ran.
        union_prefill, union_decode: layers that batches had to run for any row, in parts of dense's; beside the mean
            depth, this is what a step that waits for memory saves.
    """

    distinct: int
    identity: float
    entropy: float
    common: dict[str, float]
    union_prefill: float | None
    union_decode: float | None


class Flops(Section):
    """Counted arithmetic and traffic (1 multiply-add = 2 FLOPs; matrix products only).

    Attributes:
        total: executed, padding included, attention over the full rectangle; equals the dispatcher's counter.
        useful: the same without padding.
        causal: total with the causal half of attention.
        parts: total by component.
        dense_equivalent: what the dense model would have executed on the same tokens.
        dense_weight_bytes, dense_kv_bytes: the bytes that it would have moved for them; null in older records.
        audit_ratio: dispatcher's count over our formula on a few real requests; 1 is agreement.
        audit_stated, audit_counted: FLOPs of those requests, by our formula and by the dispatcher's count.
        weight_bytes, kv_bytes: bytes of weights read, of keys and values read and written. Of experts, as many count as
            the tokens of a forward can hit: exact for one token, an upper bound for more.
    """

    total: int
    useful: int
    causal: int
    parts: dict[str, int]
    dense_equivalent: int
    audit_ratio: float | None
    audit_stated: int | None = None
    audit_counted: int | None = None
    weight_bytes: int
    kv_bytes: int
    dense_weight_bytes: int | None = None
    dense_kv_bytes: int | None = None


class RunRecord(Section):
    """One method on one model and one task.

    Attributes:
        command: what runs it again, from everything that was asked; null in records from before it was kept.
        name: what its user calls it, if anything; no part of the id.
        drafts: what came of guessed tokens; null where none were verified.
        measured: what the cost pass was asked for and has answered, if only with a reason in ``missing``.
        sources: digest of the source that computed a section from what was stored, by the section; no part of the
            id. Such a section is made anew, without the model, when its source has changed.
        missing: what is null, by its path, and why.
        warnings: what a reader must know before believing the scores.
    """

    schema_version: Literal[2] = 2
    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    started: datetime
    duration_s: float
    command: str | None = None
    name: str | None = Field(default=None, min_length=1, max_length=100)
    method: MethodInfo
    model: ModelInfo
    evaluation: EvaluationInfo
    environment: Environment
    scores: list[Score]
    trace: TraceTotals
    routes: Routes | None = None
    flops: Flops | None
    drafts: Drafts | None = None
    memory: Memory
    time: Time | None = None
    energy: Energy | None = None
    baseline: Baseline | None = None
    measured: list[Literal["ideal", "latency", "memory", "energy", "throughput", "graph"]] = Field(default=[])
    sources: dict[str, str] = Field(default={})
    missing: dict[str, str] = Field(default={})
    warnings: list[str] = Field(default=[])


MISSING = {
    "time": "not measured: --measure asked for neither latency nor ideal",
    "energy": "not measured: --measure did not ask for energy",
    "memory.peak": "not measured: --measure did not ask for memory",
}
"""Of a record before its cost pass: the quality pass batches and observes requests, so its clock is no latency."""
