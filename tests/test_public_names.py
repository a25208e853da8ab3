"""What ``harness`` offers to the author of a method: said once for people, type checkers and the interpreter alike."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.contract import registry
from harness.contract.describe import describe
from tests.conftest import ROOT

ENGINES = sorted((ROOT / "harness" / "cli" / "templates" / "engines").iterdir())

DOCUMENTS = {"CONTRIBUTING.md": "EveryOther", "docs/engines/cache.md": "Attended"}
"""Documents with a whole file, and its class."""


def for_checkers(text: str) -> dict[str, str]:
    """The names that the block for type checkers imports, with their modules."""
    (block,) = (node for node in ast.parse(text).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("path", ["harness/__init__.py", "harness/testing/__init__.py"])
def test_type_checkers_and_the_interpreter_find_the_same_names(path: str) -> None:
    package = importlib.import_module(path.removesuffix("/__init__.py").replace("/", "."))
    assert for_checkers((ROOT / path).read_text()) == package._HOMES
    assert sorted(package.__all__) == sorted({*package._HOMES} | {"__version__"} & {*package.__all__})


def test_every_name_is_there_and_listed() -> None:
    assert set(harness.__all__) <= set(dir(harness))
    for name in harness.__all__:
        assert getattr(harness, name) is not None
    with pytest.raises(AttributeError, match="without_block"):
        _ = harness.without_block


def test_no_name_hides_a_room() -> None:
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()} | {
        path.name for path in (ROOT / "harness").iterdir()
    }
    assert not rooms & set(harness.__all__)


@pytest.mark.parametrize(
    "path",
    [
        *ENGINES,
        ROOT / "examples/every-other/src/harness_every_other/method.py",
        ROOT / "CONTRIBUTING.md",
        ROOT / "docs/engines/cache.md",
    ],
    ids=lambda path: path.name,
)
def test_a_methods_file_needs_no_deeper_module(path: Path) -> None:
    lines = [line.strip() for line in path.read_text().splitlines()]
    imports = [line for line in lines if line.startswith(("from harness", "import harness"))]
    assert imports
    assert all(line.startswith("from harness import") for line in imports)


@pytest.mark.parametrize(("page", "name"), DOCUMENTS.items())
def test_a_whole_file_in_a_document_is_a_method(page: str, name: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(next(block for block in blocks if f"class {name}" in block))
    method = registry.from_file(tmp_path / "mine.py", name)
    assert [method.from_args(example) for example in method.examples]
    assert describe(method).summary


def test_the_names_of_the_contract_and_the_mixins_are_light() -> None:
    """Whoever lists methods imports every plugin."""
    light = [
        name
        for name, home in harness._HOMES.items()
        if home.startswith(("harness.contract", "harness.core", "harness.results"))
        or home.endswith((".mixins", ".zeros"))
    ]
    assert {"Method", "Phase", "MethodError", "OnText", "OnLinears", "Zeros", "Presses", "Indices"} <= set(light)
    program = f"import sys, harness; [getattr(harness, name) for name in {light!r}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "lm_eval", "datasets", "numpy"}
    assert not {name.partition(".")[0] for name in done.stdout.split()} & heavy
