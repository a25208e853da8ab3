"""What a task needs and this machine does not have is named with what brings it."""

import re
import tomllib
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.core.errors import TaskError
from harness.evaluate.advice import EXTRAS, advice_on
from harness.evaluate.tasks import Overrides, TaskLoader
from tests.conftest import ROOT


def test_extras_are_offered_under_lm_evals_names() -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: offered[name] for name in EXTRAS} == {name: [f"lm_eval[{name}]"] for name in EXTRAS}
    theirs = {match[1] for line in requires("lm_eval") or () if (match := re.search(r'extra == "([\w-]+)"', line))}
    assert set(EXTRAS) <= theirs


@pytest.mark.parametrize(
    ("error", "extra"),
    [
        (ModuleNotFoundError("No module named 'math_verify'", name="math_verify"), "math"),
        (ModuleNotFoundError("No module named 'antlr4'", name="antlr4"), "math"),
        (ModuleNotFoundError("No module named 'langdetect.x'", name="langdetect.x"), "ifeval"),
        (
            ModuleNotFoundError("please install via pip install lm-eval[multilingual]"),
            "multilingual",
        ),
        (ImportError('install with `pip install lm_eval["longbench"] or `pip install jieba'), "longbench"),
        (AssertionError("pip install lm-eval[math]"), "math"),
        (ModuleNotFoundError("pip install lm_eval[japanese_leaderboard]"), "japanese-leaderboard"),
    ],
)
def test_packages_of_an_extra(error: Exception, extra: str) -> None:
    assert f'pip install "efficiency-harness[{extra}]"' in (advice_on(error) or "")
    wrapped = RuntimeError("a library says it differently")
    wrapped.__cause__ = error
    assert f"[{extra}]" in (advice_on(wrapped) or "")


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'mine'", name="mine"),
        ModuleNotFoundError("No module named 'm'", name="m"),
        ImportError("cannot import name 'x'"),
        KeyError("lm_eval[vllm]"),
        KeyError(None),
    ],
)
def test_anything_else_gets_no_advice(error: Exception) -> None:
    assert advice_on(error) is None


TASK = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/own.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: x
"""


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("metric_list: [{metric: sari_of_nobody, aggregation: mean, higher_is_better: true}]", "'sari_of_nobody'"),
        ("metric_list: [{metric: sari_of_nobody, higher_is_better: true}]", "'sari_of_nobody'"),
        ("metric_list: [{metric: rouge, hf_evaluate: true, aggregation: mean, higher_is_better: true}]", "'rouge'"),
        ("process_docs: !function own.docs", "'bleurt'"),
    ],
)
def test_metric_that_is_not_here(
    yaml: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_metrics: Path
) -> None:
    (tmp_path / "own.jsonl").write_text('{"q": "cat"}\n')
    (tmp_path / "own.py").write_text("def docs(docs):\n    import evaluate\n    evaluate.load('bleurt')\n")
    (tmp_path / "own.yaml").write_text(f"{TASK.format(folder=tmp_path)}{yaml}\n")
    with pytest.raises(TaskError) as refusal:
        TaskLoader(str(tmp_path)).load("own", Overrides())
    for part in (
        f"the metric {expected}",
        "evaluate hub",
        "network is switched off",
        "evaluate.load(",
        str(empty_metrics),
    ):
        assert part in str(refusal.value)


@pytest.fixture
def empty_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No metric's script on this machine, and no network."""
    from evaluate import config

    monkeypatch.setattr(config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr("evaluate.loading.init_dynamic_modules", lambda *_: str(tmp_path / "modules"))
    monkeypatch.setattr("evaluate.loading.HubEvaluationModuleFactory.get_module", _no_network)
    return tmp_path / "modules"


def _no_network(*_: object) -> None:
    raise ConnectionError("no network here")


@pytest.mark.skipif(find_spec("math_verify") is not None, reason="its packages are installed")
def test_task_of_lm_evals_own_that_needs_more() -> None:
    with pytest.raises(TaskError, match=r'efficiency-harness\[math\]"'):
        TaskLoader().load("minerva_math_algebra", Overrides())
