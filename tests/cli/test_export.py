"""``harness export``: a model as a method leaves it, read again with the same logits, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from harness.contract.preparation import Preparation
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.model.checkpoints.reader import quantized
from harness.model.layouts import dissect
from harness.model.source import locate
from harness.testing.tiny import tiny_decoder, tiny_model, tiny_tokenizer
from tests.conftest import Harness
from tests.kernels_here import force

IDS = torch.arange(3, 40)[None]


def logits(folder: Path | str) -> torch.Tensor:
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


def attached(method: str, tmp_path: Path, **options: Any) -> torch.Tensor:
    """Logits of the method on the dense products over its own values."""
    decoder, text = (
        force(tiny_decoder("llama", **options), "dense"),
        Study(("The old dog finds a fish. " * 9,), "a text"),
    )
    with torch.inference_mode(), parse(method).applied(decoder, Preparation(States(tmp_path), text), decoder.kernels):
        logits: torch.Tensor = decoder.module(IDS).logits
    return logits


@pytest.mark.parametrize(
    ("method", "layout", "label"),
    [
        ("int4-weight-only:group=16", "pack-quantized", "int4 g16"),
        ("int4-weight-only:bits=3,group=16,symmetric=true,head=true", "pack-quantized", "symmetric int3 g16"),
        ("int8-weight-only:linears=*.mlp.*", "pack-quantized", "int8"),
        ("layer-drop:layers=1+int4-weight-only:group=8,layers=3", "pack-quantized", "int4 g8"),
    ],
)
def test_weights_in_few_bits_come_back_with_the_same_logits(
    method: str, layout: str, label: str, harness: Harness, tmp_path: Path, tiny_folder: Path
) -> None:
    target = tmp_path / "out"
    written = harness("export", method, "--pretrained", tiny_folder, "-o", target, "--json").json()
    assert (written["format"], list(written["number_formats"])) == (layout, [label])
    assert written["method"] == parse(method).label
    assert written["bytes"] == sum(path.stat().st_size for path in target.glob("*.safetensors"))
    assert json.loads((target / "export.json").read_text()) == written
    said: list[str] = []
    source = locate(str(target), say=said.append)
    assert torch.equal(logits(source.folder), attached(method, tmp_path))
    assert any(f"is a checkpoint in {label} ({layout}): its weights run as floats" in line for line in said)
    assert source.rounding is not None
    assert source.rounding.format == label
    assert source.disk == written["bytes"]
    said.clear()
    assert locate(str(target), say=said.append) == source  # it is kept, and still says what it is
    assert len(said) == 1
    assert sum(1 for _ in quantized(target)) == sum(written["number_formats"].values())


@pytest.mark.parametrize(
    ("method", "layout", "dtype"),
    [("int8-dynamic", "int-quantized", torch.int8), ("fp8", "float-quantized", torch.float8_e4m3fn)],
)
def test_rounded_activations_are_stated(
    method: str, layout: str, dtype: torch.dtype, harness: Harness, tmp_path: Path, tiny_folder: Path
) -> None:
    target = tmp_path / "out"
    harness("export", method, "--pretrained", tiny_folder, "-o", target, "--json").json()
    stated = json.loads((target / "config.json").read_text())["quantization_config"]
    (group,) = stated["config_groups"].values()
    assert (stated["format"], group["format"], stated["ignore"]) == (layout, layout, ["lm_head"])
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("token", True)
    index = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    with safe_open(target / index[name], "pt") as file:
        assert file.get_tensor(name).dtype == dtype
    said: list[str] = []
    source = locate(str(target), say=said.append)
    assert "made for rounded activations, and here they stay as they are" in said[-1]
    assert (logits(source.folder) - attached(method, tmp_path)).abs().max() < 0.5


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ("dense", 4),
        ("int4-weight-only:bits=16", 4),
        ("magnitude:sparsity=0.5", 4),
        ("layer-drop:layers=1/2", 2),
        ("layer-drop:layers=0+magnitude:sparsity=0.5", 3),
    ],
)
def test_other_weights_are_an_ordinary_checkpoint(
    method: str, layers: int, harness: Harness, tmp_path: Path, tiny_folder: Path
) -> None:
    target = tmp_path / "out"
    written = harness("export", method, "--pretrained", tiny_folder, "-o", target, "--json").json()
    assert (written["format"], written["number_formats"]) == ("floats", {})
    config = json.loads((target / "config.json").read_text())
    assert config["num_hidden_layers"] == layers
    assert "quantization_config" not in config
    assert torch.equal(logits(target), attached(method, tmp_path))
    assert locate(str(target)).rounding is None


def test_a_tied_head_stays_tied_unless_it_is_packed(harness: Harness, tmp_path: Path) -> None:
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    tiny_tokenizer().save_pretrained(tmp_path / "tied")
    for head in (False, True):
        method, target = f"int8-weight-only:head={str(head).lower()}", tmp_path / f"out-{head}"
        harness("export", method, "--pretrained", tmp_path / "tied", "-o", target, "--json").json()
        assert json.loads((target / "config.json").read_text())["tie_word_embeddings"] is not head
        expected = attached(method, tmp_path, tie_word_embeddings=True)
        assert torch.equal(logits(locate(str(target)).folder), expected)


def test_a_narrower_feed_forward_is_in_the_configuration(harness: Harness, tmp_path: Path, tiny_folder: Path) -> None:
    target = tmp_path / "out"
    harness("export", "ffn-prune", "--pretrained", tiny_folder, "-o", target, "--json").json()
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.config.intermediate_size == dissect(model).blocks[0].mlp.modules[-1].gate_proj.out_features < 48


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "layer-drop:layers=1,unit=attention",
            "input_layernorm.weight out, where a LlamaForCausalLM has it of the shape [32]",
        ),
        ("block-sparse:sparsity=0.5,samples=1,length=16", "which no layout of a checkpoint holds"),
        ("random-skip:executed=0.75,first=1,last=0", "a checkpoint holds weights and a configuration alone"),
        ("streaming", "a checkpoint holds weights and a configuration alone"),
        ("window-attention", "a checkpoint holds weights and a configuration alone"),
        ("skip-decode", "a checkpoint holds weights and a configuration alone"),
        ("ngram", "a checkpoint holds weights and a configuration alone"),
        ("int4-weight-only:group=7", "does not divide"),
        ("int5-weight-only", "unknown method"),
    ],
)
def test_what_no_checkpoint_holds_is_refused(
    method: str, says: str, harness: Harness, tmp_path: Path, tiny_folder: Path
) -> None:
    assert says in harness("export", method, "--pretrained", tiny_folder, "-o", tmp_path / "out").sentence
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_what_was_rounded_before_is_not_forgotten(harness: Harness, tmp_path: Path, tiny_folder: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    harness("export", "int8-weight-only", "--pretrained", tiny_folder, "-o", first, "--json").json()
    written = harness("export", "magnitude:sparsity=0.5", "--pretrained", first, "-o", second, "--json").json()
    assert written["format"] == "floats"
    assert locate(str(second)).rounding == locate(str(first)).rounding is not None
    (second / "export.json").write_text("[]")
    assert locate(str(second)).rounding is None


def test_a_folder_that_is_there_is_left_alone(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert "is there already" in harness("export", "dense", "-o", tmp_path / "out").sentence


def test_an_export_runs_and_says_what_it_is(harness: Harness, tmp_path: Path, tiny: list[object]) -> None:
    target = tmp_path / "out"
    harness("export", "int4-weight-only:group=16", *tiny[:2], "-o", target, "--json").json()
    flags = ["--pretrained", target, *tiny[2:], "-t", "tiny_letters", "-L", 2, "-m", "int8-weight-only", "--json"]
    dense, row = harness("run", *flags, "--kernel", "dense", "--measure", "memory").json()
    assert dense["model"]["rounding"]["format"] == "int4 g16"
    assert dense["memory"]["disk"] == sum(path.stat().st_size for path in target.glob("*.safetensors"))
    assert dense["memory"]["packed_weights"] is None
    assert row["memory"]["packed_weights"] < row["memory"]["weights"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda stated: stated | {"config_groups": None}, "says of no linear layer how it is packed"),
        (lambda stated: stated | {"config_groups": {}}, "does not say how model.layers.0"),
        (
            lambda stated: (
                stated | {"config_groups": {"a": stated["config_groups"]["group_0"] | {"format": "marlin-24"}}}
            ),
            "is stored as marlin-24 of compressed-tensors",
        ),
        (
            lambda stated: (
                stated
                | {
                    "config_groups": {
                        "a": stated["config_groups"]["group_0"] | {"weights": {"num_bits": 4, "type": "float"}}
                    }
                }
            ),
            "its weights are of type float in 4 bits",
        ),
    ],
)
def test_a_layout_that_is_not_read_is_said(
    change: Any, says: str, harness: Harness, tmp_path: Path, tiny_folder: Path
) -> None:
    target = tmp_path / "out"
    harness("export", "int4-weight-only:group=16", "--pretrained", tiny_folder, "-o", target, "--json").json()
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = change(config["quantization_config"])
    (target / "config.json").write_text(json.dumps(config))
    assert says in harness("run", "--pretrained", target, "-t", "pocket_choice", "-L", 1).sentence
