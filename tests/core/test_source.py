"""The closure of imports: what is in it, what is not, and that it is told without importing anything."""

import sys
from pathlib import Path

import pytest

from harness.core.source import of_file, of_modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of which ``closure_a.first`` is asked about."""
    folder = tmp_path / "closure_a"
    files = {
        "__init__.py": '"""A package."""\n',
        "first.py": """
from typing import TYPE_CHECKING
import json, numpy
from closure_a import second
from .deep.third import thing
if TYPE_CHECKING:
    from closure_a.typing_only import Thing
def late():
    import closure_a.late
DATA = "table.yaml"
KERNELS = "kernels"
""",
        "second.py": "import closure_a.first\n",
        "typing_only.py": "",
        "late.py": "",
        "unrelated.py": "",
        "table.yaml": "a: 1\n",
        "other.yaml": "a: 1\n",
        "deep/__init__.py": "",
        "deep/third.py": "from ..fourth import *\nthing = 1\n",
        "fourth.py": "raise SystemExit('this must not run')\n",
        "kernels/add.c": "int add;\n",
        "kernels/add.h": "int add;\n",
        "kernels/notes.txt": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_the_closure_is_what_can_run(package: Path) -> None:
    assert set(of_modules("closure_a.first").files) == {
        "closure_a",
        "closure_a.first",
        "closure_a.first/table.yaml",
        "closure_a.first/add.c",
        "closure_a.first/add.h",
        "closure_a.second",
        "closure_a.deep",
        "closure_a.deep.third",
        "closure_a.fourth",
        "closure_a.late",
    }
    assert not any(name.startswith("closure_a") for name in sys.modules)


@pytest.mark.parametrize("name", ["second.py", "deep/third.py", "late.py", "table.yaml", "kernels/add.h"])
def test_what_is_in_it_moves_the_digest(name: str, package: Path) -> None:
    before = of_modules("closure_a.first").digest
    (package / name).write_text((package / name).read_text() + "\n")
    assert of_modules("closure_a.first").digest != before


@pytest.mark.parametrize("name", ["typing_only.py", "unrelated.py", "other.yaml", "kernels/notes.txt", "new.py"])
def test_what_is_not_in_it_does_not(name: str, package: Path) -> None:
    before = of_modules("closure_a.first").digest
    (package / name).write_text("changed = 1\n")
    assert of_modules("closure_a.first").digest == before


def test_a_copy_elsewhere_has_the_same_digest(package: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(package, tmp_path / "elsewhere" / "deeper" / "closure_a")
    assert of_file(copy / "second.py", "one").digest == of_file(package / "second.py", "one").digest


def test_a_loose_file_counts_with_the_files_that_it_imports_from_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from closure_helper import FACTOR\nfrom closure_absent import x\n")
    (tmp_path / "closure_helper.py").write_text("FACTOR = 1\n")
    before = of_file(tmp_path / "mine.py", "mine.py")
    assert set(before.files) == {"mine.py", "closure_helper"}
    (tmp_path / "closure_helper.py").write_text("FACTOR = 2\n")
    assert of_file(tmp_path / "mine.py", "mine.py").digest != before.digest


def test_an_installed_library_counts_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("import scipy.linalg\nimport torch\n")
    found = of_file(tmp_path / "mine.py", "mine.py")
    assert (set(found.files), found.libraries) == ({"mine.py"}, {"scipy"})
    before = found.digest
    monkeypatch.setattr("harness.core.source._version", lambda _: "another")
    assert found.digest != before


@pytest.mark.parametrize(
    "text",
    [
        "from harness import without_blocks",
        "from harness import without_blocks as out",
        "import harness\nharness.without_blocks",
        "import harness as h\ndef late():\n    return h.without_blocks(1)",
        "from harness import *",
        "import harness.testing\nharness.without_blocks",
    ],
)
def test_a_public_name_of_the_harness_counts_as_its_module(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    files = of_file(tmp_path / "mine.py", "mine.py").files
    assert {"harness.model.surgery", "harness.contract.decoder"} <= set(files)
    assert "harness.results.record" not in files
    assert ("harness.model.training" in files) == ("*" in text)
