"""Calibration text gives the same token windows every time, and says when it is too short."""

import pytest
import torch

from harness.contract.decoder import Decoder
from harness.contract.study import Study
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
