"""Values as lm-eval spells them."""

from pathlib import Path

import pytest

from harness.cli import arguments
from harness.cli.spellings import spread
from harness.core.errors import HarnessError


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["a=1,b=2.5"], {"a": 1, "b": 2.5}),
        (["a=1", "b=x"], {"a": 1, "b": "x"}),
        (["a=True,b=false,c=None"], {"a": True, "b": False, "c": None}),
        (['until=["\\n\\n","."],do_sample=true'], {"until": ["\n\n", "."], "do_sample": True}),
        (["until=['a,b', 'c'],x=1"], {"until": ["a,b", "c"], "x": 1}),
        (['{"until": ["Q:", "}"], "n": 2}'], {"until": ["Q:", "}"], "n": 2}),
        (["a=b=c"], {"a": "b=c"}),
        (["a=1", "a=2"], {"a": 2}),
        (["name=org/model-1.5"], {"name": "org/model-1.5"}),
        ([], {}),
    ],
)
def test_key_values(given: list[str], parsed: dict[str, object]) -> None:
    assert arguments.key_values("--gen_kwargs", given) == parsed


@pytest.mark.parametrize("given", ["a", "=1", "a=1,b", '{"a": 1', "[1]"])
def test_key_values_refuses(given: str) -> None:
    with pytest.raises(HarnessError, match="--gen_kwargs"):
        arguments.key_values("--gen_kwargs", [given])


def test_seeds_are_one_or_four() -> None:
    assert arguments.seeds("7") == (7, 7, 7, 7)
    assert arguments.seeds("0, 1,None,3") == (0, 1, None, 3)
    for wrong in ("a", "1,2", "1.5", ""):
        with pytest.raises(HarnessError, match="--seed"):
            arguments.seeds(wrong)


def test_samples_are_an_object_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "samples.json"
    file.write_text('{"a": [3, 0]}')
    assert arguments.samples('{"a": [3, 0]}') == arguments.samples(str(file)) == {"a": [3, 0]}
    for wrong in ('{"a": 1}', '{"a": [-1]}', '{"a": ["x"]}', "[1]", "nonsense"):
        with pytest.raises(HarnessError, match="--samples"):
            arguments.samples(wrong)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("run --tasks a b --limit 2", "run --tasks a --tasks b --limit 2"),
        ("run -t a b", "run -t a --tasks b"),
        ("run --task a b", "run --task a --task b"),
        ("run --model_args a=1 b=2", "run --model_args a=1 --model_args b=2"),
        ("run --model-args a=1 b=2", "run --model-args a=1 --model_args b=2"),
        ("run --gen_kwargs a=-1 b=-2", "run --gen_kwargs a=-1 --gen_kwargs b=-2"),
        ("run --apply_chat_template", "run --apply_chat_template true"),
        ("run --apply-chat-template --limit 1", "run --apply-chat-template true --limit 1"),
        ("run --apply_chat_template name --limit 1", "run --apply_chat_template name --limit 1"),
        ("run --fewshot_as_multiturn -t a", "run --fewshot_as_multiturn true -t a"),
        ("show a b", "show a b"),
    ],
)
def test_spread(written: str, meant: str) -> None:
    assert spread(written.split()) == meant.split()


def test_flags_of_lm_eval_that_are_absent_say_why() -> None:
    for word in ("--use_cache", "--use-cache=x"):
        with pytest.raises(HarnessError, match="own id"):
            spread(["run", word])
