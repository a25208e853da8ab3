"""``--device``: every job of the suite runs where it says; only what is of the CPU alone names the CPU."""

import ast
import json
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contract.decoder import Decoder
from harness.testing.serve import TEXTS, score
from harness.testing.tiny import tiny_decoder
from tests.conftest import ROOT, Harness, pytest_collection_modifyitems, pytest_configure
from tests.outcomes import Outcomes

RECORDS = {
    "tests/toys.py",
    "tests/leaderboard/generated.py",
    "tests/run/test_loading.py",
    "tests/model/weights/test_cuda.py",
    "tests/run/test_spec.py",
}
"""Here ``device`` is a field of a record or of a value, or of a job that is never run."""


def named(tree: ast.AST) -> list[int]:
    """The lines on which a job is given the CPU: a keyword, an entry of a dictionary, or a flag."""
    lines = []
    for node in ast.walk(tree):
        pairs: list[tuple[object, ast.AST]] = []
        if isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        if isinstance(node, ast.Dict):
            pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
        words = node.args if isinstance(node, ast.Call) else getattr(node, "elts", [])
        pairs += [(getattr(flag, "value", None), value) for flag, value in pairwise(words)]
        lines += [
            value.lineno
            for name, value in pairs
            if name in ("device", "--device") and isinstance(value, ast.Constant) and value.value == "cpu"
        ]
    return lines


def marked(tree: ast.Module) -> bool:
    """Whether the file's tests are all of the CPU alone."""
    marks = [
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    return any("mark.cpu(" in ast.unparse(mark) for mark in marks)


def test_a_job_takes_the_device_that_it_is_given() -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tests").rglob("*.py")}
    wrong = {}
    for name in sorted(files.keys() - RECORDS):
        text = files[name].read_text()
        if '"cpu"' in text and not name.startswith("tests/benchmarks/"):
            tree = ast.parse(text)
            wrong |= {name: lines} if (lines := named(tree)) and not marked(tree) else {}
    assert wrong == {}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('Job(device="cpu")', [1]),
        ('{"limit": 1, "device": "cpu"}', [1]),
        ('["--limit", 1,\n "--device", "cpu"]', [2]),
        ('harness("run", "--device", "cpu")', [1]),
        ("Job(device=device)\n{**job, 'device': device}\n('--device', device)\n", []),
    ],
)
def test_a_job_on_the_cpu_is_seen_however_it_is_written(text: str, lines: list[int]) -> None:
    assert named(ast.parse(text)) == lines


class Item:
    """A collected test, as far as its marks go."""

    def __init__(self, mark: pytest.MarkDecorator | None) -> None:
        self.path, self.mark, self.reasons = Path("test_it.py"), mark and mark.mark, []

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self.mark if self.mark and self.mark.name == name else None

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.reasons.append(mark.kwargs["reason"])


def config(**options: object) -> Any:
    return SimpleNamespace(getoption=options.get, pluginmanager=SimpleNamespace(register=lambda _: None))


@pytest.mark.parametrize(
    ("device", "of_the_cpu", "for_a_gpu"),
    [
        (None, [], ["for a GPU: give --device cuda; --device cpu tries what can be"]),
        ("cpu", [], []),
        ("cuda:0", ["on a CPU alone: the kernels are in C"], []),
    ],
)
def test_what_a_device_has_no_part_in_is_skipped_with_the_reason(
    device: str | None, of_the_cpu: list[str], for_a_gpu: list[str]
) -> None:
    plain, cpu, gpu = Item(None), Item(pytest.mark.cpu("the kernels are in C")), Item(pytest.mark.gpu)
    pytest_collection_modifyitems(config(device=device), [plain, cpu, gpu])
    assert (plain.reasons, cpu.reasons, gpu.reasons) == ([], of_the_cpu, for_a_gpu)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda", "--device cuda: .+; try --device cpu"),
        ("gpu", "--device gpu: expected cpu, cuda, cuda:0, ... or mps"),
        ("cuda:9", "--device cuda:9: .+; try --device cpu"),
    ],
)
def test_a_device_that_is_not_here_is_a_sentence(device: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(pytest.UsageError, match=says):
        pytest_configure(config(device=device))


def test_the_checks_feed_a_model_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class FedError(Exception):
        """Enough was seen: a model without values cannot run."""

    def look(module: Any, args: tuple[Any, ...]) -> None:
        raise FedError(str(args[0].device))

    decoder = tiny_decoder("llama", device="meta")
    decoder.module.register_forward_pre_hook(look)
    monkeypatch.setattr(Decoder, "serving", lambda *_: nullcontext())  # autocast knows no such device
    with pytest.raises(FedError, match="meta"):
        score(decoder, TEXTS, padding=1)


def test_a_check_on_a_device_that_is_not_here_is_a_sentence(harness: Harness) -> None:
    assert (
        harness("check", "dense", "--device", "tpu").sentence == "--device tpu: expected cpu, cuda, cuda:0, ... or mps"
    )


def test_outcomes_are_whole_after_every_test(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path / "outcomes.json")

    def ran(name: str, **phases: tuple[str, Any]) -> list[dict[str, Any]]:
        for when in ("setup", "call", "teardown"):
            if when != "call" or "setup" not in phases:
                outcome, why = phases.get(when, ("passed", None))
                outcomes.pytest_runtest_logreport(
                    pytest.TestReport(name, ("", None, ""), {}, outcome, why, when, duration=0.5)
                )
        return json.loads(outcomes.path.read_text())

    assert ran("passes") == [{"name": "passes", "outcome": "passed", "seconds": 1.5}]
    ran("skipped", setup=("skipped", ("file", 1, "Skipped: no card")))
    ran("fails", call=("failed", "not equal"))
    rows = ran("breaks", teardown=("failed", "a fixture's end"))
    assert [(row["outcome"], row.get("why")) for row in rows[1:]] == [
        ("skipped", "Skipped: no card"),
        ("failed", "not equal"),
        ("error", "a fixture's end"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["outcomes.json"]
