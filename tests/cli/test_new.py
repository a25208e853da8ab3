"""``harness new`` writes a package that works as written, and nothing that would be in anybody's way."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from harness.cli.new import _ENGINES as ENGINES
from harness.contract import registry
from harness.contract.describe import describe
from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from harness.testing.subject import study_of
from harness.testing.tiny import tiny_decoder

FAMILIES = [*(family.value for family in Family if family is not Family.BASELINE), "kv-cache"]


def load(folder: Path, package: str, class_name: str) -> type[Method]:
    return registry.from_file(folder / "src" / package / "method.py", class_name)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_a_package_with_one_method(harness, tmp_path, family):
    done = harness("new", "my-idea", "--family", family)
    assert done.code == 0, done.err
    folder = tmp_path / "my-idea"
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    package = "src/harness_my_idea"
    assert written == [
        "README.md",
        "pyproject.toml",
        f"{package}/__init__.py",
        f"{package}/method.py",
        "tests/test_method.py",
    ]
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["harness.methods"] == {"my-idea": "harness_my_idea.method:MyIdea"}
    method = load(folder, "harness_my_idea", "MyIdea")
    description = describe(method)
    assert (description.name, description.family) == ("my-idea", family)
    assert "START HERE" in description.sections["How"]
    assert all(parameter.text for parameter in description.parameters)
    assert not any("$" in path.read_text() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_style_is_ours(harness, tmp_path, engine):
    harness("new", "my-idea", "--family", "pruning", "--engine", engine)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "my-idea"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_method_does_something_and_restores(harness, tmp_path, engine, architecture):
    harness("new", "my-idea", "--family", "pruning", "--engine", engine)
    method = load(tmp_path / "my-idea", "harness_my_idea", "MyIdea")
    decoder, ids = tiny_decoder(architecture), torch.arange(3, 15)[None]
    logits = []
    with torch.no_grad():
        dense = decoder.module(ids).logits
        for settings in (method.examples[-1], method.neutral):
            if settings is not None and not method.input_dependent and Phase.PREFILL in method.phases:
                made = method.from_args(settings)
                with made.attach(decoder, made.prepare(decoder, study_of([made], decoder))):
                    logits.append(decoder.module(ids).logits)
        assert torch.equal(decoder.module(ids).logits, dense)
    assert [torch.equal(each, dense) for each in logits] == [False, True][: len(logits)]


def test_a_family_of_ones_own_is_said_to_be_new(harness):
    assert "a family of your own" in harness("new", "my-idea", "-f", "kv-cache").out
    assert "a family of your own" not in harness("new", "my-other-idea", "-f", "pruning").out


def test_another_folder_may_be_given_and_be_there(harness, tmp_path):
    (tmp_path / "here").mkdir()
    assert "pip install --editable here" in harness("new", "my-idea", "-f", "pruning", "--output", "here").out
    assert (tmp_path / "here" / "pyproject.toml").is_file()


def test_nothing_is_overwritten(harness, tmp_path):
    (tmp_path / "my-idea").mkdir()
    (tmp_path / "my-idea" / "notes.txt").write_text("mine")
    assert "my-idea is there already and not empty" in harness("new", "my-idea", "-f", "pruning").sentence
    assert [path.name for path in (tmp_path / "my-idea").iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("mine")
    assert "file is there already" in harness("new", "my-idea", "-f", "pruning", "-o", "file").sentence
    assert "cannot be written" in harness("new", "my-idea", "-f", "pruning", "-o", "file/within").sentence


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["MyIdea", "-f", "pruning"], "'MyIdea' is no name for a method.*such as every-other"),
        (["my_idea", "-f", "pruning"], "is no name"),
        (["../idea", "-f", "pruning"], "is no name"),
        (["a" * 31, "-f", "pruning"], "30 characters at most"),
        (["layer-drop", "-f", "pruning"], "a method 'layer-drop' already \\(built in\\)"),
        (["method", "-f", "pruning"], "would be Method, which means something else"),
        (["none", "-f", "pruning"], "would be None, which means something else"),
        (["my-idea", "-f", "prunning"], "unknown family 'prunning'. Did you mean 'pruning'"),
        (["my-idea", "-f", "baseline"], "the baseline is dense"),
        (["my-idea", "-f", "pruning", "-e", "surgry"], "unknown engine 'surgry'. Did you mean 'surgery'"),
        (["my-idea", "-f", "KV cache"], "'KV cache' is no name for a family.*such as kv-cache"),
    ],
)
def test_nonsense_is_refused_and_nothing_written(harness, tmp_path, arguments, says):
    import re

    assert re.search(says, harness("new", *arguments).sentence)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_method_passes_the_checks(harness, tmp_path, engine):
    harness("new", "my-idea", "--family", "pruning", "--engine", engine)
    from harness.testing import checks_for, run

    method = load(tmp_path / "my-idea", "harness_my_idea", "MyIdea")
    # what it takes by the clock is measured of the built-in methods of the same engines
    results = list(run(check for check in checks_for(method, ("llama",)) if check.name != "saves-measurably"))
    assert len(results) > 15
    assert not [f"{result.name}: {result.message}" for result in results if not result.ok]
