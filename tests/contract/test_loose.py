"""The files of loose methods: which are kept, under which names, and what is said of the others."""

from pathlib import Path

import pytest

from harness.contract.loose import MAX_FILE, kept, problem_of
from harness.contract.stack import parse
from tests.toys import LOOSE

METHOD = LOOSE.format(name="Idle", label="idle", body="", before="")


def written(folder: Path, name: str = "mine.py", more: str = "") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(METHOD + more)
    return f"{folder / name}:Idle"


def test_the_file_is_kept_as_it_was_loaded(tmp_path: Path) -> None:
    stack = parse(f"{written(tmp_path)}:count=2")
    (tmp_path / "mine.py").write_text("changed since")
    keeps = kept(stack.parts)
    assert {name: file.content.decode() for name, file in keeps.files.items()} == {"mine.py": METHOD}
    assert keeps.notes == []


def test_installed_methods_have_none(tmp_path: Path) -> None:
    assert not kept(parse("layer-drop").parts).files
    imports = "\nfrom harness.methods.pruning.layer_drop import LayerDrop\n"
    written(tmp_path, more=imports)
    assert not kept(parse(f"{tmp_path / 'mine.py'}:LayerDrop").parts).files


def test_one_file_of_two_classes_is_kept_once_and_two_of_a_name_are_not(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b", more="# other\n")
    assert list(kept(parse(f"{first}+{first}:count=2").parts).files) == ["mine.py"]
    keeps = kept(parse(f"{first}+{second}").parts)
    assert keeps.files["mine.py"].content.decode() == METHOD
    assert ["another file of that name" in note for note in keeps.notes] == [True]


def test_what_lies_beside_it_is_said_not_to_be_kept(tmp_path: Path) -> None:
    (tmp_path / "loose_helper.py").write_text("x = 1\n")
    (tmp_path / "table.json").write_text("{}")
    text = written(tmp_path, more="\nTABLE = 'table.json'\ndef late():\n    import loose_helper\n")
    (note,) = kept(parse(text).parts).notes
    assert "loose_helper" in note
    assert "table.json" in note


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("evict.py", b"x = 1\n", None),
        ("my-method.v2.py", "# Größe, 大きさ, ∇θ\r\n\tx = 1\n".encode(), None),
        ("conftest.py", b"", "would run"),
        ("SetUp.py", b"", "would run"),
        ("test_it.py", b"", "would run"),
        ("__init__.py", b"", "would run"),
        (".hidden.py", b"", "its name"),
        ("-rf.py", b"", "its name"),
        ("a b.py", b"", "its name"),
        ("m\u0435thod.py", b"", "its name"),
        ("../up.py", b"", "its name"),
        ("a.py\n", b"", "its name"),
        ("a" * 80 + ".py", b"", "its name"),
        ("a.pyc", b"", "its name"),
        ("big.py", b"#" * (MAX_FILE + 1), "262,145 bytes"),
        ("binary.py", b"\xff\xfe", "no text"),
        ("zero.py", b"x\0", "U+0000"),
        ("escape.py", b"# \x1b[2J", "U+001B"),
        ("trojan.py", "# \u202e".encode(), "U+202E"),
        ("joined.py", "a\u200d = 1".encode(), "U+200D"),
        ("tag.py", "# \U000e0041".encode(), "U+E0041"),
    ],
)
def test_what_can_be_kept(name: str, content: bytes, says: str | None) -> None:
    problem = problem_of(name, content)
    assert (problem is None) if says is None else (says in str(problem))
