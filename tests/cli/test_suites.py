"""Suites: each task with its own flags, under the ids that the same flags give; refused in a sentence."""

from pathlib import Path

import pytest

from harness.evaluate import suites
from harness.evaluate.availability import Catalogue
from harness.evaluate.task_index import scan
from harness.evaluate.tasks import BUNDLED
from tests.conftest import Harness

OWN = """
summary: two of the tiny tasks
tasks:
  - {task: tiny_choice, num_fewshot: 1, limit: 3}
  - task: tiny_answer
    gen_kwargs: {max_gen_toks: 4}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    return path


def planned(harness: Harness, tiny: list[object], *more: object) -> dict[str, dict]:
    rows = harness("run", *tiny, "--dry_run", "--json", *more).json()
    return {row["task"]: row for row in rows}


def test_every_task_has_its_own_flags(harness: Harness, tiny: list[object], own: Path) -> None:
    rows = planned(harness, tiny, "--suite", own)
    choice, answer = (rows[task]["identity"]["evaluation"] for task in ("tiny_choice", "tiny_answer"))
    assert (choice["num_fewshot"], choice["limit"], choice["limited"]) == (1, 3, True)
    assert (answer["num_fewshot"], answer["limit"], answer["limited"]) == (None, None, False)
    assert (choice["gen_kwargs"], answer["gen_kwargs"]) == (None, {"max_gen_toks": 4})


def test_ids_are_those_of_the_same_flags(harness: Harness, tiny: list[object], own: Path) -> None:
    rows = planned(harness, tiny, "--suite", own)
    choice = planned(harness, tiny, "--task", "tiny_choice", "--num_fewshot", 1, "--limit", 3)
    answer = planned(harness, tiny, "--task", "tiny_answer", "--gen_kwargs", "max_gen_toks=4")
    assert {task: row["id"] for task, row in rows.items()} == {
        "tiny_choice": choice["tiny_choice"]["id"],
        "tiny_answer": answer["tiny_answer"]["id"],
    }


def test_flags_given_win(harness: Harness, tiny: list[object], own: Path) -> None:
    rows = planned(harness, tiny, "--suite", own, "--limit", 2, "--num_fewshot", 0, "--gen_kwargs", "temperature=0")
    choice, answer = (rows[task]["identity"]["evaluation"] for task in ("tiny_choice", "tiny_answer"))
    assert (choice["num_fewshot"], choice["limit"]) == (0, 2)
    assert answer["gen_kwargs"] == {"max_gen_toks": 4, "temperature": 0}
    rows = planned(harness, tiny, "--suite", own, "--samples", '{"tiny_choice": [5]}')
    assert rows["tiny_choice"]["identity"]["evaluation"]["limit"] is None


def test_the_flags_reach_the_run(harness: Harness, tiny: list[object], own: Path) -> None:
    choice, answer = harness("run", *tiny, "--suite", own, "--json").json()
    assert choice["scores"][0]["n"] == 3
    assert answer["scores"][0]["n"] == 24
    assert answer["trace"]["output_tokens"] <= 24 * 4


def test_bundled_suites_name_tasks_that_exist() -> None:
    known = Catalogue().names
    for name in suites.names():
        assert {request.task for request in suites.load(name).tasks} <= known.keys(), name
    assert suites.names() == ["dr-llm", "llm-drop", "long", "pocket", "pocket-long", "quick"]


def test_suites_of_papers_have_the_papers_flags() -> None:
    shots = {request.task: request.num_fewshot for request in suites.load("llm-drop").tasks}
    none = dict.fromkeys(("boolq", "rte", "openbookqa", "piqa"), 0)
    five = dict.fromkeys(("mmlu", "winogrande", "gsm8k"), 5)
    assert shots == none | five | {"hellaswag": 10, "arc_challenge": 25}
    routed = suites.load("dr-llm")
    assert all(request.num_fewshot is None and request.limit is None for request in routed.tasks)
    assert "dart-math" in routed.left_out


def test_pocket_is_the_group_of_that_name() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(BUNDLED), include_defaults=False)
    members = manager.task_index["pocket"].cfg["task"]
    assert [request.task for request in suites.load("pocket").tasks] == members


def test_no_index_takes_a_suite_for_a_task() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(BUNDLED), include_defaults=False)
    places = {str(entry.yaml_path) for entry in manager.task_index.values() if entry.yaml_path}  # tags have no file
    assert places == {str(Path(known.path).resolve()) for known in scan(BUNDLED).values() if known.path}
    assert not any("suites" in place for place in places)


def test_listed(harness: Harness) -> None:
    rows = {row["name"]: row for row in harness("ls", "suites", "--json").json()}
    assert rows["llm-drop"]["paper"] == "arXiv:2406.15786"
    assert "hellaswag" in rows["llm-drop"]["tasks"]
    assert rows.keys() == set(suites.names())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tasks: [arc_easy]\nshots: 5\n", "shots"),
        ("tasks:\n  - {task: arc_easy, num_fewshots: 5}\n", "Did you mean 'num_fewshot'"),
        ("tasks:\n  - {task: arc_easy, num_fewshot: many}\n", "tasks.0.num_fewshot"),
        ("tasks:\n  - {task: arc_easy, limit: 0}\n", "greater than 0"),
        ("tasks: [arc_easy, arc_easy]\n", "arc_easy is listed twice"),
        ("tasks: []\n", "tasks"),
        ("- arc_easy\n", "the file"),
        ("tasks: [\n", "cannot be read"),
        ("tasks: !!python/object/apply:os.system [exit]\n", "cannot be read"),
    ],
)
def test_refused_in_a_sentence(harness: Harness, tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    sentence = harness("run", "--suite", path).sentence
    assert expected in sentence
    assert "bad.yaml" in sentence
    assert "\n" not in sentence


def test_unknown_names(harness: Harness, tiny: list[object], tmp_path: Path) -> None:
    assert "Did you mean 'llm-drop'?" in harness("run", "--suite", "llmdrop").sentence
    assert "none.yaml cannot be read" in harness("run", "--suite", "none.yaml").sentence
    (tmp_path / "typo.yaml").write_text("tasks: [tiny_choice, tiny_leters]\n")
    assert "Did you mean 'tiny_letters'" in harness("run", *tiny, "--suite", "typo.yaml").sentence


def test_not_beside_tasks(harness: Harness) -> None:
    assert "exclude each other" in harness("run", "--suite", "quick", "--task", "arc_easy").sentence
