"""Training questions: as the model is asked them, with the right answer, and never one that is scored."""

import json

import pytest

from harness.contract.study import Needs, Study
from harness.core.errors import MethodError
from harness.evaluate.calibration_text import calibration_for
from harness.evaluate.tasks import Overrides, TaskLoader, refuse_without_prompt


def training_questions(task, count):
    return task.training.questions(count, seed=0)


def load(folder, name):
    return TaskLoader(str(folder)).load(name, Overrides())


def documents(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_a_choice_has_all_its_answers(tiny_tasks):
    questions = training_questions(load(tiny_tasks, "tiny_letters"), 100)
    by_prompt = {f"{document['question']} is ": document for document in documents(tiny_tasks, "train")}
    assert len(questions) == 12
    for question in questions:
        document = by_prompt[question.prompt]
        assert question.answers == ("a", "b", "c")
        assert (question.kind, question.right) == ("choice", document["answer"])


def test_a_prompt_has_the_shots_that_are_evaluated(tiny_tasks):
    question = training_questions(load(tiny_tasks, "tiny_choice"), 1)[0]
    assert question.prompt.count(" so") >= 3
    assert all(answer.startswith(" ") for answer in question.answers)


def test_a_written_answer_has_its_ends(tiny_tasks):
    question = training_questions(load(tiny_tasks, "tiny_answer"), 1)[0]
    assert (question.kind, question.ends, len(question.answers)) == ("answer", ("e",), 1)


def test_whole_texts_ask_nothing_and_are_refused_to_methods_that_pool(tiny_tasks):
    task = load(tiny_tasks, "tiny_text")
    assert training_questions(task, 5) == []
    with pytest.raises(MethodError, match="dr-llm decides from a document's prompt, and tiny_text scores whole texts"):
        refuse_without_prompt("dr-llm", task)
    refuse_without_prompt("dr-llm", load(tiny_tasks, "tiny_answer"))


def test_what_is_scored_teaches_nothing(tiny_tasks, tmp_path):
    """The training file gets half of the test file; only the rest is asked."""
    train, test = documents(tiny_tasks, "train"), documents(tiny_tasks, "test")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(d) + "\n" for d in [*train, *test[:12]]))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(d) + "\n" for d in test))
    text = (tiny_tasks / "tiny_letters.yaml").read_text().replace(str(tiny_tasks), str(tmp_path))
    (tmp_path / "leaky.yaml").write_text(text.replace("task: tiny_letters", "task: leaky"))
    asked = {question.prompt for question in training_questions(load(tmp_path, "leaky"), 100)}
    assert asked == {f"{d['question']} is " for d in train} - {f"{d['question']} is " for d in test}
    assert len(asked) >= 11


def test_as_many_as_asked_for_always_the_same(tiny_tasks):
    task = load(tiny_tasks, "tiny_letters")
    assert training_questions(task, 5) == training_questions(task, 5) == training_questions(task, 100)[:5]
    plain, asked = calibration_for(task, "task"), calibration_for(task, "task", Needs(questions=5))
    assert (plain.questions, len(asked.questions)) == ((), 5)
    assert plain.fingerprint == Study(plain.texts, "elsewhere").fingerprint != asked.fingerprint


def test_what_reads_like_a_scored_document_is_learnt_from_neither_as_text(tiny_tasks, tmp_path):
    """Another id, or another field that the model does not read, makes no other document."""
    train, test = documents(tiny_tasks, "train"), documents(tiny_tasks, "test")
    copies = [{**document, "id": number} for number, document in enumerate(test)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({**d, "id": -1}) + "\n" for d in [*train, *copies]))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(d) + "\n" for d in test))
    text = (tiny_tasks / "tiny_letters.yaml").read_text().replace(str(tiny_tasks), str(tmp_path))
    (tmp_path / "leaky.yaml").write_text(text.replace("task: tiny_letters", "task: leaky"))
    task = load(tmp_path, "leaky")
    scored = {f"{d['question']} is " for d in test}
    texts = calibration_for(task, "task", Needs(documents=999)).texts
    assert texts
    assert not [text for text in texts if text.startswith(tuple(scored))]
    assert not scored & {question.prompt for question in training_questions(task, 999)}


def test_documents_are_read_once_whatever_is_needed(tiny_tasks, monkeypatch):
    task = load(tiny_tasks, "tiny_letters")
    leaf, calls = task.tasks["tiny_letters"], []
    read, ask = leaf.doc_to_text, leaf.fewshot_context
    monkeypatch.setattr(leaf, "doc_to_text", lambda document, *more: calls.append("read") or read(document, *more))
    monkeypatch.setattr(leaf, "fewshot_context", lambda *args: calls.append("ask") or ask(*args))
    for needs in (Needs(questions=5), Needs(questions=9), Needs(documents=3), Needs(), Needs(questions=9)):
        assert len(calibration_for(task, "task", needs).questions) == needs.questions
    every = len(documents(tiny_tasks, "train"))
    assert calls.count("ask") == every + 9  # each as a text, and the first nine as questions


def test_of_more_documents_the_first_are_the_same(tiny_tasks):
    task = load(tiny_tasks, "tiny_letters")
    whole = task.training.texts(12, seed=0)
    assert len(set(whole)) == 12
    assert load(tiny_tasks, "tiny_letters").training.texts(5, seed=0) == whole[:5]
