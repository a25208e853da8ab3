"""``harness show METHOD`` tells everything that the class, its annotations and its docstring say."""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MultipleOf
from pydantic import Field

from harness.contract import registry
from harness.contract.describe import Parameter, describe, paper_url
from harness.contract.facts import Phase, Savings
from harness.contract.families import Family
from harness.contract.method import Method

LOOSE = '''"""A file."""
from contextlib import nullcontext
from dataclasses import dataclass
from harness import Family, Method

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    """Do [red]nothing[/red]."""

    name = "layer-drop"
    family = Family.PRUNING

    def attach(self, model, prepared):
        """Nothing."""
        return nullcontext()
'''


class Side(StrEnum):
    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True, kw_only=True)
class Told(Method):
    """Tell all that can be told
    in two lines.

    A second thought.

    How: it does
    this, with ``x = 1``.

    And then that.

    Parameters:
        share: how much: a part
            of the whole.
        unit: what.

    Limits: none known.
    """

    name = "told"
    family = Family.SPARSE
    paper = "arXiv:1234.56789"
    savings = Savings.SIMULATED
    phases = frozenset({Phase.PREFILL})
    batchable = False
    examples = ({"state": "a"}, {"state": "a", "share": 1})
    neutral = {"state": "a", "share": 0}

    state: str
    share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    step: Annotated[int, Gt(0), Lt(64), MultipleOf(8)] = 8
    unit: Literal["block", "mlp"] = "block"
    side: Side = Side.LEFT
    flag: bool = False
    most: Annotated[int, Field(ge=1)] | None = None
    layers: Annotated[tuple[Annotated[int, Ge(0), Le(9)], ...], Field(max_length=3)] = (1, 2)

    def attach(self, model, prepared):
        return nullcontext()


def test_parameters_come_from_annotations_and_the_docstring():
    told = {parameter.name: parameter for parameter in describe(Told).parameters}
    assert list(told) == [each.name for each in fields(Told)]
    assert told["state"] == Parameter("state", "text", "", None, "")
    assert told["share"] == Parameter("share", "number", "from 0 to 1", "0.5", "how much: a part of the whole.")
    assert told["step"] == Parameter("step", "whole number", "above 0 below 64 in steps of 8", "8", "")
    assert told["unit"] == Parameter("unit", "one of block, mlp", "", "block", "what.")
    assert told["side"] == Parameter("side", "one of left, right", "", "left", "")
    assert told["flag"] == Parameter("flag", "True or False", "", "False", "")
    assert told["most"] == Parameter("most", "whole number or None", "from 1", "None", "")
    assert told["layers"] == Parameter("layers", "whole number, several written a/b/c", "each from 0 to 9", "1/2", "")


def test_sections_come_from_the_docstring():
    told = describe(Told)
    assert told.summary == "Tell all that can be told in two lines."
    assert told.sections == {
        "": "A second thought.",
        "How": "It does this, with ``x = 1``.\n\nAnd then that.",
        "Limits": "None known.",
    }


def test_facts_come_from_the_class():
    told = describe(Told)
    assert told.facts["saving"].startswith("simulated")
    assert told.facts["phases"] == "prefill"
    assert told.facts["batchable"] == "no: run it with --batch_size 1"
    assert told.facts["exact"].startswith("no")
    assert (told.facts["preparation"], told.facts["training"]) == ("none", "none")
    assert told.examples == ("told:state=a", "told:state=a,share=1.0")
    assert told.neutral == "told:state=a,share=0.0"


@pytest.mark.parametrize(
    ("paper", "url"),
    [
        ("arXiv:2406.15786", "https://arxiv.org/abs/2406.15786"),
        ("doi:10.1/x", "https://doi.org/10.1/x"),
        ("https://example.org/p.pdf", "https://example.org/p.pdf"),
        ("a workshop, 2019", None),
    ],
)
def test_papers_have_addresses(paper, url):
    assert paper_url(paper) == url


@pytest.mark.parametrize("item", [item for item in registry.listings() if item.built_in], ids=lambda item: item.name)
def test_every_built_in_method_is_told_in_full(harness, item):
    done = harness("show", item.name)
    assert done.code == 0
    description = describe(registry.get(item.name))
    assert "\n\n".join(description.sections.values()) == "\n\n".join(description.sections.values()).strip()
    assert description.summary
    assert all(parameter.text for parameter in description.parameters), "describe each under Parameters:"
    printed = " ".join(done.out.split())
    for parameter in description.parameters:
        assert f"{parameter.name} ({parameter.type}" in printed
    for heading, text in description.sections.items():
        assert heading in printed
        assert " ".join(text.replace("``", "").split()) in printed


def test_as_json(harness):
    told = harness("show", "layer-drop", "--json").json()
    assert (told["name"], told["family"]) == ("layer-drop", "pruning")
    assert {"name": "count", "default": "4", "range": "from 0"}.items() <= told["parameters"][1].items()


def test_a_distribution_may_be_named(harness):
    assert harness("show", "efficiency-harness/dense").out == harness("show", "dense").out


def test_a_loose_file_is_shown_as_text_not_markup(harness, tmp_path):
    (tmp_path / "mine.py").write_text(LOOSE)
    assert "Do [red]nothing[/red]." in harness("show", "./mine.py:Mine").out


def test_a_method_goes_before_a_folder_and_a_path_does_not(harness, tmp_path):
    (tmp_path / "dense").mkdir()
    assert "baseline" in harness("show", "dense").out
    assert "no finished run" in harness("show", "./dense").sentence


def test_what_is_neither_is_answered_with_the_nearest_of_both(harness, tmp_path):
    (tmp_path / "runs" / "dense_m_t_0123456789ab").mkdir(parents=True)
    assert "unknown method or run 'layer-dorp'. Did you mean 'layer-drop' or" in harness("show", "layer-dorp").sentence
    assert "'0123456789ab'" in harness("show", "0123456789ax").sentence
