"""Tasks are found by every kind of name, refused in sentences, and fingerprinted by all that makes a prompt."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import TaskError, UnknownNameError
from harness.evaluate import tasks as tasks_module
from harness.evaluate.task_index import Known
from harness.evaluate.tasks import LoadedTask, Overrides, TaskLoader

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
training_split: train
test_split: test
fewshot_split: train
output_type: multiple_choice
process_docs: !function utils.process
doc_to_text: !function utils.text
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
def process(documents):
    return documents.map(lambda document: {"question": clean(document["question"])})

def text(document):
    return f"Q: {clean(document['question'])}"

def clean(text):
    return text.strip()
"""
DOCUMENTS = [{"question": f" is {number} odd", "answer": 1 - number % 2} for number in range(8)]

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few names in the place of lm-eval's thousands, which would have to be scanned for."""
    names = {"arc_easy": Known("TASK", "nowhere.yaml", []), "arc_challenge": Known("TASK", "nowhere.yaml", [])}
    monkeypatch.setattr(tasks_module, "known_names", lambda: names)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a folder with a task "mine" whose prompts come from functions."""

    def write(folder: str = "tasks", utils: str = UTILS, documents: list[Any] = DOCUMENTS, yaml: str = "") -> Path:
        root = tmp_path / folder
        data = tmp_path / "data" / folder  # not beside the task: its place is a part of the task's definition
        for path in (root, data):
            path.mkdir(parents=True, exist_ok=True)
        (data / "train.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS[:4]))
        (data / "test.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
        (root / "utils.py").write_text(utils)
        (root / "mine.yaml").write_text(TASK.format(name="mine", folder=data) + yaml)
        return root

    return write


def load(name: str, include_path: Path | None = None, **overrides: Any) -> LoadedTask:
    return TaskLoader(include_path and str(include_path)).load(name, Overrides(**overrides))


# ---- names


@pytest.mark.parametrize(
    ("requested", "found"),
    [
        (["tiny_choice"], ["tiny_choice"]),
        (["tiny_group"], ["tiny_group"]),
        (["tiny_l*"], ["tiny_last", "tiny_letters"]),
        (["tiny_[at]*"], ["tiny_answer", "tiny_text"]),
        (["arc_*"], ["arc_challenge", "arc_easy"]),
        (["tiny_text", "tiny_choice", "tiny_text", "tiny_t*"], ["tiny_text", "tiny_choice"]),
        (["pocket_math"], ["pocket_math"]),
    ],
)
def test_names_and_globs_are_resolved(requested: list[str], found: list[str], tiny_tasks: Path) -> None:
    assert TaskLoader(str(tiny_tasks)).resolve(requested) == found


def test_a_folder_is_every_task_in_it(tiny_tasks: Path) -> None:
    names = TaskLoader().resolve([str(tiny_tasks)])
    assert names == sorted(str(path) for path in tiny_tasks.glob("*.yaml"))
    assert len(names) == 6


def test_a_path_is_a_task(tiny_tasks: Path) -> None:
    path = str(tiny_tasks / "tiny_text.yaml")
    assert TaskLoader().resolve([path]) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_choices", r"unknown task 'tiny_choices'. Did you mean 'tiny_choice'.* `harness ls tasks`"),
        ("arc_eazy", "Did you mean 'arc_easy'"),
        ("nothing_*", "unknown task 'nothing_*'"),
        ("nowhere.yaml", "unknown task 'nowhere.yaml'"),
        ("", "unknown task ''"),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str, tiny_tasks: Path) -> None:
    with pytest.raises(UnknownNameError, match=message.replace("_*'", r"_\*'")):
        TaskLoader(str(tiny_tasks)).resolve([name])


def test_a_name_that_is_no_text_is_refused(write: Write) -> None:
    folder = write()
    (folder / "number.yaml").write_text("task: 2024\n")
    with pytest.raises(TaskError, match=r"--include_path .*: a task there has a name that is not text"):
        TaskLoader(str(folder))


def test_every_name_has_its_kind(tiny_tasks: Path) -> None:
    kinds = TaskLoader(str(tiny_tasks)).names()
    assert [kinds[name] for name in ("tiny_text", "tiny_group", "pocket_math", "arc_easy")] == [
        "task",
        "group",
        "task",
        "task",
    ]


def test_the_users_task_wins_over_a_bundled_one(write: Write) -> None:
    folder = write()
    text = (folder / "mine.yaml").read_text()
    (folder / "mine.yaml").write_text(text.replace("task: mine", "task: pocket_math"))
    assert load("pocket_math", folder).tasks["pocket_math"].config.dataset_path == "json"


def test_a_missing_include_path_is_refused() -> None:
    with pytest.raises(TaskError, match="--include_path nowhere: no such folder"):
        TaskLoader("nowhere")


# ---- loading


def test_a_task_is_loaded(tiny_tasks: Path) -> None:
    loaded = load("tiny_choice", tiny_tasks)
    assert list(loaded.tasks) == ["tiny_choice"]
    assert loaded.objects == list(loaded.tasks.values())
    assert len(list(loaded.documents(loaded.tasks["tiny_choice"], None, None))) == 24


def test_a_group_is_handed_over_whole(tiny_tasks: Path) -> None:
    loaded = load("tiny_group", tiny_tasks)
    assert list(loaded.tasks) == ["tiny_choice", "tiny_letters"]
    assert [group.name for group in loaded.objects] == ["tiny_group"]


def test_a_group_of_groups_is_handed_over_by_the_outermost(write: Write) -> None:
    folder = write()
    (folder / "outer.yaml").write_text("group: outer\ntask: [inner]\n")
    (folder / "inner.yaml").write_text("group: inner\ntask: [mine]\n")
    loaded = load("outer", folder)
    assert [group.name for group in loaded.objects] == ["outer"]
    assert list(loaded.tasks) == ["mine"]


def test_a_tag_is_its_tasks(write: Write) -> None:
    folder = write(yaml="tag: some")
    (folder / "yours.yaml").write_text("include: mine.yaml\ntask: yours\n")
    loaded = load("some", folder)
    assert list(loaded.tasks) == ["mine", "yours"]
    assert loaded.objects == list(loaded.tasks.values())


def test_a_path_is_loaded_from_anywhere(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write())
    assert list(load("mine.yaml").tasks) == ["mine"]


@pytest.mark.parametrize(
    ("limit", "samples", "questions"),
    [
        (3, None, [0, 1, 2]),
        (0.25, None, [0, 1]),
        (100, None, list(range(8))),
        (None, {"mine": [1, 6]}, [1, 6]),
        (None, {"other": [1]}, list(range(8))),
    ],
)
def test_the_documents_are_those_that_will_be_scored(
    limit: float | None, samples: dict[str, list[int]] | None, questions: list[int], write: Write
) -> None:
    loaded = load("mine", write())
    asked = [document["question"] for document in loaded.documents(loaded.tasks["mine"], limit, samples)]
    assert asked == [f"is {number} odd" for number in questions]


def test_a_document_that_is_not_there_is_refused(write: Write) -> None:
    with pytest.raises(TaskError, match="--samples: mine has 8 documents, from 0 to 7"):
        load("mine", write()).fingerprint(None, {"mine": [0, 8]})


@pytest.mark.parametrize(
    ("given", "asked", "shots"), [(None, None, 0), (None, 3, 3), (2, None, 2), (2, 3, 3), (2, 0, 0), (0, 3, 0)]
)
def test_shots_are_set_as_lm_eval_sets_them(given: int | None, asked: int | None, shots: int, write: Write) -> None:
    yaml = "" if given is None else f"num_fewshot: {given}\n"
    task = load("mine", write(yaml=yaml), num_fewshot=asked).tasks["mine"]
    assert task.config.num_fewshot == shots


def test_generation_arguments_are_added_where_text_is_generated(tiny_tasks: Path) -> None:
    loader = TaskLoader(str(tiny_tasks))
    overrides = Overrides(gen_kwargs={"max_gen_toks": 3})
    generation = loader.load("tiny_answer", overrides).tasks["tiny_answer"].config.generation_kwargs
    assert (generation["max_gen_toks"], generation["until"]) == (3, ["e"])
    assert loader.load("tiny_choice", overrides).tasks["tiny_choice"].config.generation_kwargs is None


# ---- what cannot be loaded


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "utils.py").write_text("1 / 0"), "ZeroDivisionError: division by zero"),
        (lambda folder: (folder / "utils.py").write_text("def"), "SyntaxError"),
        (lambda folder: (folder / "utils.py").write_text(""), "AttributeError: .* has no function 'process'"),
        (lambda folder: (folder / "utils.py").unlink(), "ImportError|AttributeError"),
        (lambda folder: (folder / "utils.py").write_text(UTILS.replace("def clean", "def dirty")), "NameError"),
    ],
)
def test_a_broken_definition_is_refused_in_a_sentence(change: Callable[[Path], Any], reason: str, write: Write) -> None:
    folder = write()
    change(folder)
    with pytest.raises(TaskError, match=rf"task 'mine' cannot be loaded: ({reason})"):
        load("mine", folder)


def test_a_file_that_is_no_task_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("colour: red\n")
    with pytest.raises(TaskError, match=r"task '.*a.yaml' cannot be loaded: "):
        load(str(tmp_path / "a.yaml"))


def test_a_group_of_tasks_that_are_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("group: g\ntask: [nowhere_at_all]\n")
    with pytest.raises(TaskError, match="task 'g' cannot be loaded: "):
        load("g", tmp_path)


def test_missing_data_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: some-org/some-data\ndataset_name: part-one\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: x\ndoc_to_target: y\n"
    )
    with pytest.raises(TaskError) as caught:
        load("far", tmp_path)
    message = str(caught.value)
    assert "task 'far': its data set some-org/some-data, part-one is not in the cache" in message
    assert str(tmp_path / "cache") in message
    assert "the network is switched off" in message
    assert "harness fetch far" in message


# ---- fingerprints


def fingerprint(folder: Path, limit: float | None = None, samples: Any = None, **overrides: Any) -> str:
    return load("mine", folder, **overrides).fingerprint(limit, samples)


def test_a_configuration_has_code_by_its_source_and_nothing_by_its_address(write: Write) -> None:
    folder = write()
    loaded = load("mine", folder)
    configuration = loaded.configurations()["mine"]
    assert configuration["process_docs"] == UTILS.split("\n\n")[0].lstrip() + "\n"
    assert configuration["fewshot_config"]["process_docs"] == configuration["process_docs"]
    loaded.tasks["mine"].config.doc_to_text = partial(print, object())
    text = json.dumps(loaded.configurations())
    assert "built-in function print" in text
    assert " at 0x" not in text
    assert configuration == load("mine", folder).configurations()["mine"]


def test_the_fingerprint_is_the_same_when_loaded_again(write: Write) -> None:
    assert fingerprint(write()) == fingerprint(write())


CHANGES: dict[str, dict[str, Any]] = {
    "a document": {"documents": [{"question": "is 9 odd", "answer": 0}, *DOCUMENTS[1:]]},
    "an answer": {"documents": [DOCUMENTS[0] | {"answer": 0}, *DOCUMENTS[1:]]},
    "the order of documents": {"documents": DOCUMENTS[::-1]},
    "one document fewer": {"documents": DOCUMENTS[:-1]},
    "the prompt's function": {"utils": UTILS.replace("Q:", "Question:")},
    "what the prompt's function calls": {"utils": UTILS.replace(".strip()", ".strip().upper()")},
    "the task's text": {"yaml": 'target_delimiter: ": "\n'},
    "the metric": {"yaml": "repeats: 2\n"},
    "the task's version": {"yaml": "metadata: {version: 2}\n"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_makes_a_score_changes_the_fingerprint(what: str, write: Write) -> None:
    before = fingerprint(write())
    assert fingerprint(write(**CHANGES[what])) != before


HELPED = """
import os, sys
sys.path.insert(0, os.path.dirname(__file__))
from fingerprint_helper import MARK
"""


def test_a_module_that_the_tasks_code_imports_changes_the_fingerprint(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = write(utils=HELPED + UTILS)
    (folder / "fingerprint_helper.py").write_text("MARK = 1\n")
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    (folder / "fingerprint_helper.py").write_text("MARK = 2\n")
    assert fingerprint(folder) != before


def test_a_helper_module_that_fails_is_a_sentence(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "fingerprint_helper", raising=False)
    folder = write(utils=HELPED + UTILS)
    (folder / "fingerprint_helper.py").write_text("import a_library_that_is_not_here\n")
    with pytest.raises(TaskError, match=r"task 'mine' cannot be loaded: .*a_library_that_is_not_here"):
        load("mine", folder)


@pytest.mark.parametrize(
    "change", [{"num_fewshot": 1}, {"limit": 7}, {"limit": 0.5}, {"samples": {"mine": [1]}}], ids=str
)
def test_what_is_asked_for_changes_the_fingerprint(change: dict[str, Any], write: Write) -> None:
    folder = write()
    assert fingerprint(folder, **change) != fingerprint(folder)


def test_an_example_for_the_prompt_changes_the_fingerprint_where_there_are_examples(
    write: Write, tmp_path: Path
) -> None:
    folder = write()
    before = [fingerprint(folder, num_fewshot=shots) for shots in (0, 2)]
    train = tmp_path / "data" / "tasks" / "train.jsonl"
    train.write_text(train.read_text().replace("is 1 odd", "is 11 odd"))
    after = [fingerprint(folder, num_fewshot=shots) for shots in (0, 2)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_metadata_beyond_the_version_leaves_the_fingerprint(write: Write) -> None:
    folder = write()
    loaded = TaskLoader(str(folder), {"pretrained": "elsewhere"}).load("mine", Overrides())
    assert loaded.fingerprint(None, None) == fingerprint(folder)


PRINT = """
import sys
from harness.evaluate import tasks
tasks.known_names = dict
for name in ("mine", "pocket_choice"):
    print(tasks.TaskLoader(sys.argv[1]).load(name, tasks.Overrides()).fingerprint(20, None))
"""


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_every_process(write: Write) -> None:
    utils = "NAMES = {'a', 'bb', 'ccc'}\n" + UTILS
    folder = write(utils=utils, yaml="generation_kwargs: {kinds: !!set {a, bb, ccc}}\n")
    here = [TaskLoader(str(folder)).load(name, Overrides()).fingerprint(20, None) for name in ("mine", "pocket_choice")]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", PRINT, str(folder)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == here


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ({"a", "bb", "ccc"}, {"a", "bb", "ddd"}),
        (frozenset(range(50)), frozenset(range(51))),
        (test_a_task_is_loaded, test_a_tag_is_its_tasks),
        (LoadedTask, TaskLoader),
        (int, str),
        (b"a", b"b"),
        (len, max),
    ],
)
def test_what_json_does_not_have_is_told_apart(value: Any, other: Any) -> None:
    assert tasks_module._digest([value]) == tasks_module._digest([value]) != tasks_module._digest([other])


def test_an_objects_place_in_memory_is_no_part_of_it() -> None:
    assert tasks_module._digest(type("Thing", (), {})()) == tasks_module._digest(type("Thing", (), {})())
