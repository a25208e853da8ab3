"""Scoring context first gives lm-eval's answers, and shows what a method takes out of the cache in between."""

import json
import shlex
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from annotated_types import Ge

from harness.contract.facts import Phase
from harness.contract.families import Family
from harness.contract.method import Method
from harness.core.errors import MethodError, SpecError, UnlikeRunsError
from harness.evaluate.context_first import held_back
from harness.reports.rows import Row
from harness.results.compare import compare
from harness.results.saving import unexecuted
from harness.results.store import Store
from harness.run.plan import Plan
from harness.run.session import Session
from harness.run.spec import Job
from tests.silent import Silent


@dataclass(frozen=True, kw_only=True)
class Evicting(Method):
    """Keeps a few entries of the cache when a prompt was read; it says that it acts in both phases."""

    name = "evicting"
    family = Family.CACHE

    kept: Annotated[int, Ge(1)] = 2

    @contextmanager
    def attach(self, model, prepared):
        def evict(module, args, kwargs, output):
            if model.context is not None and not model.context.decoding and kwargs.get("past_key_values") is not None:
                for layer in kwargs["past_key_values"].layers:
                    layer.keys, layer.values = layer.keys[..., -self.kept :, :], layer.values[..., -self.kept :, :]

        handle = model.module.register_forward_hook(evict, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class OnlyDecoding(Evicting):
    """The same, with what it changes declared."""

    name = "only-decoding"
    phases = frozenset({Phase.DECODE})


@pytest.fixture
def settings(tiny_folder, tiny_tasks, device) -> dict[str, Any]:
    return {"pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "device": device}


@pytest.fixture
def run(settings, tmp_path, monkeypatch):
    """Carry out a job; the store and the records by method."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    store = Store(tmp_path / "runs")

    def execute(task, *methods, **more):
        job = Job(methods=methods or ("dense",), tasks=(task,), **{"limit": 6, **settings, **more})
        return {record.method.name: record for record in Session(job, store, Silent()).execute()}

    execute.store = store
    return execute


def loose(name):
    return f"{__file__}:{name}"


def samples(run, record):
    return {line["doc_id"]: line for line in run.store.find(record.id).samples()}


def values(record):
    return {(score.metric, score.filter): score.value for score in record.scores}


@pytest.mark.parametrize(
    ("task", "batch_size"), [("tiny_choice", 1), ("tiny_choice", 4), ("tiny_letters", 4), ("tiny_last", 1)]
)
@pytest.mark.usefixtures("few_resamples")
def test_dense_gives_lm_evals_answers(task, batch_size, run):
    ours = run(task, batch_size=batch_size, score_mode="context-first", limit=12)["dense"]
    theirs = run(task, batch_size=batch_size, limit=12)["dense"]
    assert ours.id != theirs.id
    assert values(ours) == pytest.approx(values(theirs), rel=1e-4)
    before = samples(run, theirs)
    for number, line in samples(run, ours).items():
        assert line["scores"] == pytest.approx(before[number]["scores"], abs=1e-4)
        for (answer,), (expected,) in zip(line["responses"], before[number]["responses"], strict=True):
            assert float(answer[0]) == pytest.approx(float(expected[0]), abs=1e-4)
            assert str(answer[1]) == str(expected[1])
    assert (ours.evaluation.score_mode, theirs.evaluation.score_mode) == ("context-first", "lm-eval")
    assert ours.flops.audit_ratio == pytest.approx(1)
    assert ours.trace.pad_tokens == 0


def test_a_context_is_read_once_for_all_choices(run):
    ours, theirs = run("tiny_choice", score_mode="context-first")["dense"], run("tiny_choice")["dense"]
    read = {number: line["prompt_tokens"] for number, line in samples(run, ours).items()}
    for number, line in samples(run, theirs).items():
        requests = [count for row in line["rows"] for count in [row["segments"][0]["queries"]]]
        assert sum(requests) == line["prompt_tokens"]
        assert read[number] < line["prompt_tokens"] / 2  # of three choices
    # charged to one row of each document, and to no other
    for line in samples(run, ours).values():
        phases = [[segment["phase"] for segment in row["segments"]] for row in line["rows"]]
        assert sorted(phases, key=len, reverse=True) == [["prefill", "decode"], ["decode"], ["decode"]]
        assert phases[0] == ["prefill", "decode"]


def test_what_is_too_long_is_cut_from_the_left(run):
    short = {"model_args": {"max_length": 40}}
    ours, theirs = (
        run("tiny_choice", score_mode="context-first", **short)["dense"],
        run("tiny_choice", **short)["dense"],
    )
    before = samples(run, theirs)
    for number, line in samples(run, ours).items():
        for (answer,), (expected,) in zip(line["responses"], before[number]["responses"], strict=True):
            assert float(answer[0]) == pytest.approx(float(expected[0]), abs=1e-4)


def test_an_eviction_moves_a_score_of_one_letter_context_first_alone(run):
    usual = run("tiny_letters", loose("Evicting"), score_mode="lm-eval")
    for number, line in samples(run, usual["evicting"]).items():
        assert line["responses"] == samples(run, usual["dense"])[number]["responses"]
    records = run("tiny_letters", loose("Evicting"), score_mode="context-first")
    dense = samples(run, records["dense"])
    moved = [
        line["responses"] != dense[number]["responses"] for number, line in samples(run, records["evicting"]).items()
    ]
    assert all(moved)


def test_a_method_that_only_decodes_is_scored_context_first_with_its_dense(run):
    records = run("tiny_letters", loose("OnlyDecoding"))
    assert {record.evaluation.score_mode for record in records.values()} == {"context-first"}
    dense = samples(run, records["dense"])
    assert all(line["responses"] != dense[n]["responses"] for n, line in samples(run, records["only-decoding"]).items())
    assert records["only-decoding"].baseline.run_id == records["dense"].id
    # what is written needs no mode
    assert {record.evaluation.score_mode for record in run("tiny_answer", loose("OnlyDecoding")).values()} == {
        "lm-eval"
    }


@pytest.mark.parametrize(
    ("task", "methods", "more", "error", "words"),
    [
        ("tiny_letters", ["OnlyDecoding"], {"score_mode": "lm-eval"}, MethodError, "give --score_mode context-first"),
        ("tiny_text", ["OnlyDecoding"], {}, MethodError, "no context to be read first: run it on another task"),
        ("tiny_text", [], {"score_mode": "context-first"}, SpecError, "leave it out for this task"),
        ("tiny_text", [], {"score_suffix": 3}, SpecError, "--score_suffix 3: tiny_text scores whole texts"),
        ("tiny_letters", ["static-path"], {"score_suffix": 3}, MethodError, "leave --score_suffix out"),
        ("tiny_letters", ["static-path+OnlyDecoding"], {}, MethodError, "run them apart"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(task, methods, more, error, words, settings, tmp_path):
    methods = [text.replace("OnlyDecoding", loose("OnlyDecoding")) for text in methods]
    session = Session(Job(methods=methods or ["dense"], tasks=(task,), **settings, **more), Store(tmp_path), Silent())
    with pytest.raises(error) as raised:
        session.execute()
    assert words in str(raised.value)
    assert "lm" not in vars(session)


@pytest.mark.parametrize(
    "suffix", [0, -1, 1, True, "", "1", "0", "-5", "+5", "3.5", "1e9", " 5", "5 ", "1_0", "\u0663\u0663"]
)
def test_an_end_that_is_none_is_refused(suffix, settings):
    with pytest.raises(ValueError, match="expected a text, or a number of tokens from 2"):
        Job(methods=("dense",), tasks=("tiny_choice",), score_suffix=suffix, **settings)
    with pytest.raises(ValueError, match="give --score_mode context-first"):
        Job(methods=("dense",), tasks=("tiny_choice",), score_suffix=2, score_mode="lm-eval", **settings)


class Characters:
    """A tokenizer of one token per character, of which # is special, and its model."""

    max_length = 12

    def tok_decode(self, tokens, skip_special_tokens=True):
        text = "".join(map(chr, tokens))
        return text.replace("#", "") if skip_special_tokens else text


def request(context, continuation="yes"):
    return (context, continuation), list(map(ord, context)) or [0], list(map(ord, continuation))


def test_the_end_that_is_held_back():
    lm = Characters()
    assert held_back(lm, request("a Q: b Q: c"), None, "t") == 1
    assert held_back(lm, request("a Q: b"), 3, "t") == 3
    assert held_back(lm, request("Q: a Q: bc"), "Q:", "t") == len("Q: bc")
    assert held_back(lm, request("Q: a"), "Q:", "t") == 4
    assert held_back(lm, request("#Q: a #Q: b"), "#Q:", "t") == len("#Q: b")
    assert held_back(lm, request("#Q: a #Q: b#"), "#", "t") == 1
    assert held_back(lm, request(""), "Q:", "t") == 1  # the token that stands for no context
    for context, suffix, words in [
        ("abc", 4, "t: --score_suffix 4 is longer than the context, which has 3 tokens"),
        ("a", 2, "which has 1 token"),
        ("abc", "Q:", "t: --score_suffix 'Q:' is nowhere in the context"),
        ("a Q:", "Q: ", "'Q: ' is nowhere in the context; it is there without the space at its end"),
        ("Q: a long context", "Q:", "is nowhere in the context as it was cut to the model's length"),
    ]:
        with pytest.raises(SpecError) as raised:
            held_back(lm, request(context), suffix, "t")
        assert words in str(raised.value)


def test_a_question_that_is_held_back_is_not_evicted(run):
    """The two are recorded apart, and neither is compared with the other, nor with lm-eval's mode."""
    aware = run("tiny_letters", loose("OnlyDecoding"))
    agnostic = run("tiny_letters", loose("OnlyDecoding"), score_suffix=4)
    assert agnostic["dense"].id != aware["dense"].id
    assert agnostic["dense"].evaluation.score_suffix == 4
    usual = run("tiny_letters")
    rows = [Row(record.model_dump(mode="json"), None) for record in (aware["dense"], agnostic["dense"], usual["dense"])]
    assert len({row.group for row in rows}) == len({row.settings for row in rows}) == 3
    assert "context-first, last 4 tokens held back" in rows[1].settings
    with pytest.raises(UnlikeRunsError, match="score_suffix: None and 4"):
        compare(run.store.find(aware["dense"].id), run.store.find(agnostic["only-decoding"].id))
    with pytest.raises(UnlikeRunsError, match="score_mode"):
        compare(run.store.find(usual["dense"].id), run.store.find(aware["only-decoding"].id))
    changes = [
        sum(line["responses"] != samples(run, records["dense"])[n]["responses"] for n, line in lines.items())
        for records in (aware, agnostic)
        for lines in [samples(run, records["only-decoding"])]
    ]
    assert changes[0] == 6
    few = run("tiny_letters", f"{loose('OnlyDecoding')}:kept=200", score_suffix=4)
    assert samples(run, few["only-decoding"]) is not None
    close = samples(run, few["dense"])
    for number, line in samples(run, few["only-decoding"]).items():
        for (answer,), (expected,) in zip(line["responses"], close[number]["responses"], strict=True):
            assert float(answer[0]) == pytest.approx(float(expected[0]), abs=1e-4)


def test_an_end_that_a_document_does_not_have_is_said_before_anything_is_scored(run):
    with pytest.raises(SpecError, match="tiny_letters: document 0: --score_suffix 'Question:' is nowhere"):
        run("tiny_letters", score_suffix="Question:")
    with pytest.raises(SpecError, match="tiny_letters: document 3: --score_suffix 1000 is longer"):
        run("tiny_letters", score_suffix=1000, limit=None, samples={"tiny_letters": [3, 5]})


def test_the_command_of_a_record_gives_the_mode(run):
    record = run("tiny_letters", loose("OnlyDecoding"), score_suffix=4)["dense"]
    words = shlex.split(record.command)
    assert words[words.index("--score_mode") + 1] == "context-first"
    assert words[words.index("--score_suffix") + 1] == "4"
    assert "--score_mode" not in shlex.split(run("tiny_letters")["dense"].command)


def test_costs_are_those_of_requests_that_are_served_as_they_are_scored(run):
    measured = {"costs": {"measure": {"latency"}, "prompts": 2, "rounds": 2, "warmup": 0}}
    records = run(
        "tiny_choice", "static-path:skip=1", loose("Evicting"), score_mode="context-first", limit=3, **measured
    )
    for record in records.values():
        assert record.time.latency.kind == "score"
        for line in run.store.find(record.id).costs().values():
            for cost in line.get("requests", ()):
                assert [segment["phase"] for segment in cost["segments"]] == ["prefill", "decode"]
                if record.method.name != "evicting":
                    assert cost["segments"][1]["context"] == sum(segment["queries"] for segment in cost["segments"])


def test_what_is_asked_for_in_vain_is_said_once(settings):
    for more, flag in [
        ({"score_suffix": "so"}, "--score_suffix"),
        ({"score_suffix": "5"}, "--score_suffix"),
        ({"score_mode": "context-first"}, "--score_mode context-first"),
    ]:
        job = Job(methods=("dense", loose("OnlyDecoding")), tasks=("tiny_answer", "tiny_letters"), **settings, **more)
        assert Plan(job).notes == [f"{flag} has no effect on tiny_answer, where nothing is scored"]
        assert job.score_suffix in (None, "so", 5)
    assert Plan(Job(methods=("dense",), tasks=("tiny_answer",), **settings)).notes == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_checkpoint_with_a_static_cache_is_scored(batch_size, settings, tmp_path, run):
    folder = shutil.copytree(settings["pretrained"], tmp_path / "static")
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"cache_implementation": "static"}))
    more = {"pretrained": str(folder), "batch_size": batch_size, "limit": 3}
    usual, first = (run("tiny_choice", **more, score_mode=mode)["dense"] for mode in ("lm-eval", "context-first"))
    assert values(first) == pytest.approx(values(usual))
    assert first.flops.audit_ratio == pytest.approx(1)
    expected = samples(run, usual)
    for number, line in samples(run, first).items():
        for (answer,), (own,) in zip(line["responses"], expected[number]["responses"], strict=True):
            assert float(answer[0]) == pytest.approx(float(own[0]), abs=1e-4)


def test_an_exact_method_that_only_decodes_chooses_no_mode(run, settings):
    for asked in (None, "lm-eval", "context-first"):
        job = Job(methods=("dense", "ngram"), tasks=("tiny_letters",), score_mode=asked, **settings)
        assert {spec.score_mode for spec in Plan(job).specs} == {asked or "lm-eval"}
        assert Plan(job).notes == []
    record = run("tiny_letters", "ngram", limit=3)["ngram"].model_dump(mode="json")
    assert Row(record, None).saving == "none here"
    assert unexecuted(record).startswith("never executed")
