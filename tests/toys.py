"""Methods, a model and a record to test the core with: nothing here loads torch or lm-eval."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError

LOOSE = '''
from contextlib import nullcontext
from dataclasses import dataclass
from harness import Family, Method

{before}
@dataclass(frozen=True, kw_only=True)
class {name}(Method):
    """A {label}.

    More of it.
    """
    name = "{label}"
    family = Family.PRUNING
    count: int = 1
    def attach(self, model, prepared):
        return nullcontext("{body}")
'''


def write_method(path: Path, name: str = "Loose", label: str = "loose", body: str = "", before: str = "") -> Path:
    """A file with one small method."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LOOSE.format(name=name, label=label, body=body, before=before))
    return path


def toy_model(fingerprint: str = "model") -> Any:
    """What a toy method works on: a list of what was done, in order."""
    tokenizer = SimpleNamespace(get_vocab=dict, special_tokens_map={})
    config = SimpleNamespace(to_dict=dict, _attn_implementation="eager")
    parts = {"module": SimpleNamespace(dtype="float32", config=config), "device": SimpleNamespace(type="cpu")}
    return SimpleNamespace(fingerprint=fingerprint, tokenizer=tokenizer, log=[], attached=[], **parts)


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Writes down what is done to it."""

    name = "toy"
    family = Family.PRUNING

    share: Annotated[float, Ge(0), Le(1)] = 0.5
    count: Annotated[int, Ge(1)] = 4
    unit: Literal["block", "mlp"] = "block"
    flag: bool = False
    layers: tuple[int, ...] = ()
    tags: frozenset[str] = frozenset()
    folder: Path | None = None
    note: str = ""

    def check(self) -> None:
        if self.flag and self.unit == "mlp":
            raise MethodError("toy: flag needs unit=block")

    def prepare(self, model: Any, study: Any) -> Prepared:
        model.log.append(f"prepare {self.label} on {','.join(model.attached)}")
        return Prepared(facts={"count": self.count})

    @contextmanager
    def attach(self, model: Any, prepared: Prepared) -> Iterator[None]:
        model.log.append(f"attach {self.label} with {prepared.facts}")
        model.attached.append(self.label)
        try:
            yield
        finally:
            model.attached.remove(self.label)
            model.log.append(f"restore {self.label}")


@dataclass(frozen=True, kw_only=True)
class Alone(Toy):
    """A method that no other may join."""

    name = "alone"
    family = Family.ROUTING
    stackable = False


@dataclass(frozen=True, kw_only=True)
class Paper(Toy):
    """A method that saves on paper alone."""

    name = "paper"
    savings = Savings.SIMULATED
    exact = True


@dataclass(frozen=True, kw_only=True)
class Needy(Toy):
    """A method with a parameter that has no default."""

    name = "needy"
    state: str


def sample_json(**changes: Any) -> dict[str, Any]:
    """The smallest line of a document."""
    line = {"task": "t", "doc_id": 0, "doc_hash": "a" * 64, "target": 1, "scores": {"acc,none": 1.0}}
    work = {"prompt_tokens": 3, "output_tokens": 0, "pad_tokens": 0, "depth": 1.0, "flops": 100}
    return {**line, **work, **changes}


def record_json(**changes: Any) -> dict[str, Any]:
    """A whole record as JSON."""
    info = {"savings": "real", "exact": False, "params": [{"count": 1}], "fingerprint": "f", "family": "pruning"}
    return {
        "id": "0123456789ab",
        "started": "2026-01-01T00:00:00Z",
        "duration_s": 1.5,
        "method": {"label": "toy", "name": "toy", **info},
        "model": {
            "name": "m",
            "pretrained": "m",
            "revision": None,
            "fingerprint": "sha256:0",
            "dtype": "float32",
            "attention": "sdpa",
            "layout": "llama",
            "layers": 4,
            "parameters": 10,
        },
        "evaluation": {
            "task": "t",
            "num_fewshot": None,
            "batch_size": 1,
            "limit": None,
            "samples": None,
            "seeds": [0, 1234, 1234, None],
            "gen_kwargs": None,
            "apply_chat_template": False,
            "system_instruction": None,
            "fewshot_as_multiturn": True,
            "data": "d",
            "limited": False,
        },
        "environment": ENVIRONMENT,
        "scores": [
            {
                "task": "t",
                "metric": "acc",
                "filter": "none",
                "value": 0.5,
                "stderr": None,
                "n": 2,
                "higher_is_better": True,
            }
        ],
        "trace": {
            "forwards": 1,
            "prompt_tokens": 1,
            "pad_tokens": 0,
            "output_tokens": 0,
            "attention_layer_tokens": 4,
            "mlp_layer_tokens": 4,
            "layer_tokens_total": 4,
            "mean_depth_prefill": 1.0,
            "mean_depth_decode": None,
            "head_tokens": 1,
            "executed": None,
        },
        "flops": {
            "total": 8,
            "useful": 8,
            "causal": 8,
            "parts": {"mlp": 8},
            "dense_equivalent": 8,
            "audit_ratio": None,
            "weight_bytes": 1,
            "kv_bytes": 1,
        },
        "memory": {"weights": 1, "kv_peak": 1},
        **changes,
    }


ENVIRONMENT: dict[str, Any] = {
    "device": "cpu",
    "device_name": "a processor",
    "cpu_model": "a processor",
    "cpus": 2,
    "threads": 1,
    "ram_bytes": 1,
    "os": "Linux",
    "python": "3.11.7",
    "versions": {"torch": "2"},
}
