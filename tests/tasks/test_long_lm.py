"""The long YAML through lm-eval itself: every task loads, asks and scores as its documents say; none is ever cut."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

import harness.tasks
from harness.evaluate import suites
from harness.evaluate.availability import Catalogue, State
from harness.evaluate.task_index import scan
from harness.tasks.long import lm
from harness.tasks.long.counting import counter
from tests.conftest import Harness

TASKS = Path(harness.tasks.__path__[0])
POCKET = str(TASKS / "pocket" / "model")
LENGTHS = {"512": 512, "1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192}
NAMES = scan(TASKS / "long")
GENERATED = [name for name in NAMES if name.startswith(("long_", "pocket_long_")) and NAMES[name].kind != "TAG"]
REAL = [name for name in NAMES if NAMES[name].kind != "TAG" and name not in GENERATED]
PATHS = {name: Path(str(NAMES[name].path)) for name in [*GENERATED, *REAL]}


def config(name: str) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(PATHS[name], resolve_func=False)


@pytest.mark.parametrize("name", GENERATED)
def test_a_task_is_its_kind_at_its_length(name: str) -> None:
    given = config(name)
    form, _, length = name.rpartition("_")
    assert given["metadata"]["tokens"] == LENGTHS[length]
    assert set(given["tag"]) == {form, f"{form.split('_')[0]}_{length}".replace("pocket_", "pocket_long_"), "long"} or (
        name.startswith("pocket") and set(given["tag"]) == {form, f"pocket_long_{length}", "pocket_long"}
    )
    assert 0 <= given["metadata"]["chance"] < 1
    if given["output_type"] == "generate_until":
        kind = lm.KINDS[given["dataset_kwargs"]["kind"]]
        assert given["generation_kwargs"]["max_gen_toks"] <= kind.answer_tokens


def test_every_form_has_every_length() -> None:
    forms = {name.rpartition("_")[0] for name in GENERATED}
    assert len(forms) == 14
    for form in forms:
        lengths = {name.rpartition("_")[2] for name in GENERATED if name.rpartition("_")[0] == form}
        assert lengths == (set(LENGTHS) - ({"4k", "8k"} if form.startswith("pocket") else set()))


def test_the_suites_are_all_of_them() -> None:
    named = {suite: {request.task for request in suites.load(suite).tasks} for suite in ("long", "pocket-long")}
    assert named["long"] | named["pocket-long"] == set(GENERATED)
    assert not named["long"] & named["pocket-long"]


class Oracle(LM):
    """Knows every answer."""

    def loglikelihood(self, requests: Any) -> Any:
        return [(self._right(each) - 1.0, self._right(each)) for each in requests]

    def _right(self, request: Any) -> bool:
        """One space before the answer, as in the text: another would be another token."""
        return request.args[1] == f" {request.doc['answers'][0]}"

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise AssertionError

    def generate_until(self, requests: Any) -> Any:
        return [f" {', '.join(each.doc['answers'])}" for each in requests]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "SIZES", {"train": 1, "validation": 1, "test": 2})


@pytest.mark.usefixtures("few", "no_survey")
def test_lm_eval_itself_asks_and_scores_every_kind() -> None:
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"pretrained": POCKET})
    tasks = manager.load(["long_512", "pocket_long_512"])["tasks"]
    assert len(tasks) == 14
    for task in tasks.values():
        assert len(task.test_docs()) == 2
        assert len(task.training_docs()) == 1
    results = simple_evaluate(Oracle(), tasks=list(tasks.values()), task_manager=manager, bootstrap_iters=0)["results"]
    for name, scores in results.items():
        assert scores.get("acc,none", scores.get("recall,none")) == 1.0, name


@pytest.mark.usefixtures("few")
def test_lengths_are_those_of_the_models_tokenizer() -> None:
    count = counter(pretrained=POCKET)
    for metadata in ({"pretrained": POCKET}, {"pretrained": "another", "tokenizer": POCKET}):
        documents = lm.data("keys", 1024, **metadata, dtype="float32", version=1.0)["test"]
        for document in documents:
            assert 0.94 * 1024 < count(document["context"] + document["question"]) <= 1024 - 16
    by_letters = lm.data("keys", 1024)["test"][0]
    assert by_letters["context"] != documents[0]["context"]


def test_a_longer_task_than_the_model_has_positions_for_is_refused_before_it_is_read(harness: Harness) -> None:
    done = harness("run", "--task", "long_needle_4k", "--limit", 2)
    assert "long_needle_4k: a document has 4,096 tokens with its answer, and the model has 2,048" in done.sentence
    done = harness("run", "--task", "long_512,long_8k", "--limit", 2, "--dry_run")
    assert "long_8k: a document has 8,192 tokens" in done.sentence
    done = harness("run", "--task", "pocket_long_keys_1k", "--model_args", "max_length=1000", "--limit", 2)
    assert "the model has 1,000 positions (max_length)" in done.sentence


@pytest.mark.parametrize("output_type", ["generate_until", "loglikelihood"])
def test_a_document_longer_than_it_says_is_refused_and_not_cut(
    harness: Harness, tmp_path: Path, output_type: str
) -> None:
    rows = [{"text": "the fox " * 5, "answer": "fox"}, {"text": "the fox " * 1100, "answer": "fox"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": output_type,
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match" if output_type == "generate_until" else "acc"}],
        "generation_kwargs": {"max_gen_toks": 4, "until": ["."]},
        "metadata": {"version": 1, "tokens": 64},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    done = harness("run", "--task", "mine", "--include_path", tmp_path)
    assert "mine: document 1 has 2,20" in done.sentence
    assert "its context would be cut" in done.sentence


def test_real_documents_are_read_where_the_cache_has_them_and_else_named() -> None:
    assert len(REAL) == 26
    catalogue = Catalogue()
    for name in REAL:
        given = config(name)
        assert given["dataset_path"].startswith("offline/")
        assert given["metadata"]["tokens"] > 800
        (data,) = catalogue.data(name).values()
        assert data.state in (State.HERE, State.ABSENT)
    (generated,) = catalogue.data("long_needle_1k").values()
    assert generated.state is State.BUNDLED


def test_documents_that_no_cache_has_are_refused_with_the_way_to_bring_them(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    sentence = harness("run", "--task", "books_needle_1k", "--offline", "--limit", 1).sentence
    assert "offline/books_needle, 1k is not in the cache" in sentence
    assert "and on no hub" in sentence
    assert "harness fetch books_needle_1k --offline --pack data.tar.gz" in sentence


@pytest.mark.hub
@pytest.mark.usefixtures("no_survey")
def test_real_documents_through_the_offline_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    tasks = manager.load(["long_context"])["tasks"]
    assert tasks.keys() == set(REAL)
    results = simple_evaluate(Reader(), tasks=list(tasks.values()), task_manager=manager, limit=2, bootstrap_iters=0)
    for name, scores in results["results"].items():
        if "continuation" in name:
            assert scores["bits_per_byte,none"] == pytest.approx(1.0)
        else:
            assert scores["acc,none"] == 1.0, name


class Reader(LM):
    """Knows every answer of the real documents, and needs one bit for a byte of them."""

    def loglikelihood(self, requests: Any) -> Any:
        return [(self._score(each), True) for each in requests]

    def _score(self, request: Any) -> float:
        if "continuation" in request.doc:
            return -math.log(2) * len(request.doc["continuation"].encode())
        return float(request.args[1].strip() == request.doc["topics"][request.doc["first"]]) - 1.0

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise AssertionError

    def generate_until(self, requests: Any) -> Any:
        return [
            str(next(each.doc[key] for key in ("number", "value", "answer") if key in each.doc)) for each in requests
        ]
