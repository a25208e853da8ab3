"""Whether data is here, told from names alone, is what the library ``datasets`` finds when the hub is out of reach."""

import json
from pathlib import Path

import pytest

from harness.evaluate import availability
from harness.evaluate.availability import Catalogue, State
from harness.evaluate.task_index import scan
from harness.evaluate.tasks import BUNDLED
from tests.conftest import Machine

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue()


def prepare(cache: Path, data_set: str, config: str, digest: str = HASH, named: str | None = None) -> Path:
    folder = cache / data_set / config / "0.0.0" / digest
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"config_name": named or config}))
    return folder


def test_the_configuration_that_the_task_names(cache: Path, catalogue: Catalogue) -> None:
    folder = prepare(cache, "allenai___ai2_arc", "ARC-Easy")
    assert catalogue.summary("arc_easy") == "here"
    assert catalogue.data("arc_easy")["arc_easy"].folder == folder
    assert catalogue.summary("arc_challenge") == "not here"
    (folder / "dataset_info.json").unlink()  # interrupted while it was prepared
    assert catalogue.summary("arc_easy") == "not here"


def test_groups_count_and_tags_are_their_tasks(cache: Path, catalogue: Catalogue) -> None:
    assert catalogue.summary("mmlu") == "not here"
    prepare(cache, "cais___mmlu", "anatomy")
    prepare(cache, "cais___mmlu", "virology")
    assert catalogue.summary("mmlu") == "2 of 57 here"
    assert len(catalogue.data("mmlu")) == 57
    assert catalogue.data("mmlu")["mmlu_anatomy"].source == "cais/mmlu, anatomy"
    prepare(cache, "allenai___ai2_arc", "ARC-Easy")
    assert catalogue.summary("ai2_arc") == "1 of 2 here"  # a tag


def test_bundled_tasks_need_nothing_but_those_on_real_documents(cache: Path, catalogue: Catalogue) -> None:
    real = scan(BUNDLED / "long" / "real_documents")
    assert {catalogue.summary(name) for name in scan(BUNDLED).keys() - real.keys()} == {"bundled"}
    assert {catalogue.summary(name) for name in real} == {"not here"}
    for size in ("1k", "2k", "4k", "8k"):
        prepare(cache, "offline___books_needle", size)
    assert catalogue.summary("books_needle") == "here"  # a tag


def test_a_task_that_is_a_python_class(cache: Path, catalogue: Catalogue) -> None:
    assert catalogue.data("squadv2")["squadv2"].source == "lighteval/squad_v2"
    assert catalogue.data("scrolls_qasper")["scrolls_qasper"].source == "tau/scrolls, qasper"  # its base's path
    assert catalogue.summary("ruler_cwe") == "unknown"  # a function makes its documents


def test_local_files_and_addresses(cache: Path, tmp_path: Path) -> None:
    task = "task: {0}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {1!r}}}}}\n"
    (tmp_path / "rows.jsonl").write_text("{}\n")
    places = {"local": f"{tmp_path}/rows.jsonl", "gone": f"{tmp_path}/none.jsonl", "far": "hf://datasets/a/b/c.jsonl"}
    for name, place in places.items():
        (tmp_path / f"{name}.yaml").write_text(task.format(name, place))
    catalogue = Catalogue(str(tmp_path))
    assert [catalogue.summary(name) for name in places] == ["here", "not here", "not here"]


@pytest.mark.parametrize(
    ("prepared", "config"),
    [
        ([("default", HASH)], None),
        ([("one", HASH), ("two", HASH)], None),  # datasets wants one of them named
        ([("one", HASH), ("two", "f" * 40)], None),
        ([("one", HASH), ("two", HASH)], "two"),
        ([("one", HASH)], "two"),
        ([("one-0123", HASH)], None),  # made with data files, so not the plain data set
        ([], None),
    ],
)
def test_agrees_with_datasets(cache: Path, prepared: list[tuple[str, str]], config: str | None) -> None:
    from datasets.packaged_modules.cache.cache import _find_hash_in_cache

    for name, digest in prepared:
        prepare(cache, "our___some_animals", name, digest, name.partition("-")[0])
    try:
        name, version, digest = _find_hash_in_cache("our/SomeAnimals", config, str(cache), {}, None)
        expected = cache / "our___some_animals" / name / version / digest
    except ValueError:
        expected = None
    assert availability._prepared("our/SomeAnimals", config, {}) == expected


def test_data_files_agree_with_datasets(cache: Path) -> None:
    from datasets.packaged_modules.cache.cache import _find_hash_in_cache

    files = {"data_files": {"test": "rows.csv"}, "header": None, "verification_mode": "no_checks"}
    prepare(cache, "our___animals", availability._config_id(None, files), named="default")
    kwargs = {"data_files": {"test": "rows.csv"}, "header": None}
    name, version, digest = _find_hash_in_cache("our/animals", None, str(cache), kwargs, None)
    assert availability._prepared("our/animals", None, files) == cache / "our___animals" / name / version / digest
    assert availability._prepared("our/animals", None, {"data_files": {"test": "other.csv"}}) is None


def test_folder_names_are_those_of_datasets(catalogue: Catalogue) -> None:
    from datasets.naming import camelcase_to_snakecase

    names = ["ai2_arc", "AIME_2024", "GroundCocoa", "MMLU-SR", "piqaHTTPServer", "C4", "lambada_openai", "GPQAx2Y"]
    assert [availability._snake_case(name) for name in names] == [camelcase_to_snakecase(name) for name in names]


def test_a_broken_definition_is_unknown(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("task: odd\ndataset_path: [1, 2]\n")
    (tmp_path / "torn.yaml").write_text("task: torn\noutput_type: [\n")
    catalogue = Catalogue(str(tmp_path))
    assert catalogue.data("odd")["odd"].state is State.UNKNOWN
    assert catalogue.data("torn")["torn"].state is State.UNKNOWN


@pytest.mark.slow
@pytest.mark.hub
def test_what_is_here_loads(machine: Machine, hub: Path, tiny_folder: Path) -> None:
    states = {"arc_easy": "here", "blimp_passive_1": "here", "race": "not here"}
    rows = [["ls", "tasks", task, "--json"] for task in states]
    plans = [["run", "--task", task, "--pretrained", tiny_folder, "--dry_run"] for task in states]
    listed_and_planned = machine(*rows, *plans, HF_HOME=str(hub))
    for state, listed, planned in zip(states.values(), listed_and_planned[:3], listed_and_planned[3:], strict=True):
        assert [row["data"] for row in listed.json()] == [state]
        assert (planned.code == 0) == (state == "here"), planned.err
