"""Labels: rewards are those of writing and scoring one path at a time; a killed search goes on to the same labels."""

import random
import string
from dataclasses import replace

import pytest
import torch

from harness.contract.study import Question, Study, Workbench
from harness.core.errors import MethodError
from harness.methods.routing import labels
from harness.methods.routing.mcts import Settings
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


def calibration(questions, folder=None):
    return Study(("a text",), "a test", tuple(questions), Workbench(folder))


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


def test_a_killed_search_goes_on_to_the_same_labels(tmp_path, monkeypatch):
    decoder, given = tiny_decoder("llama"), choices(70)
    whole = labels.find(decoder, calibration(given), 70, "answer", SETTINGS)
    real, groups_done = labels._search, []

    def killed(*args):
        groups_done.append(args)
        if len(groups_done) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(labels, "_search", killed)
    with pytest.raises(KeyboardInterrupt):
        labels.find(decoder, calibration(given, tmp_path), 70, "answer", SETTINGS)
    resumed = labels.find(decoder, calibration(given, tmp_path), 70, "answer", SETTINGS)
    assert [label.result for label in resumed.searched] == [label.result for label in whole.searched]
    assert len(groups_done) == 4  # three groups, of which the second was begun twice
    labels.find(decoder, calibration(given, tmp_path), 70, "answer", SETTINGS)
    assert len(groups_done) == 4


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


def test_running_text_gives_questions_where_there_are_none():
    text = Study((" ".join(WORDS * 20),), "a test")
    found = labels.find(tiny_decoder("llama"), text, 3, "answer", SETTINGS)
    assert {label.asked.question.kind for label in found.searched} == {"text"}
    assert len(found.kept) == 3
    with pytest.raises(MethodError, match="gives no question"):
        labels.find(tiny_decoder("llama"), Study(("short",), "a test"), 3, "answer", SETTINGS)
