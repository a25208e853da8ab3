"""The documents: always the same bytes, never in two splits, and right by an independent reading of the English."""

import json
import re
from hashlib import sha256
from itertools import islice

import pytest

from harness.tasks.pocket import arithmetic, choice, recall, text
from harness.tasks.pocket.splits import Document, Draw, Split, documents, first
from harness.tasks.pocket.words import CATEGORIES, NAMES, NOUNS

KINDS = {"arithmetic": arithmetic, "choice": choice, "text": text, "recall": recall}
PUBLISHED = {"arithmetic": 1200, "choice": 1200, "text": 1200, "recall": 1000}
DIGESTS = {
    "arithmetic": "51101b43e781199c24b267c3837a68aaf0e1cc3ff99450727f58148bae4b0386",
    "choice": "4e2c080be7b3dadd05b989042bd06cc326c09238f5c1beb4ed7328324ef918e4",
    "text": "5185a94696660e92fd5ec07ca78e7f295f8598dc461ccce41abfc9eec5277144",
    "recall": "da632d3f72a8f917d7d5eae1d4c9ee71bbf372d583669bc0f89587568f4b112f",
}


@pytest.fixture(scope="module")
def published() -> dict[str, list[Document]]:
    """The test split of every kind."""
    return {name: first(size, KINDS[name].make, KINDS[name].LEVELS, Split.TEST) for name, size in PUBLISHED.items()}


@pytest.mark.parametrize("name", KINDS)
def test_the_test_split_is_the_same_bytes_everywhere(name, published):
    rows = [[one.level, one.prompt, one.target, one.key, one.fields] for one in published[name]]
    assert sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("name", KINDS)
def test_no_document_is_in_two_splits_or_twice_in_one(name, published):
    kind = KINDS[name]
    keys = [one.key for one in published[name]]
    for split, size in ((Split.TRAIN, 2000), (Split.VALIDATION, 500)):
        # Another seed as well: training reads streams of its own.
        for seed in ("pocket", "another"):
            stream = documents(kind.make, kind.LEVELS, split, seed, 1)
            other = {sha256(one.key.encode()).digest() for one in islice(stream, size // 2)}
            assert other.isdisjoint(sha256(key.encode()).digest() for key in keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", KINDS)
def test_levels_take_turns(name, published):
    levels = KINDS[name].LEVELS
    assert [one.level for one in published[name][: 2 * len(levels)]] == [*levels, *levels]
    assert len(published[name]) % len(levels) == 0


def test_draws_are_uniform_and_named_by_their_seed():
    assert [Draw("a", 1).between(0, 10**9)] * 2 == [Draw("a", 1).between(0, 10**9) for _ in range(2)]
    assert Draw("a", 1).between(0, 10**9) != Draw("a", 2).between(0, 10**9)
    draw = Draw("uniform")
    counts = [0] * 4
    for _ in range(4000):
        counts[draw.between(0, 3)] += 1
    assert all(900 < count < 1100 for count in counts)
    assert sorted(draw.shuffled(range(50))) == list(range(50))


def test_word_problems_are_right_when_read_as_english(published):
    for one in published["arithmetic"]:
        assert one.target == f" {one.fields['answer']}"
        held, steps = solved(one.fields["question"])
        *worked, result = re.split(r" #### | ", one.fields["answer"])
        assert int(result) == held
        assert worked == steps
        assert len(steps) == one.level
        assert all(0 < int(number) <= 299 for number in re.findall(r"\d+", one.prompt + one.target))


def solved(question: str) -> tuple[int, list[str]]:
    """What the owner holds after all events, and each event as an equation."""
    *sentences, asked = re.findall(r"[^.?]+[.?]", question)
    thing, owner = re.fullmatch(r" How many (\w+) does (\w+) have\?", asked).groups()
    held, steps = int(re.search(rf"^{owner} has (\d+) {thing}\.", sentences[0])[1]), []
    for sentence in sentences[1:]:
        if owner not in sentence.split()[:2]:
            continue
        number = int(re.search(r"\d+", sentence)[0])
        sign = "*" if "times as many" in sentence else "+" if "more" in sentence else "-"
        before, held = held, {"*": held * number, "+": held + number, "-": held - number}[sign]
        steps.append(f"{before}{sign}{number}={held}")
    return held, steps


def test_choices_have_one_right_option_among_four(published):
    solvers = {1: holder, 2: member, 3: extreme, 4: satisfies, 5: ranked}
    for one in published["choice"]:
        options = one.fields["choices"]
        assert len(set(options)) == 4
        right = [option for option in options if solvers[one.level](one.fields["query"], option)]
        assert right == [options[one.fields["answer"]]]
        assert one.target == f" {right[0]}"


def holder(query: str, name: str) -> bool:
    thing = re.search(r"Who has the (\w+)\?", query)[1]
    return re.search(rf"{name} has an? {thing}\.", query) is not None


def member(query: str, noun: str) -> bool:
    return noun in CATEGORIES[re.search(r"Which of these is an? (\w+):", query)[1]]


def extreme(query: str, number: str) -> bool:
    best = max if "largest" in query else min
    return int(number) == best(map(int, re.findall(r"\d+", query)))


def satisfies(query: str, name: str) -> bool:
    *facts, asked = re.findall(r"(\w+) has ([^.?]+)[.?]", query)
    return conditions(dict(facts)[name]) == conditions(asked[1])


def conditions(words: str) -> set[tuple[bool, str]]:
    return {(article != "no", noun) for article, noun in re.findall(r"(an?|no) (\w+)", words)}


def ranked(query: str, name: str) -> bool:
    pairs = re.findall(r"(\w+) is \w+ than (\w+)\.", query)
    above = [lower for _, lower in pairs]
    below = [upper for upper, _ in pairs]
    most = re.search(r"the (tallest|oldest|fastest)\?", query) is not None
    return name not in (above if most else below)


@pytest.mark.parametrize("level", [1, 3, 4, 5])
def test_the_place_of_the_right_option_says_nothing(level, published):
    places = [one.fields["answer"] for one in published["choice"] if one.level == level]
    assert all(0.15 < places.count(place) / len(places) < 0.35 for place in range(4))


def test_recall_asks_for_a_fact_that_stands_once_in_its_context(published):
    for one in published["recall"]:
        found = re.findall(rf"The {asked(one)} is (\d\d) years old\.", one.fields["context"])
        assert found == [one.fields["answer"]]
        assert one.prompt == f"{one.fields['context']}\n{one.fields['query']}"
        assert one.target == f" {one.fields['answer']}"


def test_recall_has_lists_and_needles_and_asks_everywhere(published):
    facts = [one.fields["context"].count("years old") for one in published["recall"]]
    assert 0.4 < facts.count(1) / len(facts) < 0.6
    assert max(facts) > 90
    places = [
        re.search(rf"The {asked(one)} is", one.fields["context"]).start() / len(one.fields["context"])
        for one in published["recall"]
    ]
    assert min(places) < 0.1
    assert max(places) > 0.9


def asked(one: Document) -> str:
    return re.fullmatch(r"The (\w+) is", one.fields["query"])[1]


def test_stories_keep_their_thing_and_use_their_grammar(published):
    for one in published["text"]:
        assert "{" not in one.target
        people = set(re.findall(r"[A-Z][a-z]+", one.target)) & set(NAMES)
        assert 1 <= len(people) <= 2
        assert not re.search(r"\ba [aeiou]", one.target)
    assert len({one.target.split()[0] for one in published["text"]}) > 20


def test_no_noun_is_of_two_kinds():
    assert len(set(NOUNS)) == len(NOUNS)


def test_the_training_text_is_long_enough_to_calibrate_on_and_never_scored(published):
    texts = text.train_texts()
    assert sum(len(story.encode()) for story in texts) > 200_000
    assert set(texts).isdisjoint(one.target for one in published["text"])
    assert all(Split.of(story) is Split.TRAIN for story in texts)
