"""Whatever a stranger's file raises is a sentence that names the file; what this project raises keeps its traceback."""

import json
import logging
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Harness

RAISES = {
    "KeyError": "raise KeyError('nowhere')",
    "ZeroDivisionError": "1 / 0",
    "AttributeError": "None.nothing",
    "RecursionError": "def f(): return f()\n    f()",
    "Odd": "raise Odd('strange')",
    "Silent": "raise Silent()",
    "ExceptionGroup": "raise ExceptionGroup('two', [ValueError(1), OSError(2)])",
    "SystemExit": "raise SystemExit(0)",
    "StopIteration": "next(iter(()))",
    "ImportError": "import sys; from sys import nothing_of_this_name",
    "RuntimeError": "import torch; torch.ones(2) @ torch.ones(3)",
    "GeneratorExit": "raise GeneratorExit",
    "Own": "raise Own('from the base of all')",
    "CancelledError": "import asyncio; raise asyncio.CancelledError",
    "MemoryError": "raise MemoryError",
    "HarnessError": "raise HarnessError('as this project says it')",
}
"""Statements of a stranger's function, each with a word of the sentence."""

TYPES = """
from harness.core.errors import HarnessError

class Odd(Exception):
    pass

class Own(BaseException):
    pass

class Silent(Exception):
    def __str__(self):
        raise TypeError('not even its text')

"""

TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/test.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{q}}"
doc_to_target: " x"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def own(tmp_path: Path, harness: Harness, tiny: list[object]) -> Callable[..., Any]:
    """Run a task whose YAML has these lines more, and whose functions are these."""

    def run(yaml: str, functions: str, *arguments: object) -> Any:
        folder = tmp_path / "tasks"
        folder.mkdir()
        (folder / "test.jsonl").write_text("".join(json.dumps({"q": f"cat {number}"}) + "\n" for number in range(3)))
        replaced = {line.partition(":")[0] for line in yaml.splitlines() if line[:1].isalpha()}
        kept, drop = [], False
        for line in TASK.replace("FOLDER", str(folder)).splitlines():
            drop = line.partition(":")[0] in replaced if line[:1].isalpha() else drop
            kept += [] if drop else [line]
        (folder / "own.yaml").write_text("\n".join(kept) + "\n" + yaml)
        (folder / "own.py").write_text(TYPES + functions)
        return harness("run", *tiny, "--include_path", folder, "--task", "own", *arguments)

    return run


@pytest.mark.parametrize("raised", RAISES)
def test_whatever_a_metric_raises(raised: str, own: Callable[..., Any]) -> None:
    done = own("process_results: !function own.score\n", f"def score(doc, results):\n    {RAISES[raised]}\n")
    word = {"HarnessError": "as this project says it", "MemoryError": "out of memory"}.get(raised, raised)
    assert word in done.sentence
    if raised != "HarnessError":
        assert "own.py:" in done.sentence
        assert "(score)" in done.sentence or "(f)" in done.sentence


@pytest.mark.parametrize("raised", ["GeneratorExit", "Own", "CancelledError", "StopIteration"])
def test_whatever_the_data_raises(raised: str, own: Callable[..., Any]) -> None:
    sentence = own("process_docs: !function own.f\n", f"def f(docs):\n    {RAISES[raised]}\n").sentence
    assert raised in sentence
    assert "own.py:" in sentence


@pytest.mark.parametrize("command", ["run", "prepare", "check"])
def test_the_data_and_methods_of_other_commands(command: str, harness: Harness, tiny: list[object]) -> None:
    method = f"{_method(RAISES['Own'])}:at=prepare"
    arguments = (method,) if command == "check" else (*tiny, "--task", "tiny_letters", "--method", method)
    done = harness(command, *arguments, *(["--limit", 2] if command == "run" else []))
    assert "Own" in done.out + done.err
    assert "mine.py" in done.out + done.err


@pytest.mark.parametrize(
    ("yaml", "function"),
    [
        ("process_docs: !function own.break_it\n", "break_it"),
        ("doc_to_text: !function own.late\n", "late"),
        ("doc_to_target: !function own.late\n", "late"),
        ("output_type: multiple_choice\ndoc_to_target: 0\ndoc_to_choice: !function own.late\n", "late"),
        ("description: !function own.break_it\n", "own"),
        ("metric_list:\n  - {metric: acc, aggregation: !function own.break_it, higher_is_better: true}\n", "break_it"),
        ("fewshot_config: {samples: !function own.none}\nnum_fewshot: 1\n", "none"),
        ("generation_kwargs: {until: x}\noutput_type: generate_until\nprocess_results: !function own.two\n", "two"),
    ],
)
def test_whichever_function_raises(yaml: str, function: str, own: Callable[..., Any]) -> None:
    functions = """
calls = []
def break_it(*_, **__):
    raise LookupError("here it is")
def none():
    return break_it()
def two(*_, **__):
    return break_it()
def late(doc):
    calls.append(1)
    if len(calls) > 4:
        break_it()
    return ["a", "b"] if len(doc) == 9 else "a"
"""
    sentence = own(yaml, functions, "--gen_kwargs", "max_gen_toks=2").sentence
    assert "own" in sentence
    assert function in sentence or "here it is" in sentence


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("doc_to_text: '{{ q.a.b }}'\n", "UndefinedError"),
        ("doc_to_text: '{{ 1 // (5 - q|length) }}'\n", "own"),
        ("doc_to_target: '{{ q | nofilter }}'\n", "nofilter"),
        ("doc_to_target: ['a']\noutput_type: loglikelihood\n", "own"),
        ("output_type: multiple_choice\ndoc_to_choice: [a, b]\ndoc_to_target: 7\n", "own"),
        ("metric_list:\n  - {metric: acc, aggregation: nonsense, higher_is_better: true}\n", "own"),
        ("filter_list:\n  - {name: x, filter: [{function: nonsense}]}\n", "nonsense"),
        ("filter_list:\n  - {name: x, filter: [{function: regex, regex_pattern: '('}]}\n", "own"),
        ("test_split: nope\n", "KeyError: 'nope'; see test_split: nope, in "),
        ("fewshot_split: nope\nnum_fewshot: 1\n", "see fewshot_split: nope, in "),
        ("fewshot_config: {sampler: nope}\nnum_fewshot: 1\n", "see fewshot_config.sampler: nope, in "),
        ("output_type: nonsense\n", "see output_type: nonsense, in "),
        ("doc_to_txt: a\n", "unexpected keyword argument 'doc_to_txt', in "),
        ("generation_kwargs: [a]\noutput_type: generate_until\n", "see generation_kwargs: ['a'], in "),
        ("generation_kwargs: {until: null}\noutput_type: generate_until\n", "until=None: expected a text"),
        ("generation_kwargs: {max_gen_toks: .inf}\noutput_type: generate_until\n", "is no number: "),
        (
            "generation_kwargs: {until: z, 1: a}\noutput_type: generate_until\n",
            "generation argument of own '1'",
        ),
        ("num_fewshot: two\n", "num_fewshot: two, in "),
        ("num_fewshot: 1.5\n", "num_fewshot=1.5"),
        ("num_fewshot: -1\n", "num_fewshot=-1"),
        ("repeats: two\n", "repeats='two' is not valid: expected a whole number from 1"),
        ("repeats: 0\n", "repeats=0"),
        ("repeats: true\n", "repeats=True"),
        ("metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: maybe}\n", "='maybe' of acc: expected"),
        ("output_type: multiple_choice\n", "output_type: multiple_choice needs doc_to_choice"),
        ("output_type: null\n", "output_type"),
        ("dataset_kwargs: {data_files: {test: nowhere.jsonl}}\n", "data_files: {'test': 'nowhere.jsonl'}, in "),
        ("dataset_kwargs: {data_files: {test: BROKEN}}\n", "its data cannot be read (dataset_path: json, data_files: "),
        ("dataset_kwargs: {data_files: {test: FOLDER/test.jsonl}, foo: 1}\n", "unexpected keyword argument 'foo'"),
        ("dataset_kwargs: text\n", "its data cannot be read (dataset_path: json, dataset_kwargs: text, in "),
        ("custom_dataset: !function own.data\n", "(data)"),
        ("include: nowhere.yaml\n", "own.yaml cannot be read: FileNotFoundError"),
        ("doc_to_text: [\n", "own.yaml cannot be read: ParserError"),
        ("\tdoc_to_text: x\n", "own.yaml cannot be read: ScannerError"),
    ],
)
def test_yaml_that_lm_eval_stumbles_over(
    yaml: str, expected: str, own: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # datasets writes to the stderr of an earlier test
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"q": ')
    yaml = yaml.replace("BROKEN", str(broken)).replace("FOLDER", str(tmp_path / "tasks"))
    sentence = own(yaml, "\ndef data(**_):\n    raise LookupError('no data')\n").sentence
    assert expected in sentence
    assert "harness fetch" not in sentence
    assert "_factory.py" not in sentence


def test_keys_of_several_types(own: Callable[..., Any]) -> None:
    done = own("metadata: {version: 1}\nfewshot_config: {samples: [{1: a, b: c}]}\n", "", "--dry_run")
    assert done.code == 0, done.err


METHOD = '''
from contextlib import contextmanager
from dataclasses import dataclass
from harness import Family, Method
{types}
def fail():
    {body}
{at_import}
@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    """Raises."""
    name = "mine"
    family = Family.PRUNING
    at: str = ""

    def check(self):
        if self.at == "check": fail()

    def prepare(self, model, study):
        if self.at == "prepare": fail()
        return super().prepare(model, study)

    @contextmanager
    def attach(self, model, prepared):
        if self.at == "attach": fail()
        block = model.anatomy.blocks[0].module
        def hook(*_):
            if self.at == "forward": fail()
        handle = block.register_forward_pre_hook(hook)
        yield
        handle.remove()
        if self.at == "restore": fail()
'''


SHAPES = {
    "def attach(self, model, prepared): yield": "Mine.attach must be a context manager",
    "def attach(self, model, prepared): return None": "Mine.attach must be a context manager",
    "@contextmanager\n    def attach(self, model, prepared): pass": "with one yield",
    "@contextmanager\n    def attach(self, model, prepared):\n        if self.at == 'x': yield": "with one yield",
    "@contextmanager\n    def attach(self, model, prepared):\n        yield\n        yield": "with one yield",
    "def prepare(self, model, study): return 5": "Mine.prepare must return Prepared, and returned a int",
    "def prepare(self, model, study): pass": "Mine.prepare must return Prepared, and returned a NoneType",
}


@pytest.mark.parametrize("function", SHAPES)
def test_loose_method_of_another_shape(function: str, harness: Harness, tiny: list[object]) -> None:
    body = METHOD.format(types=TYPES, body="pass", at_import="")
    name = function.partition("def ")[2].partition("(")[0]
    Path("mine.py").write_text(f"{body.replace(f'def {name}', f'def _{name}')}\n    {function}\n")
    sentence = harness("run", *tiny, "--task", "tiny_letters", "--limit", 2, "--method", "./mine.py:Mine").sentence
    assert SHAPES[function] in sentence


def _method(body: str, at_import: str = "") -> str:
    Path("mine.py").write_text(METHOD.format(types=TYPES, body=body, at_import=at_import))
    return "./mine.py:Mine"


_TRIED = [
    *product(
        ["import", "check", "prepare", "attach", "forward", "restore"], ["KeyError", "Silent", "SystemExit", "Own"]
    ),
    *product(["import", "check", "attach"], ["RecursionError", "GeneratorExit", "StopIteration"]),
]


@pytest.mark.parametrize(("at", "raised"), _TRIED)
def test_loose_method_that_raises(at: str, raised: str, harness: Harness, tiny: list[object]) -> None:
    method = _method(RAISES[raised], "fail()" if at == "import" else "")
    sentence = harness("run", *tiny, "--task", "tiny_letters", "--limit", 2, "--method", f"{method}:at={at}").sentence
    assert "mine.py" in sentence
    assert raised in sentence


def test_loose_method_that_is_no_python(harness: Harness, tiny: list[object]) -> None:
    Path("mine.py").write_text("class Mine(:\n")
    assert (
        "mine.py cannot be loaded: SyntaxError"
        in harness("run", *tiny, "--task", "tiny_letters", "--method", "./mine.py:Mine").sentence
    )


@pytest.mark.parametrize("place", ["harness.run.session.evaluate", "harness.measure.shape.ModelShape.of"])
def test_our_own_mistake_keeps_its_traceback(
    place: str, harness: Harness, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours: dict[str, Any] = {"__name__": "harness.run.broken"}
    exec("def broken(*_, **__):\n    return {}['ours']", ours)
    monkeypatch.setattr(place, ours["broken"])
    with pytest.raises(KeyError, match="ours"):
        harness("run", *tiny, "--task", "tiny_letters", "--limit", 2)


def test_our_own_mistake_below_a_loose_method(
    harness: Harness, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method's file is on the way, and the mistake is not in it."""
    method = _method("pass")
    ours: dict[str, Any] = {"__name__": "harness.measure.broken"}
    exec("def broken(*_, **__):\n    return {}['ours']", ours)
    monkeypatch.setattr("harness.evaluate.replay.audit_ratio", ours["broken"], raising=False)
    monkeypatch.setattr("harness.evaluate.observed.Observed._keep", ours["broken"])
    with pytest.raises(KeyError, match="ours"):
        harness("run", *tiny, "--task", "tiny_letters", "--limit", 2, "--method", method)


def test_interrupt_is_no_mistake(own: Callable[..., Any]) -> None:
    done = own("process_results: !function own.score\n", "def score(doc, results):\n    raise KeyboardInterrupt\n")
    assert done.code == 130


NESTED = "[" * 200_000


def test_state_nested_deeply(harness: Harness, tiny: list[object]) -> None:
    Path("state").mkdir()
    Path("state/state.json").write_text(NESTED)
    sentence = harness("run", *tiny, "--task", "tiny_letters", "--method", "dr-llm:state=state", "--limit", 2).sentence
    assert "prepared state in state cannot be read" in sentence
    assert "nested too deeply" in sentence


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--config deep.yaml", "--config deep.yaml"),
        ("--suite deep.yaml", "suite deep.yaml cannot be read"),
        ("--samples deep.json", "nested too deeply"),
        ("--task deep_task.yaml", "deep_task.yaml"),
    ],
)
def test_files_nested_deeply(arguments: str, expected: str, harness: Harness, tiny: list[object]) -> None:
    Path("deep.yaml").write_text(f"tasks: {NESTED[:5000]}")
    Path("deep_task.yaml").write_text(f"task: {NESTED[:5000]}")
    Path("deep.json").write_text(f'{{"a": {NESTED}')
    assert expected in harness("run", *tiny[:2], *arguments.split()).sentence


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_model_files_nested_deeply(name: str, harness: Harness, tiny: list[object], tiny_folder: Path) -> None:
    model = shutil.copytree(tiny_folder, "model")
    (Path(model) / name).write_text(NESTED)
    done = harness("run", *tiny, "--pretrained", model, "--task", "tiny_letters", "--limit", 2)
    assert "model" in done.sentence
