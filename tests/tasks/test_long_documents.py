"""The long documents: as long as they say, always the same, and their answers found by an independent reading."""

import json
import re
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from itertools import islice, pairwise
from math import floor
from statistics import median
from typing import Any

import pytest

from harness.tasks.long.counting import counter, estimate
from harness.tasks.long.documents import BEGIN_TOKENS, Document, Kind, documents
from harness.tasks.long.listops import OPERATORS
from harness.tasks.long.lm import KINDS
from harness.tasks.long.scores import answered, recall
from harness.tasks.pocket.splits import Draw


def some(kind: str, tokens: int = 1024, count: int = 4, split: str = "test") -> list[Document]:
    return list(islice(documents(KINDS[kind], tokens, estimate, split), count))


@pytest.mark.parametrize("tokens", [512, 1024, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_fills_its_length_and_leaves_room_for_the_answer(kind: str, tokens: int) -> None:
    for document in some(kind, tokens, 2):
        used = estimate(document.prompt) + KINDS[kind].answer_tokens + BEGIN_TOKENS
        assert 0.85 * tokens < used <= tokens
        assert max(map(estimate, document.choices or (", ".join(document.answers),))) <= KINDS[kind].answer_tokens


def test_the_documents_are_the_same_everywhere() -> None:
    prompts = [document.prompt + repr(document.row) for kind in KINDS for document in some(kind, 512, 2)]
    assert sha256("".join(prompts).encode()).hexdigest()[:16] == "f1ecacee7b943cae"


@pytest.mark.parametrize("kind", KINDS)
def test_no_document_is_in_two_splits(kind: str) -> None:
    splits = [{document.prompt for document in some(kind, 512, 3, split)} for split in ("train", "validation", "test")]
    assert len(set.union(*splits)) == 9


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="the shortest keys document has"):
        some("keys", 128)
    with pytest.raises(ValueError, match="room is for"):
        list(islice(documents(Kind("x", lambda *_: Document("word " * 99, "?", ("a",)), 4), 64, estimate, "test"), 1))


def by_needle(document: Document) -> tuple[str, ...]:
    asked = re.findall(r"the (\w+ \w+)", document.question.partition("?")[0].partition(" of ")[2])
    numbers = dict(re.findall(r"The secret number of the (\w+ \w+) is (\d{7})\.", document.context))
    return tuple(numbers[thing] for thing in asked)


def by_assignments(document: Document) -> tuple[str, ...]:
    text = document.context.rpartition("Memorize")[2]
    assigned = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text))
    value = re.search(r"have the value (\d+)\?", document.question)

    def resolved(name: str) -> str:
        return resolved(assigned[name]) if name in assigned else name

    assert value is not None
    return tuple(name for name in assigned if resolved(name) == value[1])


def by_entries(document: Document) -> tuple[str, ...]:
    counts = Counter(re.findall(r"\d+\. (\w+ \w+)", document.context.rpartition("Memorize")[2]))
    ((_, fifth), (_, sixth)) = counts.most_common(6)[4:]
    assert fifth >= 3 * sixth
    return tuple(name for name, _ in counts.most_common(5))


def by_frequency(document: Document) -> tuple[str, ...]:
    counts = Counter(document.context.rpartition("\n")[2].split()).most_common(4)
    assert all(before[1] > after[1] for before, after in pairwise(counts))
    return tuple(word for word, _ in counts[:3])


def by_json(document: Document) -> tuple[str, ...]:
    pairs = json.loads(document.context.partition("JSON data:\n")[2])
    return (pairs[re.findall(r'Key: "(\w+)"', document.question)[0]],)


def by_stack(document: Document) -> tuple[str, ...]:
    """ListOps by a stack machine that knows nothing of trees."""
    stack = list[Any]()
    for symbol in document.context.rpartition("\n")[2].split():
        if symbol != "]":
            stack.append(int(symbol) if symbol.isdigit() else symbol)
            continue
        values = list[int]()
        while not isinstance(stack[-1], str):
            values.append(stack.pop())
        operators: dict[str, Callable[[list[int]], int]] = {
            "[MIN": min,
            "[MAX": max,
            "[MED": lambda given: floor(median(given)),
            "[SM": lambda given: sum(given) % 10,
        }
        stack.append(operators[stack.pop()](values))
    (result,) = stack
    return (str(result),)


def by_fact(document: Document) -> tuple[str, ...]:
    return tuple(re.findall(rf"{document.question.strip()} (\d\d) years old\.", document.context))


READERS = {
    "needle": by_needle,
    "keys": by_needle,
    "keys-choice": by_needle,
    "queries": by_needle,
    "variables": by_assignments,
    "common-words": by_entries,
    "frequent-words": by_frequency,
    "listops": by_stack,
    "pairs": by_json,
    "passkey": lambda document: tuple(set(re.findall(r"pass key is (\d+)", document.context))),
    "pocket-needle": by_fact,
    "pocket-keys": by_fact,
    "pocket-pairs": by_fact,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_independent_reading_finds_the_answers(kind: str) -> None:
    for tokens in (512, 2048):
        for document in some(kind, tokens, 5):
            read = READERS[kind](document)
            if kind in ("queries", "frequent-words"):
                assert read == document.answers
            else:
                assert set(read) == set(document.answers)
            assert len(read) == len(document.answers)


@pytest.mark.parametrize("kind", ["needle", "passkey", "pairs", "pocket-keys"])
def test_what_is_asked_for_is_anywhere_in_the_text(kind: str) -> None:
    places = [doc.context.find(doc.answers[0]) / len(doc.context) for doc in some(kind, 512, 40)]
    assert min(places) < 0.2
    assert max(places) > 0.8
    assert 0.3 < sum(places) / len(places) < 0.7


def test_expressions_are_of_the_grammar() -> None:
    widths, depths, operators = set[int](), set[int](), Counter[str]()
    for document in some("listops", 2048, 12):
        open_, deepest = [0], 0
        for symbol in document.context.rpartition("\n")[2].split():
            if symbol == "]":
                widths.add(open_.pop())
                continue
            open_[-1] += 1
            if symbol.startswith("["):
                operators[symbol[1:]] += 1
                open_.append(0)
                deepest = max(deepest, len(open_) - 1)
        depths.add(deepest)
    assert min(widths) == 2
    assert max(widths) == 10
    assert max(depths) <= 9
    assert operators.keys() == set(OPERATORS)


def test_choices_hold_the_answer_once() -> None:
    for document in some("keys-choice", 512, 20):
        assert len(set(document.choices)) == 4
        assert document.row["choices"][document.row["answer"]] == document.answers[0]
    assert len({document.row["answer"] for document in some("keys-choice", 512, 20)}) == 4


def test_a_model_of_another_kind_is_measured_by_letters(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    assert counter() is estimate
    assert counter(pretrained=object()) is estimate
    assert counter(pretrained=str(tmp_path)) is estimate
    assert "lengths are estimated" in caplog.text
    assert estimate("The 12 lighthouses.\n") == 1 + 2 + 2 + 1 + 1


def test_first_word_or_number_counts() -> None:
    doc = {"answers": ["4817230"]}
    assert answered(doc, [" 4817230, which"]) == {"acc": 1.0}
    assert answered(doc, [" 4,817,230"]) == {"acc": 1.0}
    for text in ("", " 48172301", " 1234567 4817230"):
        assert answered(doc, [text]) == {"acc": 0.0}
    assert answered({"answers": ["be925657"]}, ["BE925657"]) == {"acc": 1.0}


def test_share_of_the_answers_found() -> None:
    doc = {"answers": ["red fox", "blue lamp", "gray oak", "green hen", "black cap"]}
    assert recall(doc, [" 1. red fox 2. blue lamp 3. gray oak 4. green hen 5. black cap"]) == {"recall": 1.0}
    assert recall(doc, [" the blue lamp, the red fox and the white map"]) == {"recall": 0.4}
    assert recall(doc, [" white map, white hat, white owl, white dog, white cat, red fox"]) == {"recall": 0.0}
    assert recall({"answers": ["ABCDE", "FGHIJ"]}, [" VAR FGHIJ, VAR ABCDE"]) == {"recall": 1.0}
    assert recall(doc, [""]) == {"recall": 0.0}


def test_draws_do_not_depend_on_the_size() -> None:
    for kind in ("needle", "keys", "variables", "pairs", "passkey", "pocket-pairs"):
        short, long = (KINDS[kind].make(Draw(1), size, 2048) for size in (50, 90))
        assert len(long.context) > len(short.context)
        if kind != "pairs":
            assert short.answers == long.answers or kind == "pocket-pairs"
