"""Calibration text gives the same token windows every time, and says when it is too short."""

import pytest
import torch

from harness.contract.decoder import Decoder
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.study import Needs, Question, Study
from harness.core.errors import MethodError
from harness.testing.tiny import tiny_decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder("llama")


def windows(decoder: Decoder, *texts: str, count: int, length: int) -> list[list[int]]:
    found = list(Study(texts, "a test").windows(decoder, count=count, length=length))
    assert all(window.dtype == torch.long and window.shape[0] == 1 for window in found)
    return [window[0].tolist() for window in found]


def tokens(decoder: Decoder, text: str) -> list[int]:
    return decoder.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_windows_are_the_joined_texts_cut(decoder: Decoder) -> None:
    whole = tokens(decoder, "abcdefghij")
    assert windows(decoder, "abc", "defg", "hij", count=2, length=4) == [whole[:4], whole[4:8]]


def test_no_token_is_added(decoder: Decoder) -> None:
    assert windows(decoder, "ab", count=1, length=2) == [tokens(decoder, "ab")]


def test_the_last_window_is_what_is_left(decoder: Decoder) -> None:
    assert [len(window) for window in windows(decoder, "abcdefghij", count=9, length=4)] == [4, 4, 2]


def test_no_more_windows_than_asked_for(decoder: Decoder) -> None:
    assert len(windows(decoder, "a" * 100, count=3, length=7)) == 3


def test_texts_that_are_not_needed_are_not_read(decoder: Decoder) -> None:
    assert len(windows(decoder, "abcd", None, count=1, length=4)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", [(), ("",), ("a",), ("", "b")])
def test_too_little_text_is_refused(texts: tuple[str, ...], decoder: Decoder) -> None:
    with pytest.raises(MethodError, match=r"calibration text from a test is too short: \d tokens"):
        windows(decoder, *texts, count=1, length=4)


@pytest.mark.parametrize("texts", [("ab",), ("ab", "c", ""), ("c", "ab"), ("abc",), ("a", "bc")])
def test_other_texts_have_another_fingerprint(texts: tuple[str, ...]) -> None:
    assert Study(texts, "").fingerprint != Study(("ab", "c"), "").fingerprint


def test_the_fingerprint_is_of_the_texts_alone() -> None:
    assert Study(("ab",), "here").fingerprint == Study(("ab",), "there").fingerprint


TEXT = Study(tuple(f"{number:03d} and so on." for number in range(40)), "a test")


def test_batches_go_round_the_windows_in_an_order_that_the_seed_draws(decoder: Decoder) -> None:
    batches = TEXT.batches(decoder, rows=3, length=20, steps=25, seed=5)
    assert [batch.shape for batch in batches] == [(3, 20)] * 25
    windows = [tuple(window[0].tolist()) for window in TEXT.windows(decoder, count=99, length=20)]
    whole = [window for window in windows if len(window) == 20]
    rows = [tuple(row) for batch in batches for row in batch.tolist()]
    first, second = rows[: len(whole)], rows[len(whole) : 2 * len(whole)]
    assert sorted(first) == sorted(second) == sorted(whole)
    assert first != second
    again, other = (TEXT.batches(decoder, rows=3, length=20, steps=25, seed=seed) for seed in (5, 6))
    assert torch.equal(torch.stack(again), torch.stack(batches))
    assert not torch.equal(torch.stack(other), torch.stack(batches))
    assert torch.equal(torch.stack(TEXT.batches(decoder, rows=3, length=20, steps=4, seed=5)), torch.stack(batches[:4]))


def test_batches_are_the_same_on_every_machine(decoder: Decoder) -> None:
    (batch,) = Study(("abcdefgh",), "a test").batches(decoder, rows=4, length=2, steps=1, seed=0)
    assert batch.tolist() == [tokens(decoder, pair) for pair in ("ab", "cd", "gh", "ef")]


def test_drawing_leaves_the_global_random_state(decoder: Decoder) -> None:
    before = torch.get_rng_state()
    TEXT.batches(decoder, rows=1, length=8, steps=3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_text_without_a_whole_row_is_refused(decoder: Decoder) -> None:
    short = Study(("abc",), "a note")
    with pytest.raises(MethodError, match="a note is too short to train on: 3 tokens, and a row takes 4"):
        short.batches(decoder, rows=1, length=4, steps=1, seed=0)
    assert short.batches(decoder, rows=1, length=4, steps=0, seed=0) == []


def test_the_teacher_is_dense_whatever_is_attached_or_trained() -> None:
    decoder, ids = tiny_decoder("llama"), torch.arange(3, 13).view(2, 5)
    with torch.no_grad():
        dense = decoder.module(ids).logits
    study = TEXT.beside(decoder)
    with parse("layer-drop:layers=1").parts[0].attach(decoder, Prepared(facts={"dropped": [["block", 1]]})):
        weight = decoder.anatomy.head._parameters["weight"]
        decoder.anatomy.head._parameters["weight"] = torch.nn.Parameter(torch.zeros_like(weight))
        hook = decoder.anatomy.blocks[0].module.register_forward_hook(lambda module, args, output: None)
        logits = study.teacher(ids)
        assert torch.equal(logits, dense)
        assert not logits.requires_grad
        assert study.dense is not None
        assert len(study.dense.live) == 4
        hook.remove()
        decoder.anatomy.head._parameters["weight"] = weight
    memory = {tensor.data_ptr() for tensor in decoder.module.parameters()}
    assert {tensor.data_ptr() for tensor in study.dense.module.parameters()} == memory


def test_a_teacher_must_be_asked_for(decoder: Decoder) -> None:
    with pytest.raises(MethodError, match=r"says so: needs = Needs\(teacher=True\)"):
        TEXT.teacher(torch.zeros(1, 2, dtype=torch.long))


QUESTIONS = tuple(Question(str(number), ("yes", "no"), 0, "choice") for number in range(9))


def test_a_method_gets_what_it_needs_beside_whichever_others() -> None:
    study = Study(TEXT.texts, "a test", QUESTIONS)
    few = study.limited(Needs(questions=2, documents=3))
    assert (few.texts, few.questions) == (TEXT.texts[:3], QUESTIONS[:2])
    assert few.fingerprint == study.limited(Needs(questions=5, documents=30)).limited(Needs(2, 3)).fingerprint
    assert Needs(2, 3) == Needs.of_all([Needs(2, 1), Needs(0, 3)])
    assert Study(TEXT.texts, "a file", whole=True).limited(Needs(documents=3)).texts == TEXT.texts
    assert Needs.of_all([]) == Needs(0, 0)
    assert Needs.of_all([Needs(teacher=True), Needs(questions=1)]) == Needs(1, 256, teacher=True)


def test_the_record_says_how_much_there_was() -> None:
    assert TEXT.amount == "a test, 40 documents"
    assert Study(("a",), "a file", QUESTIONS[:1]).amount == "a file, 1 document and 1 question"
