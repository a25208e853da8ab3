"""Every decoder that transformers has, tiny and random, under each engine: what is exact, what is refused and why.

    python -m tests.benchmarks.architectures [model_type ...] [--markdown]

Layer-drop, layer paths, per-token depth, a pressed cache and drafts by a part of the layers are compared with
recomputation without a cache, attention by a function with the model's own, a narrowed model with the same units
multiplied by zero, the FLOPs of a score and of a generation with the count of PyTorch's dispatcher.
"""

import argparse
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.contract.decoder import Decoder, Row
from harness.core.errors import HarnessError
from harness.measure.audit import audit
from harness.measure.trace import Tracer
from harness.model.attention import attending, visible
from harness.model.layouts import dissect
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.model.paths.path_evaluator import PathEvaluator
from harness.model.reshape import Keep, narrowed
from harness.model.speculation.part import drafted_by_part
from harness.model.speculation.verification import speculated
from harness.model.surgery import without_blocks, without_branches
from harness.model.tokens.token_depth import token_depth
from harness.model.units import heads_of
from harness.testing.tiny import _randomise, tiny_tokenizer
from tests.model.cache import test_pressed
from tests.model.dropping import bypassed, logits
from tests.model.paths.test_layer_path import LENGTHS, ROUTES, generate, recomputed
from tests.model.paths.test_path_evaluator import naive, paths, questions
from tests.model.test_reshape import masked as zeroed
from tests.model.tokens.test_token_depth import Table, cached, masked, pattern

LARGEST = 3_000_000
"""Parameters above which a configuration is taken to have ignored the sizes."""

_SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 259,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 6,
    "window_size": 6,
    "rotary_dim": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "head_dim": None,
    "num_key_value_heads": 4,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1}
_SCALED = {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "attention_multiplier": 0.3}
_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("minicpm3", "deepseek_v2", "deepseek_v3", "youtu", "axk1", "glm4_moe_lite", "longcat_flash"), _LATENT
    ),
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "falcon": {"head_dim": None, "alibi": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "moshi": {"sliding_window": 256},  # beyond its window transformers' own cache is not its recomputation
    "dots1": {"n_shared_experts": 1},
    "xlstm": {"v_head_dim": None, "head_dim": None},
    "gemma4_text": {"head_dim": None},
    **dict.fromkeys(
        ("granite", "granitemoe", "granite_swa", "granitemoe_swa", "granitemoeshared", "hyperclovax"), _SCALED
    ),
    "cohere": {"use_qk_norm": True},
    "stablelm": {"qk_layernorm": True, "use_qkv_bias": True},
    "phi": {"qk_layernorm": True},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, by group": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, one norm by group": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon, by head": ("falcon", {"multi_query": False}),
    "falcon, sequential": ("falcon", {"parallel_attn": False}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "gpt_bigcode, by head": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "deepseek_v3, dense": ("deepseek_v3", {"first_k_dense_replace": 4}),
    "deepseek_v2, dense": ("deepseek_v2", {"first_k_dense_replace": 4}),
}


class UnbuiltError(Exception):
    """transformers itself refuses the tiny configuration, or it is not tiny."""


def tiny(name: str, attention: str | None = None, **config: Any) -> PreTrainedModel:
    """A random model of an architecture, or of a variant of one, in eval mode and float32."""
    kind, changes = VARIANTS.get(name, (name, {}))
    default = AutoConfig.for_model(kind)
    alias = getattr(type(default), "attribute_map", None) or {}
    fields = {field: value for field, value in _SIZES.items() if hasattr(default, field) and field not in alias}
    fields |= {native: _SIZES[field] for field, native in alias.items() if field in _SIZES and native not in fields}
    for window in ("sliding_window", "window_size"):
        if not isinstance(getattr(default, window, None), int):
            fields.pop(window, None)
    fields |= _SPECIAL.get(kind, {}) | changes | config
    fields = {field: value for field, value in fields.items() if value is not None}
    made = AutoConfig.for_model(kind, **fields)
    options = {} if attention is None else {"attn_implementation": attention}
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(made).parameters())
    if size > LARGEST:
        raise UnbuiltError(f"{size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(made, **options)
        _randomise(model)
    return model.float().eval()


def decoder(name: str, **options: Any) -> Decoder:
    """A tiny model with its parts."""
    module = tiny(name, **options)
    return Decoder(module, tiny_tokenizer(), dissect(module), name)


# ---- what is compared ---------------------------------------------------------------------------------------


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of unequal length, padded on the left, and their mask, [3, tokens] each."""
    ids = torch.randint(3, 259, (3, LENGTHS[0]), generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[0] * (LENGTHS[0] - length) + [1] * length for length in LENGTHS])
    return ids * mask, mask


@torch.no_grad()
def dropping(model: Decoder) -> float:
    """Layers, attentions and MLPs out: generated with a cache against each row alone without one."""
    ids, mask = prompts()
    worst = 0.0
    for out in ({"blocks": (2,)}, {"attention": (1,)}, {"mlp": (0, 2)}):
        attach = without_blocks(model, out["blocks"]) if "blocks" in out else without_branches(model, **out)
        with attach:
            made = generate(model, ids, mask)
        steps = torch.stack(made.logits, 1)  # [rows, steps, vocabulary]
        for row, length in enumerate(LENGTHS):
            with bypassed(model, **out):
                whole = logits(model, made.sequences[row : row + 1, LENGTHS[0] - length :])
            worst = max(worst, _apart(steps[row], whole[0, length - 1 : -1]))
    return worst


@torch.no_grad()
def routing(model: Decoder) -> float:
    """Paths of layers, and many paths evaluated at once."""
    ids, mask = prompts()
    worst = 0.0
    for routes in ROUTES.values():
        with routed(model, FixedPaths(routes)):
            made = generate(model, ids, mask)
        steps = torch.stack(made.logits, 1)
        for row, (length, path) in enumerate(zip(LENGTHS, routes, strict=True)):
            whole = recomputed(model, made.sequences[row : row + 1, LENGTHS[0] - length :], path)
            worst = max(worst, _apart(steps[row], whole[0, length - 1 : -1]))
    group = questions()
    pairs = [(question, path) for question in (0, 5) for path in paths(count=3)]
    for (question, path), scores in zip(pairs, PathEvaluator(model, group).evaluate(pairs), strict=True):
        for scored, (logprob, _) in zip(scores, naive(model, group[question], path), strict=True):
            worst = max(worst, abs(scored.logprob - logprob) / max(abs(logprob), 1.0))
    return worst


@torch.no_grad()
def exits(model: Decoder) -> float:
    """Every token its own layers, with a cache, against masks without one."""
    ids = torch.randint(3, 259, (3, 17), generator=torch.Generator().manual_seed(2))
    table = pattern()
    expected = masked(model, ids, table)
    with token_depth(model, Table(table)):
        return _apart(cached(model, ids), expected)


@torch.no_grad()
def pressing(model: Decoder) -> float:
    """Other entries kept in each layer, head and row, and decoding against a forward in which the rest is masked."""
    ids, lengths = test_pressed.texts(3), (12, 9, 12)
    press = test_pressed.ends if model.config.model_type == "xglm" else test_pressed.scattered  # one mask for all heads
    steps, history, _ = test_pressed.cached(model, press, ids, lengths)
    return max(
        _apart(steps[row], test_pressed.recomputed(model, ids, row, length, history))
        for row, length in enumerate(lengths)
    )


@torch.no_grad()
def drafting(model: Decoder) -> float:
    """Texts with drafts by a part of the layers, of which every token is the model's choice without a cache."""
    ids, steps, worst = prompts()[0][:1].clamp(min=3), 16, 0.0
    for part in ({"blocks": (2, 3)}, {"attentions": (2,)}):
        with drafted_by_part(model, **part) as draft, speculated(model, draft, 3):
            text = model.module.generate(ids, max_new_tokens=steps, min_new_tokens=steps, do_sample=False)
        whole = logits(model, text)[0, -steps - 1 : -1]  # [steps, vocabulary]
        size = float(whole.abs().max())
        whole[:, model.module.generation_config.eos_token_id] = -torch.inf
        chosen = whole.gather(-1, text[0, -steps:, None])[:, 0]  # [steps]
        worst = max(worst, float((whole.amax(-1) - chosen).max()) / size)
    return worst


def dense(
    layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, int]:
    """Plain attention, written out, and its query-key products; see ``attending``."""
    groups = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(groups, 1) for tensor in (k, v))
    allowed = visible(mask, q.shape[2], k.shape[2], q.device)
    output = scaled_dot_product_attention(q, k, v, allowed, scale=scale)
    return output, q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]


@torch.no_grad()
def attention(model: Decoder) -> float:
    """Attention written out in a function, in place of the model's own; a padded row among the prompts."""
    ids, mask = prompts()
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    expected = model.module(**inputs).logits
    with attending(model, dense, name="written out"):
        actual = model.module(**inputs).logits
    return max(_apart(actual[row, -length:], expected[row, -length:]) for row, length in enumerate(LENGTHS))


def narrowing(units: str) -> Callable[[Decoder], float]:
    """Heads or neurons out of two layers, against the model whose columns that read them are zero."""

    @torch.no_grad()
    def compare(model: Decoder) -> float:
        ids = prompts()[0].clamp(min=3)
        if units == "neurons":
            keeps = {0: Keep(neurons=(0, 5)), 2: Keep(neurons=(1,))}
        elif heads_of(model, 0).groups == 1:
            keeps = {0: Keep(heads=(0, 3)), 2: Keep(heads=(1,))}
        else:
            keeps = {0: Keep(groups=(0,)), 2: Keep(groups=(1,))}
        with narrowed(model, keeps):
            actual = logits(model, ids)
        with zeroed(model, keeps):
            return _apart(actual, logits(model, ids))

    return compare


def counting(model: Decoder) -> float:
    """How far PyTorch's count is from the formulas', relatively; padded generation and scoring."""
    ids, mask = prompts()
    serving = {
        "score": lambda: model.module(ids.clamp(min=3)),
        "generate": lambda: generate(model, ids, mask),
    }
    worst = 0.0
    for kind, serve in serving.items():
        rows = [
            Row("", row, (0,), length if kind == "generate" else LENGTHS[0], length)
            for row, length in enumerate(LENGTHS)
        ]
        with Tracer(model) as tracer, model.serving(rows, kind, width=LENGTHS[0]):

            def segments(serve: Callable[[], Any] = serve, tracer: Tracer = tracer) -> list[Any]:
                serve()
                return [segment for row in tracer.collect() for segment in row]

            worst = max(worst, abs(audit(model, segments).ratio - 1))
    return worst


def _apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of logits, relative to their size."""
    return float((actual - expected).abs().max() / expected.abs().max())


CHECKS: dict[str, tuple[Callable[[Decoder], float], float]] = {
    "layer-drop": (dropping, 1e-5),
    "paths": (routing, 1e-5),
    "token depth": (exits, 1e-5),
    "cache": (pressing, 1e-5),
    "drafts": (drafting, 1e-5),
    "attention": (attention, 1e-5),
    "heads out": (narrowing("heads"), 1e-5),
    "neurons out": (narrowing("neurons"), 1e-5),
    "FLOPs": (counting, 1e-9),
}


@dataclass
class Examined:
    """What is said of an architecture.

    Attributes:
        layout: of its layers; None if there is none, with the reason in ``refusal``.
        built: whether transformers builds and runs the tiny configuration.
        outcomes: of each check: "exact", "refused: why", or what is wrong.
    """

    layout: str | None = None
    refusal: str = ""
    built: bool = True
    outcomes: dict[str, str] = field(default_factory=dict)


def examine(name: str) -> Examined:
    """Build an architecture, read its layout and put it to every check."""
    try:
        module = tiny(name)
        with torch.no_grad():
            module(torch.tensor([[5, 6, 7, 8]]))
    except Exception as error:
        return Examined(built=False, refusal=f"{type(error).__name__}: {error}".splitlines()[0][:120])
    try:
        model = Decoder(module, tiny_tokenizer(), dissect(module), name)
    except HarnessError as error:
        return Examined(refusal=_reason(error))
    outcomes = {} if model.anatomy.opaque else {check: _outcome(name, check) for check in CHECKS}
    return Examined(model.anatomy.layout, outcomes=outcomes)


def _outcome(name: str, check: str) -> str:
    compare, tolerance = CHECKS[check]
    for attention in (None, "eager"):
        try:
            worst = compare(decoder(name, attention=attention))
        except HarnessError as error:
            return f"refused: {_reason(error)}"
        except Exception as error:
            return f"FAILED: {type(error).__name__}: {error}".splitlines()[0][:200]
        if not worst <= tolerance:
            return f"WRONG: {worst:.1e}"
    return "exact"


def _reason(error: HarnessError) -> str:
    """A refusal without the model's name, which the row says."""
    return re.sub(r"^\w+( \(model_type '[^']*'\))?: ", "", str(error))


def main() -> None:
    """Print the table in Markdown, reasons below it, and what is in no table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures by model_type; all of them if none is given")
    chosen = parser.parse_args().names
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    print("| architecture | layout |", " | ".join(CHECKS), "|")
    print("|---" * (2 + len(CHECKS)), "|", sep="")
    kinds: dict[str, Examined] = {}
    reasons: list[str] = []
    for name in chosen or sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]):
        kinds[name] = kind = examine(name)
        if kind.outcomes:
            print(row(name, kind, reasons), flush=True)
    for number, reason in enumerate(reasons, 1):
        print(f"{number}. {reason}")
    print("dense alone:", ", ".join(name for name, kind in kinds.items() if kind.layout and not kind.outcomes))
    for name, kind in kinds.items():
        if kind.built and not kind.layout:
            print(f"| `{name}` | {kind.refusal} |")
    print("not built:", ", ".join(name for name, kind in kinds.items() if not kind.built))


def row(name: str, kind: Examined, reasons: list[str]) -> str:
    """A line of the table; a refusal is added to the reasons, and its number stands in the cell."""
    cells = []
    for outcome in kind.outcomes.values():
        refusal = outcome.removeprefix("refused: ")
        if refusal != outcome:
            if refusal not in reasons:
                reasons.append(refusal)
            outcome = f"refused ({reasons.index(refusal) + 1})"
        cells.append(outcome.replace("|", "/"))
    return f"| `{name}` | {kind.layout} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
