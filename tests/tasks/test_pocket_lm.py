"""The YAML through lm-eval itself: it loads, asks what it should and scores by level."""

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

import harness.tasks

TASKS = ("pocket_math", "pocket_choice", "pocket_text", "pocket_recall")


@pytest.fixture(scope="module")
def manager():
    return TaskManager(include_path=next(iter(harness.tasks.__path__)), include_defaults=False)


@pytest.fixture(scope="module")
def group(manager):
    return manager.load(["pocket"])["tasks"]


@pytest.fixture(scope="module")
def tasks(manager, group):
    return group | manager.load(["pocket_recall_generate"])["tasks"]


class Oracle(LM):
    """Knows every answer of the odd levels, and gives a wrong one at the even ones."""

    def loglikelihood(self, requests):
        return [self._score(request) for request in requests]

    def _score(self, request):
        doc, (_, continuation) = request.doc, request.args
        right = continuation.strip() == (doc["choices"][doc["answer"]] if "choices" in doc else doc["answer"])
        good = right == (doc["level"] % 2 == 1)
        return (-1.0 if good else -9.0, good)

    def loglikelihood_rolling(self, requests):
        return [-float(request.doc["level"] * len(request.args[0])) for request in requests]

    def generate_until(self, requests):
        return [f" {request.doc['answer']}" if request.doc["level"] % 2 else " 1 #### x" for request in requests]


@pytest.fixture(scope="module")
def results(manager, tasks):
    return simple_evaluate(Oracle(), tasks=list(tasks.values()), task_manager=manager, limit=20, bootstrap_iters=0)


def test_the_group_is_the_four_tasks(group):
    assert set(group) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_publishes_a_thousand_documents_with_levels(name, tasks):
    assert len(tasks[name].test_docs()) >= 1000
    assert set(tasks[name].test_docs()["level"]) >= {1, 2, 3}
    assert len(tasks[name].training_docs()) > 0
    assert len(tasks[name].validation_docs()) > 0


@pytest.mark.parametrize("name", [*TASKS, "pocket_recall_generate"])
def test_all_four_ways_of_asking_are_there(name, tasks):
    kinds = {
        "pocket_math": "generate_until",
        "pocket_choice": "multiple_choice",
        "pocket_text": "loglikelihood_rolling",
        "pocket_recall": "loglikelihood",
        "pocket_recall_generate": "generate_until",
    }
    assert kinds[name] == tasks[name].OUTPUT_TYPE


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("pocket_math", "exact_match{},strict-match"),
        ("pocket_math", "exact_match{},flexible-extract"),
        ("pocket_choice", "acc{},none"),
        ("pocket_choice", "acc_norm{},none"),
        ("pocket_recall", "acc{},none"),
        ("pocket_recall_generate", "exact_match{},first-number"),
    ],
)
def test_each_level_has_its_own_score(name, metric, results):
    scores = results["results"][name]
    levels = 4 if "recall" in name else 5
    assert [scores[metric.format(f"_level_{level}")] for level in range(1, levels + 1)] == [1, 0, 1, 0, 1][:levels]
    assert scores[metric.format("")] == pytest.approx(0.6 if levels == 5 else 0.5)
    assert results["higher_is_better"][name][metric.format("_level_1").split(",")[0]]


def test_bits_per_byte_are_by_level_too(results):
    scores = results["results"]["pocket_text"]
    bits = [scores[f"bits_per_byte_level_{level},none"] for level in (1, 2, 3)]
    assert bits == pytest.approx([1 / 0.6931, 2 / 0.6931, 3 / 0.6931], rel=1e-3)
    assert bits[0] < scores["bits_per_byte,none"] < bits[2]


def test_samples_keep_the_level(results):
    assert {sample["doc"]["level"] for sample in results["samples"]["pocket_math"]} == {1, 2, 3, 4, 5}


def test_few_shot_examples_come_from_the_training_split(tasks):
    task = tasks["pocket_math"]
    task.set_fewshot_seed(0)
    prompt = task.fewshot_context(task.test_docs()[0], num_fewshot=2)
    assert prompt.count("####") == 2
    train = set(task.training_docs()["question"])
    assert all(shot.split("Question: ")[1].split("\nAnswer")[0] in train for shot in prompt.split("\n\n")[:2])
