"""Methods are parsed, applied in order, prepared on what is below them, and always restored."""

import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from harness.contract import registry
from harness.contract.decoder import Decoder
from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.stack import Stack, parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError, UnknownNameError
from harness.methods.dense import Dense
from harness.model.weights.savings import savings
from harness.results.store import Store
from harness.run import loading
from harness.run.session import Session
from harness.run.spec import Job, ModelSettings
from harness.testing.tiny import tiny_decoder, tiny_model
from tests.silent import Silent
from tests.toys import Alone, Needy, Paper, Toy, toy_model, write_method

TOYS = {"toy": Toy, "alone": Alone, "paper": Paper, "needy": Needy, "dense": Dense}


@pytest.fixture
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "get", TOYS.__getitem__)


@pytest.fixture(scope="module")
def outline(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """A model of four layers without its weights."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", layers=4).save_pretrained(folder)
    settings = ModelSettings(pretrained=str(folder))
    return loading.outline(settings, loading.source_of(settings))


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(States(tmp_path / "prepared"), Study(("text",), "a text"))


@pytest.mark.usefixtures("_toys")
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("toy", [Toy()]),
        ("toy:", [Toy()]),
        ("toy:count=3", [Toy(count=3)]),
        (" toy : count = 3 , share = 1 ".replace(" :", ":"), [Toy(count=3, share=1)]),
        ("toy:count=3,", [Toy(count=3)]),
        ("toy:count=3,count=5", [Toy(count=5)]),
        ("toy:note=a:b", [Toy(note="a:b")]),
        ("toy:note=a=b", [Toy(note="a=b")]),
        ("toy:note=", [Toy(note="")]),
        ("toy:share=1e+0", [Toy(share=1)]),
        ("toy:note=1E+16+paper", [Toy(note="1E+16"), Paper()]),
        ("toy+paper", [Toy(), Paper()]),
        ("paper+toy", [Paper(), Toy()]),
        ("toy:count=1 + toy:count=2", [Toy(count=1), Toy(count=2)]),
    ],
)
def test_a_stack_is_read(text: str, parts: list[Toy]) -> None:
    assert parse(text).parts == tuple(parts)


@pytest.mark.usefixtures("_toys")
def test_arguments_given_apart_are_added_and_win() -> None:
    assert parse("toy:count=3,flag=1", {"count": 5, "share": 0.1}) == Stack((Toy(count=5, share=0.1, flag=True),))


@pytest.mark.parametrize("args", ["", ":", ":count=3"])
def test_a_loose_file_is_read(args: str, tmp_path: Path) -> None:
    (method,) = parse(f"{write_method(tmp_path / 'a.b-c' / 'my.py')}:Loose{args}").parts
    assert method.params() == {"count": 3 if args.endswith("3") else 1}


def test_a_loose_file_may_be_stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_method(tmp_path / "my.py").parent)
    assert parse("./my.py:Loose:count=2+layer-drop").name == "loose+layer-drop"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "unknown method ''"),
        ("layer-drop+", "unknown method ''"),
        ("+layer-drop", "unknown method ''"),
        ("layer-drop:count", "method argument 'count' is not of the form key=value"),
        ("layer-drop:=3", "unknown argument of layer-drop ''"),
        ("layer-drop:cuont=3", "Did you mean 'count'"),
        ("layer-drop:count=three", "count='three' is not valid"),
        ("./nowhere.py:Class", "no such file: nowhere.py"),
        ("./nowhere.py", r"which class of ./nowhere.py\? A loose method is written ./file.py:Class"),
        ("dense+layer-drop", "dense cannot be stacked with another method: run it alone"),
        ("layer-drop+dense", "dense cannot be stacked with another method: run it alone"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, error: str) -> None:
    with pytest.raises((MethodError, UnknownNameError), match=error):
        parse(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("dr-llm+calm", "dr-llm and calm both decide which layers run: run them apart"),
        ("mue+mue", "both decide which layers run"),
        ("random-skip+static-path", "both decide which layers run"),
        ("polar+wanda", r"write wanda\+polar"),
        ("calm+block-sparse:sparsity=0.5", r"write block-sparse\+calm"),
        ("layer-drop:count=1+dr-llm", "dr-llm needs all of the model's layers, and layer-drop:count=1 takes some out"),
        ("layer-drop:layers=1+static-path", "static-path needs all of the model's layers"),
        ("wanda+layer-drop:count=1+random-skip", "random-skip needs all"),
        ("layer-drop:unit=attention,count=1+mue", "mue needs the attention of every layer"),
        ("layer-drop:unit=joint,count=2+calm", "calm needs the attention of every layer"),
        ("layer-drop:count=1+layer-drop:unit=mlp,count=1", "layer-drop scores all units of the model"),
        ("dr-llm+layer-drop:count=1", "name the layers that go"),
        ("streaming+ngram", "ngram takes guesses that are rejected .* and streaming gives none back as it was: run"),
        ("ngram+wanda+streaming", "streaming gives none back as it was: run them apart"),
        ("dr-llm+ngram", "dr-llm gives none back as it was"),
        ("ngram+static-path", "static-path gives none back as it was"),
        ("calm+layer-drop:layers=1", r"calm .* and layer-drop:\S+ above it takes layers out: write layer-drop\+calm"),
        ("mue+layer-drop:count=1", r"write layer-drop\+mue"),
        ("skip-decode+ngram+layer-drop:layers=0", r"write layer-drop\+skip-decode"),
        ("skip-decode+layer-drop:unit=attention,layers=1", r"attentions out: write layer-drop\+skip-decode"),
        ("mue+layer-drop:unit=attention,count=1", "attentions out: run them apart"),
    ],
)
def test_what_cannot_be_stacked_so_is_refused(text: str, error: str) -> None:
    with pytest.raises(MethodError, match=error):
        parse(text).check_order()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("wanda+block-sparse", "pruned by wanda in the pattern unstructured, which leaves hardly a block of 16x1"),
        ("magnitude+block-sparse", "give block-sparse a sparsity of its own"),
        ("magnitude:pattern=2:4+block-sparse", "the pattern 2:4"),
        ("wanda:pattern=4x1+block-sparse", "prune with pattern=16x1"),
        ("wanda:layers=1,linears=*.mlp.*+block-sparse:linears=*.mlp.*", "pattern unstructured"),
        ("magnitude:sparsity=0/0/0.5/0+block-sparse:layers=2", "pattern unstructured"),
        ("int8-dynamic+wanda", r"write wanda\+int8-dynamic$"),
        ("int8-dynamic+magnitude", r"write magnitude\+int8-dynamic$"),
        ("block-sparse+wanda:pattern=16x1", r"write wanda\+block-sparse$"),
        ("block-sparse+magnitude:layers=3", r"write magnitude\+block-sparse$"),
        ("int8-dynamic+int8-dynamic", r"would both compute model.layers.0.\S+: run them apart, or give each its own"),
        ("int8-dynamic+block-sparse", "would both compute"),
        ("block-sparse+int8-dynamic:layers=2,linears=*.q_proj", "would both compute model.layers.2.self_attn.q_proj"),
        ("int8-dynamic:head=true,layers=1+int8-dynamic:head=true,layers=2", "would both compute lm_head"),
        ("layer-drop:layers=1+layer-drop:layers=1/2", "layer 1 is already out of the model"),
        ("layer-drop:layers=1+layer-drop:unit=mlp,layers=1", "layer 1 is already out of the model"),
        ("layer-drop:unit=mlp,layers=1+layer-drop:unit=mlp,layers=1", "branch of layer 1 is already out"),
        ("layer-drop:layers=0/1+layer-drop:layers=2/3", "cannot drop every layer"),
        ("layer-drop:unit=attention,layers=0/1/2+wanda+layer-drop:unit=attention,layers=3", "attention"),
        ("layer-drop:layers=4", "there is no layer 4; the model's layers are 0 to 3"),
        ("layer-drop:count=4", "from 0 to 3 can be dropped"),
        ("layer-drop:unit=joint,count=8", "from 0 to 7 can be dropped"),
        ("random-skip", "from 1.00 to 1 can run"),
        ("static-path:skip=5", "from 0 to 4"),
        ("calm:every=4", "leave no layer to check in a model of 4"),
        ("calm:vocabulary=1000,every=1", "more than the model's 259 tokens"),
        ("wanda:layers=4", "there is no layer 4"),
        ("magnitude:linears=*.no_proj", "no linear layer is named"),
        ("wanda:sparsity=0.5/0.5", "2 sparsities are given; the model has 4 layers"),
        ("block-sparse:sparsity=0.5/0.5/0.5", "3 sparsities are given"),
    ],
)
def test_what_this_model_cannot_have_is_refused(text: str, error: str, outline: Decoder) -> None:
    stack = parse(text)
    stack.check_order()
    with pytest.raises(MethodError, match=error):
        stack.check_model(lambda: outline)


@pytest.mark.parametrize(
    "text",
    [
        "wanda:pattern=16x1+block-sparse",
        "wanda:pattern=16x1+block-sparse:pattern=4x1",
        "wanda+block-sparse:sparsity=0.5",
        "wanda:layers=1+block-sparse:layers=2",
        "magnitude:sparsity=0+block-sparse",
        "magnitude:sparsity=0/0/0.5/0+block-sparse:layers=1",
        "wanda+int8-dynamic",
        "int8-dynamic:linears=*.mlp.*+wanda:linears=*.self_attn.*",
        "int8-dynamic:layers=1+block-sparse:layers=2",
        "int8-dynamic:layers=0+int8-dynamic:layers=1,head=true",
        "wanda+magnitude",
        "layer-drop:unit=mlp,layers=1+layer-drop:unit=attention,layers=1",
        "layer-drop:layers=1+layer-drop:layers=2",
        "layer-drop:count=3",
        "random-skip:first=1,last=1",
        "calm:every=2",
        "dense",
    ],
)
def test_what_this_model_can_have_is_not(text: str, outline: Decoder) -> None:
    before = [name for name, _ in outline.module.named_modules()]
    parse(text).check_model(lambda: outline)
    assert [name for name, _ in outline.module.named_modules()] == before


@pytest.mark.parametrize(
    "text",
    [
        "wanda+dr-llm",
        "layer-drop:count=0+dr-llm",
        "layer-drop:unit=mlp,count=1+static-path",
        "layer-drop:unit=attention,count=1+random-skip",
        "layer-drop:unit=attention,count=1+layer-drop:unit=mlp,count=1",
        "layer-drop:layers=1+layer-drop:layers=2",
        "random-skip+layer-drop:layers=1",
        "layer-drop:count=1+mue",
        "mue+layer-drop:unit=mlp,count=1",
        "calm+layer-drop:count=0",
        "calm+int8-dynamic",
        "kv-evict+ngram",
        "ngram+kv-evict",
        "calm+ngram",
    ],
)
def test_what_can_be_stacked_is(text: str) -> None:
    parse(text).check_order()


class OwnFamilies(str, Enum):  # noqa: UP042 - what an author may write
    KV = "kv-cache"


class OwnText(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "family", [3, "", "KV cache", "kv_cache", None, b"cache", "a" * 31, OwnFamilies.KV, OwnText("kv-cache")]
)
def test_a_family_that_is_none_is_refused_whoever_builds_the_stack(family: Any) -> None:
    method = type("Odd", (Toy,), {"family": family})()
    with pytest.raises(MethodError, match=r"^toy: family=.* is no family: expected baseline, routing"):
        Stack((method,))


def test_a_family_of_ones_own_may_have_thirty_characters() -> None:
    assert Stack((type("Odd", (Toy,), {"family": "a" * 30})(),)).family == "a" * 30


def test_a_method_that_wants_to_be_alone_may_be_alone() -> None:
    assert Stack((Alone(),)).name == "alone"


def test_the_label_is_that_of_the_parts() -> None:
    assert Stack((Toy(count=3), Paper())).label == "toy:count=3+paper"


@pytest.mark.parametrize(
    ("parts", "saved", "exact", "family"),
    [
        ((Toy(),), Savings.REAL, False, "pruning"),
        ((Toy(), Paper()), Savings.SIMULATED, False, "pruning"),
        ((Paper(),), Savings.SIMULATED, True, "pruning"),
        ((Dense(),), Savings.NONE, True, "baseline"),
    ],
)
def test_a_stack_promises_what_all_its_parts_do(parts: Any, saved: Savings, exact: bool, family: str) -> None:
    stack = Stack(parts)
    assert (savings(stack, tiny_decoder("llama")), stack.exact, stack.family) == (saved, exact, family)
    assert stack.is_dense is (family == "baseline")


def test_the_order_changes_the_fingerprint() -> None:
    assert Stack((Toy(), Paper())).fingerprint != Stack((Paper(), Toy())).fingerprint


def test_parts_are_prepared_and_attached_in_turn_and_restored_backwards(preparation: Preparation) -> None:
    model = toy_model()
    with Stack((Toy(), Paper())).applied(model, preparation) as states:
        assert model.attached == ["toy", "paper"]
        assert [state.facts for state in states] == [{"count": 4}, {"count": 4}]
    assert model.log == [
        "prepare toy on ",
        "attach toy with {'count': 4}",
        "prepare paper on toy",
        "attach paper with {'count': 4}",
        "restore paper",
        "restore toy",
    ]


def test_a_part_is_prepared_anew_on_other_parts_below(preparation: Preparation) -> None:
    model = toy_model()
    for below in (Toy(count=1), Toy(count=2), Toy(count=2)):
        with Stack((below, Paper())).applied(model, preparation):
            pass
    assert [line for line in model.log if line.startswith("prepare paper")] == [
        "prepare paper on toy:count=1",
        "prepare paper on toy:count=2",
    ]


def test_everything_is_restored_after_an_exception_inside(preparation: Preparation) -> None:
    model = toy_model()
    with pytest.raises(KeyboardInterrupt), Stack((Toy(), Paper())).applied(model, preparation):
        raise KeyboardInterrupt
    assert model.attached == []


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [((Toy(),), "toy: no"), ((Toy(), Paper()), "toy+paper: no"), ((Toy(), Paper()), "toy says no")],
)
def test_what_is_refused_while_a_stack_runs_has_its_name(parts: Any, sentence: str, preparation: Preparation) -> None:
    """An engine that refuses in a forward does not know whose it is."""
    with (
        pytest.raises(MethodError, match=f"^{re.escape(sentence)}$"),
        Stack(parts).applied(toy_model(), preparation),
    ):
        raise MethodError(sentence.partition(": ")[2] or sentence)


@pytest.mark.parametrize("step", ["prepare", "attach"])
def test_the_first_part_is_restored_when_the_second_fails(
    step: str, preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    model = toy_model()
    monkeypatch.setattr(Paper, step, fail)
    with pytest.raises(RuntimeError, match="no"), Stack((Toy(), Paper())).applied(model, preparation):
        pass
    assert model.log[-1] == "restore toy"


def test_a_batch_is_refused_where_rows_meet(tmp_path: Path) -> None:
    path = write_method(tmp_path / "loose.py")
    path.write_text(path.read_text().replace("count: int = 1", "batchable = False"))
    job = Job(methods=(f"{path}:Loose",), tasks=("any",), pretrained="any", batch_size=2)
    with pytest.raises(MethodError, match="--batch_size 1"):
        _ = Session(job, Store(tmp_path), Silent()).plan.specs


def test_an_outside_method_cannot_be_the_baseline(tmp_path: Path) -> None:
    path = write_method(tmp_path / "loose.py")
    path.write_text(path.read_text().replace("PRUNING", "BASELINE"))
    with pytest.raises(MethodError, match="baseline"):
        parse(f"{path}:Loose")
