"""What the user asked for, and the runs that follow from it, each with the id that its result will have."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.contract.model_source import ModelSource
from harness.contract.stack import Stack
from harness.contract.study import Study
from harness.core.contents import with_contents
from harness.core.environment import Environment
from harness.core.errors import UnknownNameError
from harness.core.source import of_modules
from harness.evaluate.score_mode import ContextFirst, ScoreMode, Suffix
from harness.evaluate.suites import TaskRequest
from harness.evaluate.tasks import LoadedTask
from harness.measure.energy import Windows
from harness.model.source import identified
from harness.model.weights.kernel_plan import KernelPlan
from harness.results.record import EvaluationInfo
from harness.results.throughput import BATCHES

UNSUPPORTED_MODEL_ARGS = {
    "peft": "merge the adapter into a checkpoint first",
    "delta": "merge the delta into a checkpoint first",
    "autogptq": "load a checkpoint that transformers itself can read",
    "gptqmodel": "load a checkpoint that transformers itself can read",
    "tp_plan": "use accelerate launch for data parallelism",
    "device": "give --device",
    "batch_size": "give --batch_size",
    "max_batch_size": "only --batch_size auto needs it, which is not offered",
    **dict.fromkeys(
        ("load_in_8bit", "load_in_4bit", "quantization_config"),
        "quantization is a method here, compared with the dense model: --method int8-dynamic",
    ),
}

DTYPES: Final = ("auto", "float32", "float", "bfloat16", "float16", "half", "float64", "double")
"""Number formats that a model's weights can be loaded in, by torch's names."""

OBSERVES: Final = tuple(f"harness.evaluate.{name}" for name in ("evaluation", "lm", "observed", "outcome"))
"""Modules that evaluate and observe: with what they import, they are part of every run's id."""

_WHOLE: Final = {"max_length": 1, "prefix_token_id": 0}
"""Model arguments that are whole numbers, with the least that each can be."""

_Seed = Annotated[int, Field(ge=0, lt=2**32)] | None  # numpy takes no others


Measure = Literal["flops", "ideal", "latency", "memory", "energy", "throughput", "graph"]


class CostPlan(BaseModel):
    """What is measured beside the scores, and how.

    Attributes:
        measure: flops are always counted; the others as asked.
        prompts, rounds, warmup, new_tokens, seed: see ``harness.results.costs.CostSettings``.
        isolate: measure in a process of its own.
        accelerators: machines whose roofline is worked out.
        usd_per_hour: price of an accelerator, instead of the price table's.
        carbon_intensity: grams of CO2 for a kilowatt-hour.
        budget_s: seconds for a cost profile; a fifth of the quality pass, at least 10 and at most 60, if not given.
        windows: how long energy is measured.
        batch_sizes: of which throughput is measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: frozenset[Measure] = frozenset({"flops"})
    prompts: int = Field(default=12, ge=2)
    rounds: int = Field(default=5, ge=2)
    warmup: int = Field(default=3, ge=0)
    new_tokens: int = Field(default=32, ge=2)
    seed: int = 0
    isolate: bool = False
    accelerators: tuple[str, ...] = ("a100-sxm-80", "h100-sxm", "this-host")
    usd_per_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    carbon_intensity: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    budget_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    windows: Windows = Windows()
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 8, 64), min_length=1)

    @field_validator("batch_sizes")
    @classmethod
    def _each_once(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if repeated := sorted(size for size in set(sizes) if sizes.count(size) > 1):
            raise ValueError(f"batch size {repeated[0]} is given {sizes.count(repeated[0])} times: give each once")
        return sizes

    def passes_s(self, wanted: Collection[str], each_s: Sequence[float], requests: int) -> float:
        """About how long the passes over so many requests take, by what one takes each participant."""
        one_round, seconds = sum(each_s) * requests, 0.0
        if "latency" in wanted:  # and once under observation
            seconds += one_round * (1 + self.rounds + self.warmup)
        if "memory" in wanted:
            seconds += 2 * sum(each_s)
        if "energy" in wanted:
            seconds += self.windows.seconds(len(each_s)) + self.windows.rounds * one_round
        if "throughput" in wanted:  # rows as if one after another, once observed and once to warm up
            seconds += sum(each_s) * BATCHES * sum(self.batch_sizes) * (2 + self.rounds)
        if "graph" in wanted:  # captured at each turn, and compared once
            seconds += one_round * 2 * (1 + self.rounds)
        return seconds


class ModelSettings(BaseModel):
    """Which model is loaded, and how, by lm-eval's names.

    Attributes:
        model_args: what lm-eval's backend hands on to transformers.
        device: None takes a GPU where there is one.
        apply_chat_template: the name of one of the tokenizer's templates, or whether its only one is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    pretrained: str
    model_args: dict[str, Any] = {}
    device: str | None = None
    batch_size: int = Field(default=1, ge=1)
    trust_remote_code: bool = False
    apply_chat_template: bool | str = False

    @field_validator("pretrained")
    @classmethod
    def _named(cls, pretrained: str) -> str:
        if not pretrained.strip():
            raise ValueError("expected a model's name or folder, got nothing")
        return pretrained

    @field_validator("model_args")
    @classmethod
    def _supported(cls, args: dict[str, Any]) -> dict[str, Any]:
        for name in args:
            if name in UNSUPPORTED_MODEL_ARGS:
                raise ValueError(f"model argument {name!r} is not supported: {UNSUPPORTED_MODEL_ARGS[name]}")
        for name, least in _WHOLE.items():
            value = args.get(name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"model argument {name}={value!r} is not valid: expected a whole number from {least}")
        if not isinstance(begins := args.get("add_bos_token"), bool | None):
            raise ValueError(f"model argument add_bos_token={begins!r} is not valid: expected true or false")
        if not isinstance(tokenizer := args.get("tokenizer"), str | None):
            raise ValueError(f"model argument tokenizer={tokenizer!r} is not valid: expected a name or a folder")
        if "gguf_file" in args and not (isinstance(file := args["gguf_file"], str) and file):
            raise ValueError(f"model argument gguf_file={file!r} is not valid: expected a file of the model's folder")
        if isinstance(dtype := args.get("dtype", "auto"), str) and dtype not in DTYPES:
            raise UnknownNameError("dtype", dtype, DTYPES, see=f"--model_args dtype takes: {', '.join(DTYPES)}.")
        return args


class Job(ModelSettings):
    """The settings of one ``harness run``, by lm-eval's names where lm-eval has the setting.

    Attributes:
        name: what the user calls the runs; no part of their ids.
        methods: as written on the command line; dense comes first unless ``baseline`` is off.
        tasks: names, or names with flags of their own, which the job's flags of the same name override.
        limit: the first n documents of each task, or a share of them below 1.
        seeds: for Python, numpy, torch and the few-shot sampler.
        calibration: "task", "bundled", ``dataset:NAME:SPLIT:COLUMN`` or a text file.
        score_mode: how texts are scored: "lm-eval" in one forward each, "context-first" against the cache that their
            context leaves; None takes lm-eval's where all methods show in it.
        score_suffix: the end of a context that is read with the continuation, so that no method compresses it: so many
            tokens, from 2 (digits), or the text from its last occurrence on. It needs context-first.
        kernel: what computes the linear layers of the methods that have it, instead of what is fastest here.
        costs: what is measured after the scores; no part of a run's id.
    """

    name: str | None = None
    methods: tuple[str, ...]
    method_args: dict[str, Any] = {}
    baseline: bool = True
    tasks: tuple[TaskRequest, ...] = Field(min_length=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    samples: dict[str, Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]] | None = None
    gen_kwargs: dict[str, Any] | None = None
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    seeds: tuple[_Seed, _Seed, _Seed, _Seed] = (0, 1234, 1234, 1234)
    include_path: str | None = None
    metadata: dict[str, Any] = {}
    confirm_run_unsafe_code: bool = False
    calibration: str = "task"
    score_mode: ScoreMode | None = None
    score_suffix: Suffix | None = None
    kernel: str | None = None
    predict_only: bool = False
    write_out: bool = False
    resume: bool = True
    costs: CostPlan = CostPlan()

    @field_validator("samples")
    @classmethod
    def _in_order(cls, samples: dict[str, list[int]] | None) -> dict[str, list[int]] | None:
        """Documents in the task's order, each once, as lm-eval serves them."""
        return samples and {task: sorted(set(indices)) for task, indices in samples.items()}

    @field_validator("score_suffix")
    @classmethod
    def _an_end(cls, suffix: Suffix | None) -> Suffix | None:
        number = int(suffix) if isinstance(suffix, str) and suffix.isascii() and suffix.isdecimal() else suffix
        if number == "" or (_is_number(number) and not (isinstance(number, int) and number > 1)):
            raise ValueError(
                f"{suffix!r} is not valid: expected a text, or a number of tokens from 2 (1 is held back without it)"
            )
        return number

    @model_validator(mode="after")
    def _consistent(self) -> "Job":
        if self.limit is not None and self.samples is not None:
            raise ValueError("limit and samples exclude each other: give one of them")
        if self.score_suffix is not None and self.score_mode == "lm-eval":
            raise ValueError(
                f"score_suffix={self.score_suffix} holds back the end of a context, and score_mode=lm-eval reads text "
                "in one forward: give --score_mode context-first"
            )
        if self.method_args and len([name for name in self.methods if name != "dense"]) != 1:
            raise ValueError("method_args needs exactly one method; write the arguments as name:key=value instead")
        return self

    def asking(self, request: TaskRequest) -> "Job":
        """The job as it is for one task: with the task's own flags where the user gave none."""
        limit = request.limit if self.limit is None and self.samples is None else self.limit
        flags = {
            "num_fewshot": request.num_fewshot if self.num_fewshot is None else self.num_fewshot,
            "limit": limit,
            "gen_kwargs": {**(request.gen_kwargs or {}), **(self.gen_kwargs or {})} or None,
        }
        return self.model_copy(update=flags)


def _is_number(suffix: Suffix | None) -> bool:
    """Whether it reads as a number, also one that counts no tokens: of another sign, notation or script."""
    if not isinstance(suffix, str):
        return suffix is not None
    try:
        float(suffix)
    except ValueError:
        return False
    return any(map(str.isdecimal, suffix))  # "nan" and "inf" are words


@dataclass(frozen=True, eq=False)
class RunSpec:
    """One run: a stack of methods on a model and a task, with the job's flags as they are for this task.

    Attributes:
        model: the dense model, which the run is compared with.
        score_mode: how the task's texts are scored.
        kernels: what computes the linear layers of methods that have kernels, on this machine.
        checkpoint: what is loaded instead, where a method is another model.
    """

    job: Job
    stack: Stack
    task: LoadedTask
    model: ModelSource
    environment: Environment
    data: str
    calibration: Study | None
    score_mode: ScoreMode = "lm-eval"
    kernels: KernelPlan = field(default_factory=KernelPlan)
    checkpoint: ModelSource | None = None

    @property
    def context_first(self) -> ContextFirst | None:
        """How contexts are read before their continuations, where they are."""
        return ContextFirst(self.job.score_suffix) if self.score_mode == "context-first" else None

    @property
    def evaluation(self) -> EvaluationInfo:
        """What lm-eval is asked."""
        job = self.job
        return EvaluationInfo(
            task=self.task.name,
            num_fewshot=job.num_fewshot,
            batch_size=job.batch_size,
            limit=job.limit,
            samples=job.samples,
            seeds=list(job.seeds),
            gen_kwargs=job.gen_kwargs,
            apply_chat_template=job.apply_chat_template,
            system_instruction=job.system_instruction,
            fewshot_as_multiturn=job.fewshot_as_multiturn and bool(job.apply_chat_template),
            data=self.data,
            limited=job.limit is not None or job.samples is not None,
            score_mode=self.score_mode,
            score_suffix=job.score_suffix if self.context_first else None,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, as plain JSON; the id alone is kept, for plans of very many runs."""
        return {
            "method": self.stack.fingerprint,
            "observation": _observation(),
            "calibration": self.calibration.fingerprint if self.calibration else None,
            "model": self.loaded.fingerprint,
            **({"base": self.model.fingerprint} if self.checkpoint else {}),
            "model_args": {"trust_remote_code": self.job.trust_remote_code, **identified(self.job.model_args)},
            "evaluation": self.evaluation.model_dump(mode="json"),
            "metadata": with_contents(self.job.metadata),
            "predict_only": self.job.predict_only,
            "kernels": self.kernels.by_layer,
            "kernel_asked": self.kernels.asked,
            "environment": self.environment.identity,
        }

    @property
    def loaded(self) -> ModelSource:
        """The model that runs."""
        return self.checkpoint or self.model

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits of the identity's digest."""
        text = json.dumps(self.identity, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def draws_at_random(self) -> bool:
        """Whether answers are sampled, so that finished ones cannot be kept apart from the generator's state."""
        return any(_samples(task.config.generation_kwargs or {}) for task in self.task.tasks.values())


@cache
def _observation() -> str:
    """Digest of what evaluates and observes, as it was when this process first asked."""
    return of_modules(*OBSERVES).digest


def _samples(generation: dict[str, Any]) -> bool:
    """As lm-eval reads it: at a temperature above 0 unless do_sample says no."""
    chosen = generation.get("do_sample")
    return bool(chosen) if chosen is not None else generation.get("temperature") not in (None, 0)
