"""A model is located by folder or by hub name, known by its files, and missed with advice."""

import json
import shutil
from pathlib import Path

import pytest

from harness.core.errors import ModelError
from harness.model import source
from harness.model.source import ModelSource, cached_models, identified, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a file of each kind."""
    folder = tmp_path / "my-model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    names = ("config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja")
    for name in (*names, "modeling_own.py", "pytorch_model.bin", "additional_chat_templates/tool.jinja", "README.md"):
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of one model, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    model = cache / "models--org--small"
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "snapshots" / COMMIT / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    (model / "refs" / "v1").write_text(COMMIT)
    (cache / "datasets--org--data").mkdir()
    (cache / "models--org--torn" / "snapshots").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return cache


def test_a_folder_is_a_model(folder: Path) -> None:
    located = locate(f"{folder}/")
    assert (located.name, located.folder, located.revision, located.loadable) == ("my-model", folder, None, str(folder))
    assert located.fingerprint.startswith("sha256:")


def test_a_folder_may_be_in_the_users_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate("~/my-model").folder == folder


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-00002-of-00002.safetensors",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "modeling_own.py",
        "pytorch_model.bin",
    ],
)
def test_every_file_that_changes_an_output_changes_the_fingerprint(name: str, folder: Path) -> None:
    before = locate(str(folder)).fingerprint
    (folder / name).write_text("changed")
    assert locate(str(folder)).fingerprint != before


def test_a_renamed_file_changes_the_fingerprint(folder: Path) -> None:
    before = locate(str(folder)).fingerprint
    (folder / "merges.txt").rename(folder / "vocab.txt")
    assert locate(str(folder)).fingerprint != before


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", "logo.png"])
def test_a_file_for_people_does_not(name: str, folder: Path) -> None:
    before = locate(str(folder)).fingerprint
    (folder / name).write_text("changed")
    assert locate(str(folder)).fingerprint == before


def test_a_copy_is_the_same_model(folder: Path) -> None:
    copy = shutil.copytree(folder, folder.parent / "copy")
    assert locate(str(copy)).fingerprint == locate(str(folder)).fingerprint


def test_the_bundled_model_has_a_name_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BUNDLED", folder)
    assert (locate("pocket").folder, locate("pocket").name) == (folder, "pocket")


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"my-model is a folder without a config.json: not a Hugging Face model"):
        locate(str(folder))


def test_a_mistyped_path_is_answered_with_the_near_one(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model path '.*my-modle' does not exist. Did you mean '.*/my-model'\?"):
        locate(str(folder.parent / "my-modle"))


def test_a_path_into_nowhere_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model path './no/where' does not exist$"):
        locate("./no/where")


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
@pytest.mark.usefixtures("hub")
def test_a_hub_name_is_found_in_the_cache(revision: str | None) -> None:
    located = locate("org/small", revision)
    assert located == ModelSource("org/small", revision, located.folder, f"hub:org/small@{COMMIT}")
    assert located.folder.name == COMMIT
    assert (located.name, located.loadable) == ("small", "org/small")


@pytest.mark.parametrize(
    ("name", "revision"), [("org/other", None), ("plain", None), ("org/torn", None), ("org/small", "v2")]
)
def test_a_missing_model_is_explained(name: str, revision: str | None, hub: Path) -> None:
    with pytest.raises(ModelError) as caught:
        locate(name, revision)
    message = str(caught.value)
    assert f"model '{name}' is neither a folder here nor in the hub cache {hub}" in message
    assert "the network is switched off" in message
    command = f"hf download {name} --revision {revision}" if revision else f"harness fetch --model {name}"
    assert command in message


@pytest.mark.usefixtures("hub")
def test_a_mistyped_folder_beside_is_suggested(folder: Path) -> None:
    with pytest.raises(ModelError, match="Did you mean 'my-model'"):
        locate("my-modell")


@pytest.mark.parametrize("name", ["two..dots", "two--dashes", "org/name.git", "x" * 120, "dot.", "org/-x"])
@pytest.mark.usefixtures("hub")
def test_a_name_that_the_hub_cannot_have_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(ModelError, match="is neither a folder here nor"):
        locate(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "http://x/y", "a b", "-x", "../x", "org/small@main"])
@pytest.mark.usefixtures("hub")
def test_what_is_neither_name_nor_folder_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        locate(name)


def test_the_cached_models_are_listed(hub: Path) -> None:
    assert cached_models() == {"org/small": hub / "models--org--small" / "snapshots" / COMMIT}


def test_an_adapter_is_known_with_the_model_that_it_is_for(folder: Path) -> None:
    base = shutil.copytree(folder, folder.parent / "base")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = locate(str(folder)).fingerprint
    (base / "model.safetensors").write_text("changed")
    assert locate(str(folder)).fingerprint != before


# ---- models in a subfolder


@pytest.fixture
def nested(folder: Path) -> Path:
    """A folder that holds only a subfolder model."""
    (folder / "README.md").unlink()
    outer = folder.parent / "outer"
    outer.mkdir()
    folder.rename(outer / "inner")
    return outer


def test_a_folder_with_only_a_subfolder_model_is_a_model(nested: Path) -> None:
    located = locate(str(nested), subfolder="inner")
    assert (located.folder, located.loadable) == (nested, str(nested))
    (nested / "inner" / "model.safetensors").write_text("changed")
    assert locate(str(nested), subfolder="inner").fingerprint != located.fingerprint


@pytest.mark.parametrize(
    ("subfolder", "reason"),
    [
        ("", r"outer is a folder without a config.json: not a Hugging Face model; give --model_args subfolder=inner"),
        ("innner", r"without a config.json in its subfolder innner: .*; give --model_args subfolder=inner"),
    ],
)
def test_a_subfolder_model_is_pointed_at(subfolder: str, reason: str, nested: Path) -> None:
    with pytest.raises(ModelError, match=reason):
        locate(str(nested), subfolder=subfolder)


# ---- model arguments


def test_a_tokenizer_folder_counts_by_its_contents(folder: Path) -> None:
    args = {"dtype": "float32", "tokenizer": str(folder), "revision": "main", "subfolder": "x", "offload_folder": "y"}
    before = identified(args)
    assert before.keys() == {"dtype", "tokenizer"}
    copy = shutil.copytree(folder, folder.parent / "copy")
    (copy / "model.safetensors").write_text("weights are no part of a tokenizer")
    assert identified(args | {"tokenizer": str(copy)}) == before
    (folder / "tokenizer.model").write_text("changed")
    assert identified(args) != before


@pytest.mark.usefixtures("hub")
def test_a_tokenizer_of_the_hub_counts_by_its_commit() -> None:
    assert identified({"tokenizer": "org/small"}) == {"tokenizer": f"hub:org/small@{COMMIT}"}


def test_a_tokenizer_that_is_not_there_is_a_sentence(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"--model_args tokenizer=.*my-modle: no such folder. Did you mean '.*my-model'"
    ):
        identified({"tokenizer": str(folder.parent / "my-modle")})


@pytest.mark.parametrize("name", ["peft", "chat_template", "anything"])
def test_any_argument_that_is_a_path_counts_by_its_contents(name: str, folder: Path) -> None:
    before = identified({name: str(folder)})
    (folder / "adapter_model.safetensors").write_text("trained further")
    assert identified({name: str(folder)}) != before
