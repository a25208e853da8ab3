"""What an evaluation would ask is known without asking it, with the document that each request is of."""

import json

import pytest

from harness.evaluate.requests import requests_of
from harness.results.store import Store
from harness.run.session import Session
from harness.run.spec import Job
from tests.silent import Silent


@pytest.fixture(scope="module")
def asked(tiny_folder, tiny_tasks, tmp_path_factory, device):
    """The requests of some documents of a task, at a batch size of 2, from a model that must not run."""
    settings = {"pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "device": device, "batch_size": 2}
    tasks = ("tiny_text", "tiny_answer", "tiny_letters", "tiny_choice")
    store = Store(tmp_path_factory.mktemp("runs"))
    session = Session(Job(methods=("dense",), tasks=tasks, **settings), store, Silent())
    tasks = {spec.task.name: spec for spec in session.plan.specs}

    def refuse(*_):
        raise AssertionError("the model ran")

    def ask(task, *documents):
        handle = session.lm.decoder.module.register_forward_pre_hook(refuse)
        requests = requests_of(session.lm, tasks[task].task, tasks[task].job, {task: list(documents)})
        handle.remove()
        assert session.lm.mode is None
        return requests, session.lm.tok_encode

    return ask


def test_every_window_is_of_its_own_document(asked, tiny_tasks):
    requests, encode = asked("tiny_text", 3, 5, 8)
    assert {request.document for request in requests} == {0, 1, 2}  # by place, as lm-eval numbers chosen documents
    lengths = [sum(len(request.tokens) for request in requests if request.document == place) for place in range(3)]
    lines = (tiny_tasks / "test.jsonl").read_text().splitlines()
    assert lengths == [len(encode(json.loads(lines[document])["text"])) for document in (3, 5, 8)]


def test_a_generation_asks_for_all_that_it_may_write(asked):
    requests, _ = asked("tiny_answer", 0, 7)
    assert [request.document for request in requests] == [0, 1]
    assert {request.new_tokens for request in requests} == {12}
    assert all(request.prompt_length == len(request.tokens) for request in requests)


def test_answers_that_share_a_forward_are_one_request(asked):
    requests, _ = asked("tiny_letters", 0, 1)  # three choices of one token
    assert sorted(request.document for request in requests) == [0, 1]
    requests, _ = asked("tiny_choice", 0, 1)
    assert len(requests) > 2
    assert {request.new_tokens for request in requests} == {0}
