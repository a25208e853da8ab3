"""A method whose family the harness does not know works in every command."""

from pathlib import Path

import pytest

from harness.testing.checks import contract
from harness.testing.subject import Subject
from tests.conftest import Harness

LOOSE = '''"""One file."""
from dataclasses import dataclass
from harness import Method
from harness.model.surgery import without_branches

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    """Drop an MLP."""

    name = "mine"
    family = "kv-cache"

    def attach(self, model, prepared):
        """Run without it."""
        return without_branches(model, mlp=[1])
'''


@pytest.fixture
def loose(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(LOOSE)
    return "./mine.py:Mine"


def test_it_is_shown_and_checked(harness: Harness, loose: str) -> None:
    assert "mine · kv-cache" in harness("show", loose).out
    contract.declares_itself(Subject.of(loose))


def test_it_is_run_alone_and_stacked(harness: Harness, loose: str, tiny: list[object]) -> None:
    methods = ("--method", loose, "--method", f"{loose}+layer-drop:layers=2")
    records = harness("run", *tiny, "--tasks", "tiny_letters", "--limit", 2, "--json", *methods).json()
    assert [record["method"]["family"] for record in records] == ["baseline", "kv-cache", "kv-cache+pruning"]
    assert {row["method"] for row in harness("ls", "runs", "--json").json()} >= {
        "mine",
        "mine+layer-drop:count=1,layers=2",
    }
