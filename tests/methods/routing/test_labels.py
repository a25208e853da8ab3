"""Labels: rewards are those of writing and scoring one path at a time; a killed search goes on to the same labels."""

import random
import string
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from harness.contract.study import Question, Study, Workbench
from harness.core.errors import MethodError
from harness.methods.routing import labels
from harness.methods.routing.dr_llm import DrLLM
from harness.methods.routing.mcts import SearchResult, Settings
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.model.paths.path_evaluator import PathEvaluator
from harness.testing.tiny import tiny_decoder

WORDS = "the keeper of light wrote down every ship that passed and its flag".split()  # noqa: SIM905
SETTINGS = Settings(simulations=8)


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def choices(count, seed=0):
    rng = random.Random(seed)
    return tuple(
        Question(sentence(rng, 3), tuple(f" {sentence(rng, rng.randint(1, 2))}" for _ in range(3)), i % 3, "choice")
        for i in range(count)
    )


def calibration(questions, folder=None, **reports):
    return Study(("a text",), "a test", tuple(questions), Workbench(folder, **reports))


def written(decoder, prompt, path, steps):
    """What greedy decoding along a path really writes."""
    ids = torch.tensor([prompt])
    with routed(decoder, FixedPaths((path,))):
        made = decoder.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False, pad_token_id=0
        )
    return made[0, len(prompt) :].tolist()


def test_a_written_answer_is_right_when_decoding_writes_it_and_ends():
    decoder, paths = tiny_decoder("llama"), [(1, 1, 1, 1), (1, 0, 1, 1), (2, 1, 1, 0)]
    decoder.module.generation_config.eos_token_id = None
    with torch.no_grad():  # let it write letters, not bytes that are no text
        letters = decoder.tokenizer(string.ascii_letters)["input_ids"]
        decoder.anatomy.head.weight[[token for token in range(259) if token not in letters]] = 0
    prompt = tuple(decoder.tokenizer("the keeper of")["input_ids"])
    told = {path: written(decoder, prompt, path, 6) for path in paths}
    for path, tokens in told.items():
        answer = decoder.tokenizer.decode(tokens[:5])
        end = decoder.tokenizer.decode(tokens[5:])
        for ends, right in (((end,), True), (("#" if end != "#" else "!",), False)):
            question = Question("the keeper of", (answer,), 0, "answer", ends)
            asked = labels.ask(decoder, question)
            scores = PathEvaluator(decoder, [asked.texts]).evaluate([(0, each) for each in paths])
            for each, scored in zip(paths, scores, strict=True):
                same = told[each][:5] == tokens[:5]
                ended = told[each][5] in asked.ends
                assert asked.reward(scored, "answer", None).right == (same and ended)
            assert asked.reward(scores[paths.index(path)], "answer", None).right == right


def test_a_choice_is_right_when_it_is_the_likeliest_for_its_length():
    decoder, path = tiny_decoder("qwen3"), (1, 2, 0, 1)
    asked = [labels.ask(decoder, question) for question in choices(6)]
    scores = PathEvaluator(decoder, [each.texts for each in asked]).evaluate([(i, path) for i in range(6)])
    for each, scored in zip(asked, scores, strict=True):
        values = []
        for answer, tokens in zip(each.question.answers, each.texts.answers, strict=True):
            with routed(decoder, FixedPaths((path,))), torch.no_grad():
                logits = decoder.module(torch.tensor([[*each.texts.prompt, *tokens]])).logits[0]
            places = logits[len(each.texts.prompt) - 1 : -1].log_softmax(-1)
            values.append(float(places.gather(-1, torch.tensor(tokens)[:, None]).sum()) / len(answer))
        best = max(range(3), key=values.__getitem__)
        assert each.reward(scored, "answer", None).right == (best == each.question.right)


def test_as_likely_as_the_full_path():
    asked = labels.ask(tiny_decoder("llama"), choices(1)[0])
    scores = PathEvaluator(tiny_decoder("llama"), [asked.texts]).evaluate([(0, (1, 1, 1, 1)), (0, (0, 0, 0, 0))])
    dense, none = (asked.reward(each, "likelihood", None).margin for each in scores)
    assert asked.reward(scores[0], "likelihood", dense).right
    assert asked.reward(scores[1], "likelihood", dense).right == (none >= dense - labels.SLACK)


@pytest.fixture
def killing(monkeypatch):
    """Kill the search while a group is searched, by its number from 1; the groups that were begun."""
    real, begun = labels._search, []

    def at(number):
        def search(*args):
            begun.append(args)
            if len(begun) == number:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(labels, "_search", search)
        return begun

    return at


def test_a_killed_search_goes_on_to_the_same_labels(tmp_path, killing):
    decoder, given, count = tiny_decoder("llama"), choices(2 * labels.GROUP + 1), 2 * labels.GROUP + 1
    whole = labels.find(decoder, calibration(given), count, "answer", SETTINGS)
    begun = killing(2)
    with pytest.raises(KeyboardInterrupt):
        labels.find(decoder, calibration(given, tmp_path), count, "answer", SETTINGS)
    resumed = labels.find(decoder, calibration(given, tmp_path), count, "answer", SETTINGS)
    assert [label.result for label in resumed.searched] == [label.result for label in whole.searched]
    assert len(begun) == 4  # three groups, of which the second was begun twice
    labels.find(decoder, calibration(given, tmp_path), count, "answer", SETTINGS)
    assert len(begun) == 4


def test_a_killed_preparation_goes_on_to_the_same_routers(tmp_path, killing):
    decoder, count = tiny_decoder("llama"), 2 * labels.GROUP
    method = DrLLM(questions=count, simulations=4, epochs=1, hidden=4)
    whole = method.prepare(decoder, calibration(choices(count)))
    begun = killing(2)
    with pytest.raises(KeyboardInterrupt):
        method.prepare(decoder, calibration(choices(count), tmp_path))
    resumed = method.prepare(decoder, calibration(choices(count), tmp_path))
    assert len(begun) == 3
    assert resumed.facts == whole.facts
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "other", [{"goal": "likelihood"}, {"settings": replace(SETTINGS, simulations=9)}, {"count": 3}]
)
def test_another_search_has_other_labels(tmp_path, other, monkeypatch):
    decoder, searches = tiny_decoder("llama"), []
    real = labels._search
    monkeypatch.setattr(labels, "_search", lambda *args: searches.append(args) or real(*args))
    ask = {"count": 4, "goal": "answer", "settings": SETTINGS}
    labels.find(decoder, calibration(choices(4), tmp_path), **ask)
    labels.find(decoder, calibration(choices(4), tmp_path), **(ask | other))
    assert len(searches) == 2


def test_another_model_is_searched_anew(tmp_path, killing):
    begun = killing(0)
    for family in ("llama", "qwen3", "llama"):
        labels.find(tiny_decoder(family), calibration(choices(4), tmp_path), 4, "answer", SETTINGS)
    assert len(begun) == 2


@pytest.mark.parametrize("stop_early", [True, False])
def test_the_time_is_said_before_the_search_and_counted_during_it(tmp_path, stop_early):
    said, expected, done = [], [], []

    class Bar:
        expect, advance = expected.append, done.append

    def bar(title):
        assert len(said) == 1  # beforehand
        return nullcontext(Bar)

    count, settings = labels.GROUP + 2, replace(SETTINGS, stop_early=stop_early)
    for _ in range(2):
        study = calibration(choices(count), tmp_path, say=said.append, bar=bar)
        labels.find(tiny_decoder("llama"), study, count, "answer", settings)
    assert len(said) == 1  # nothing is left to search
    assert said[0].startswith(f"searching paths for {count} questions, at most 8 each: ")
    assert (" to " in said[0]) == stop_early
    assert "estimated from three paths" in said[0]
    assert expected == [count * 9, 0]
    assert sum(done) == count * 9


def test_labels_of_a_damaged_file_are_searched_again(tmp_path):
    decoder = tiny_decoder("llama")
    first = labels.find(decoder, calibration(choices(3), tmp_path), 3, "answer", SETTINGS)
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text()[:-9])
    again = labels.find(decoder, calibration(choices(3), tmp_path), 3, "answer", SETTINGS)
    assert [label.result for label in again.searched] == [label.result for label in first.searched]


def test_what_the_search_found_is_told():
    facts = labels.find(tiny_decoder("llama"), calibration(choices(12)), 12, "answer", SETTINGS).facts(4)
    assert facts["questions"] == 12
    assert facts["kept"] >= facts["wrong to right"] >= 0
    assert facts["oracle"]["accuracy"] == facts["kept"] / 12
    assert facts["evaluations"] >= 12


def test_nothing_right_is_said_in_words():
    impossible = Question("the keeper", (" \u2603\u2603\u2603\u2603",), 0, "answer", ("#",))
    with pytest.raises(MethodError, match=r"on none of 1 training questions .* goal=likelihood"):
        labels.find(tiny_decoder("llama"), calibration([impossible]), 4, "answer", SETTINGS)


def unanswerable(count):
    """Questions whose answer this model writes along no path."""
    return [Question(f"the keeper {i}", (" \u2603\u2603\u2603\u2603",), 0, "answer", ("#",)) for i in range(count)]


def test_a_search_that_finds_no_right_answer_ends_soon_and_trains_nothing(tmp_path, killing):
    begun = killing(0)
    for _ in range(2):  # what was searched is kept, and says so again
        with pytest.raises(
            MethodError, match=r"on none of 16 training questions \(of 40\) .* no router is trained"
        ) as e:
            DrLLM(questions=40, simulations=2).prepare(tiny_decoder("llama"), calibration(unanswerable(40), tmp_path))
        assert "whole model (none)" in str(e.value)
        assert len(begun) == 2


def test_too_few_right_answers_are_nothing_to_learn_from():
    right = Question("a text", (" that goes on",), 0, "text")
    given = [right, *unanswerable(15)]
    with pytest.raises(MethodError, match=r"on only 1 of 16 training questions does the whole model \(1\) or any path"):
        labels.find(tiny_decoder("llama"), calibration(given), 16, "answer", replace(SETTINGS, simulations=1))


def label(number, dense_right):
    asked = labels.ask(tiny_decoder("llama"), choices(12)[number])
    return labels.Label(asked, SearchResult((1, 1, 0, 1), dense_right, 2))


@pytest.mark.parametrize(
    ("corrected", "kept"),
    [(0.0, range(10)), (0.3, range(10)), (0.5, [0, 1, 2, 7, 8, 9]), (1.0, [0, 1, 2]), (0.31, [0, 1, 2, *range(4, 10)])],
)
def test_right_questions_leave_until_enough_are_corrected(corrected, kept):
    """Of three corrected ones, and seven that dense answers."""
    searched = tuple(label(number, number > 2) for number in range(10))
    every = labels.Labels(searched, "answer", corrected)
    assert every.kept == [searched[number] for number in kept]
    assert every.facts(4)["oracle"]["accuracy"] == 1.0


def test_a_share_of_corrected_questions_that_leaves_too_few_is_said():
    text = Study((" ".join(WORDS * 20),), "a test")
    with pytest.raises(MethodError, match=r"corrected=1\.0 leaves 0 of 3 .* no router is trained"):
        labels.find(tiny_decoder("llama"), text, 3, "answer", SETTINGS, corrected=1.0)


def test_running_text_gives_questions_where_there_are_none():
    text = Study((" ".join(WORDS * 20),), "a test")
    found = labels.find(tiny_decoder("llama"), text, 3, "answer", SETTINGS)
    assert {label.asked.question.kind for label in found.searched} == {"text"}
    assert len(found.kept) == 3
    with pytest.raises(MethodError, match="gives no question"):
        labels.find(tiny_decoder("llama"), Study(("short",), "a test"), 3, "answer", SETTINGS)
