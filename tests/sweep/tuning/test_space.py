"""What a space stands for, and how documents are dealt out."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.contract.stack import parse
from harness.core.errors import HarnessError, SpecError
from harness.evaluate.tasks import Overrides, TaskLoader
from harness.results.budgets import budgets
from harness.sweep.tuning.documents import dealt
from harness.sweep.tuning.metrics import KNOWN, Metrics
from harness.sweep.tuning.space import Part, Space, space


@pytest.mark.parametrize(
    ("given", "choices"),
    [
        ("layer-drop", [["layer-drop:count=1", "layer-drop:count=2", "layer-drop:count=3", "layer-drop:count=4"]]),
        ("int4-weight-only:bits", [[f"int4-weight-only:bits={bits}" for bits in (8, 7, 6, 5, 4)]]),
        ("layer-drop:count=0..1", [["layer-drop:count=1"]]),
        ("gptq:bits=3|16,group=32|64", [["gptq:bits=3,group=32", "gptq:bits=3,group=64"]]),
        ("layer-drop:count=1,int8-dynamic", [["layer-drop:count=1"], ["int8-dynamic"]]),
        ("rotate+int4-weight-only:bits=3|4", [["rotate+int4-weight-only:bits=3", "rotate+int4-weight-only:bits=4"]]),
        ("streaming", [["streaming:window=1024"]]),
        ([{"method": "wanda", "sparsity": [0, 0.5]}, "int8-dynamic"], [["wanda:sparsity=0.5"], ["int8-dynamic"]]),
    ],
)
def test_what_is_written_stands_for_choices_beside_doing_without(given: Any, choices: list[list[str]]) -> None:
    if given == "streaming":
        choices = [[f"streaming:window={parse('streaming').parts[0].window}"]]  # type: ignore[attr-defined]
    assert [list(part.choices) for part in space(given, 4).parts] == [["", *each] for each in choices]


def test_layers_choose_by_themselves() -> None:
    searched = space("int4-weight-only:bits=3|8@layer,layer-drop@layer", 3)
    assert searched.sizes == (3, 3, 3, 2, 2, 2)
    assert searched.count == 3**3 * 2**3 - 1
    text = searched.text((1, 0, 2, 0, 1, 1))
    assert text == "int4-weight-only:bits=3,layers=0+int4-weight-only:bits=8,layers=2+layer-drop:layers=1/2"
    assert parse(text).parts[2].layers == (1, 2)  # type: ignore[attr-defined]
    assert searched.text((0,) * 6) == ""
    assert space([{"method": "int4-weight-only", "bits": [3, 8], "each": "layer"}, "layer-drop@layer"], 3) == searched


def test_uniform_candidates_treat_all_layers_alike() -> None:
    searched = space("int4-weight-only:bits=3|8@layer,layer-drop:count=1..2", 3)
    alike = searched.uniform(100)
    assert len(alike) == len(set(alike)) == 8
    assert all(len(set(candidate[:3])) == 1 for candidate in alike)
    assert len(set(searched.uniform(3))) == 3


@pytest.mark.parametrize("sizes", [(2, 3, 2), (8,) * 7])
def test_draws_are_every_candidate_once_by_seed(sizes: tuple[int, ...]) -> None:
    searched = Space(tuple(Part(("", *map(str, range(1, size)))) for size in sizes), 1)
    draws = [candidate for _, candidate in zip(range(500), searched.draws(1), strict=False)]
    assert len(set(draws)) == len(draws) == min(searched.count, 500)
    assert all(map(any, draws))
    assert draws == [candidate for _, candidate in zip(range(500), searched.draws(1), strict=False)]
    assert draws != [candidate for _, candidate in zip(range(500), searched.draws(2), strict=False)]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "expected methods"),
        ("nope", "unknown method"),
        ("dense", "leave the model as it is"),
        ("layer-drop:count=0", "leave the model as it is"),
        ("layer-drop:unit", "give its values"),
        ("calm@layer", "no parameter layers"),
        ("layer-drop:layers=1@layer", "leave layers out"),
        ("layer-drop:count=1..2@layer", "contradicts layers"),
        ("int4-weight-only:bits=99", "not valid"),
        ([{"bits": 3}], "expected method: NAME"),
        ([{"method": "wanda", "each": "head"}], "expected method: NAME"),
    ],
)
def test_a_wrong_space_is_refused_in_a_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(HarnessError, match=sentence):
        space(given, 4)


def test_objectives_and_budgets_are_read_and_refused() -> None:
    metrics = Metrics.asked(["loss", "bytes"], budgets(["flops=0.7, latency=0.9"], KNOWN[1:]))
    assert [cost.name for cost in metrics.costs] == ["loss", "weights", "flops", "latency"]
    assert metrics.objectives == 2
    assert metrics.limits[2:] == (0.7, 0.9)
    assert metrics.measured == ["flops", "latency"]
    for names, texts, sentence in (
        (["bytes"], [], "add loss"),
        (["loss"], [], "loses nothing"),
        (["loss", "bytes", "weights"], [], "given twice"),
        (["loss", "flop"], [], "Did you mean 'flops'"),
        (["loss"], ["latncy=0.5"], "Did you mean 'latency'"),
        (["loss"], ["loss=0.5"], "unknown budget"),
        (["loss"], ["flops=1.5"], "above 0 and at most 1"),
        (["loss"], ["flops=nan"], "above 0 and at most 1"),
        (["loss"], ["flops"], "expected a cost and its share"),
        (["loss"], ["bytes=0.5", "weights=0.5"], "are one cost"),
    ):
        with pytest.raises(HarnessError, match=sentence):
            Metrics.asked(names, budgets(texts, KNOWN[1:]))


def test_documents_to_choose_on_are_none_of_those_to_report_on(tiny_tasks: Path) -> None:
    task = TaskLoader(str(tiny_tasks)).load("tiny_letters", Overrides(None, None, None))
    (leaf,) = task.tasks.values()
    every = range(len(leaf.eval_docs))
    parts = dealt(task, 0.25, None, 0)
    chosen, others = parts.validation["tiny_letters"], parts.test["tiny_letters"]
    assert Counter([*chosen, *others]) == Counter(every)
    assert 0 < len(chosen) <= len(every) // 4
    assert dealt(task, 0.25, None, 0) == parts != dealt(task, 0.25, None, 1)
    assert sum(dealt(task, 100, 8, 0).counts) == 8
    assert dealt(task, 100, 8, 0).counts[0] <= 4
    with pytest.raises(SpecError, match="each part needs 2"):
        dealt(task, 100, 3, 0)


def test_copies_of_a_document_go_together(tiny_tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TaskLoader(str(tiny_tasks)).load("tiny_letters", Overrides(None, None, None))
    copies = [{"id": number, "text": f"document {number // 2}"} for number in range(20)]
    monkeypatch.setattr(type(task), "documents", lambda *_: iter(copies))
    parts = dealt(task, 0.5, None, 3)
    texts = [{copies[index]["text"] for index in side["tiny_letters"]} for side in (parts.validation, parts.test)]
    assert not texts[0] & texts[1]
    assert sum(parts.counts) == 20
