"""What a run saved is decided from its costs and dense's on the same tokens, and never from the method's name."""

from typing import Any

import pytest

from harness.results.record import RunRecord
from harness.results.saving import saving, unexecuted, why_none
from tests.toys import record_json

DENSE = {
    "flops": {"total": 8, "dense_equivalent": 8, "weight_bytes": 100, "kv_bytes": 10},
    "memory": {"weights": 50, "kv_peak": 20},
}
ALIKE = {
    "flops": DENSE["flops"] | {"dense_weight_bytes": 100, "dense_kv_bytes": 10},
    "memory": DENSE["memory"] | {"dense_weights": 50, "dense_kv_peak": 20},
}


def record(declared: str = "real", old: bool = False, **changes: Any) -> dict[str, Any]:
    """A run that did dense's work, but for ``changes`` of its sections."""
    plain = record_json()
    sections = DENSE if old else ALIKE
    for name in ("flops", "memory"):
        plain[name] |= sections[name] | changes.pop(name, {})
    plain["trace"] |= {"executed": True} | changes.pop("trace", {})
    plain["method"] |= {"savings": declared, "declared_real": declared == "real" and not old} | changes.pop(
        "method", {}
    )
    return RunRecord.model_validate({**plain, **changes}).model_dump(mode="json")


def baseline(**changes: Any) -> dict[str, Any]:
    ratios = {name: {"value": 1.0} for name in ("flops", "weight_bytes", "kv_bytes", "weights", "kv_peak")}
    return {"run_id": "0" * 12, "documents": 2, "ratios": ratios | changes.pop("ratios", {}), **changes}


def scores(difference: float | None) -> list[dict[str, Any]]:
    change = None if difference is None else {"difference": difference, "n": 2}
    return [{**record_json()["scores"][0], "vs_baseline": change}]


@pytest.mark.parametrize("declared", ["none", "real", "simulated"])
def test_a_run_that_did_dense_s_work_saved_nothing(declared: str) -> None:
    assert saving(record(declared)) == {"real": "none"}.get(declared, declared)
    assert saving(record(declared, flops={"total": 9, "parts": {"mlp": 9}})) == {"real": "none"}.get(declared, declared)


def test_work_that_is_not_known_is_not_saved() -> None:
    unknown = {**record(), "flops": None, "missing": {"flops": "no formula counts it"}}
    assert saving(unknown) == "none"
    assert why_none(unknown) == "what it multiplies is not known: no formula counts it"
    unknown["memory"]["weights"] = ALIKE["memory"]["dense_weights"] - 1
    assert saving(unknown) == "real"


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("flops", "total"),
        ("flops", "weight_bytes"),
        ("flops", "kv_bytes"),
        ("memory", "weights"),
        ("memory", "kv_peak"),
    ],
)
def test_any_counted_cost_below_dense_s_is_saved(section: str, name: str) -> None:
    assert saving(record(**{section: {name: ALIKE[section][name] - 1}})) == "real"
    assert saving(record("simulated", **{section: {name: ALIKE[section][name] - 1}})) == "simulated"


@pytest.mark.parametrize(
    ("ratios", "length", "saved"),
    [
        ({}, None, "none"),
        ({"weights": {"value": 0.999}}, None, "real"),
        ({"weight_bytes": {"value": 0.5}}, 1.004, "real"),
        ({"kv_bytes": {"value": 0.996}}, 0.996, "none"),  # it wrote that much less
        ({"kv_bytes": {"value": 0.3}}, 0.3, "real"),  # nothing in the record says whether a token cost less
    ],
)
def test_older_records_say_what_their_ratios_say(ratios: dict[str, Any], length: float | None, saved: str) -> None:
    assert saving(record(old=True, baseline=baseline(ratios=ratios, output_tokens=length))) == saved


def test_older_records_without_dense_say_what_was_declared() -> None:
    assert saving(record(old=True)) == "real"
    assert saving(record(old=True, flops={"dense_equivalent": 9})) == "real"


@pytest.mark.parametrize(
    ("trace", "family", "words"),
    [
        ({}, "early-exit", "scored text: exits are masked, every layer ran"),
        ({}, "pruning+early-exit", "scored text: exits are masked, every layer ran"),
        ({}, "routing", "scored text: every layer ran on every token"),
        ({"output_tokens": 3}, "early-exit", "every layer ran on every token"),
        ({"attention_layer_tokens": 6, "mlp_layer_tokens": 6}, "routing", "layers ran 1.50 times as often as in dense"),
        ({"attention_layer_tokens": 2}, "routing", "what it adds costs as much as what it leaves out"),
    ],
)
def test_why_nothing_was_saved_is_read_off_what_ran(trace: dict[str, Any], family: str, words: str) -> None:
    assert why_none(record(trace=trace, method={"family": family})) == words


@pytest.mark.parametrize(
    ("changed", "difference", "words"),
    [
        (0.0, 0.0, "never executed"),
        (None, 0.0, "never executed"),  # a task of no answers, whose scores are dense's
        (0.9, -0.75, "saved no work: every layer ran on every token, as in dense, and 90.0% of the answers changed"),
        (0.9, 0.0, "saved no work"),
        (0.0, -0.01, "saved no work"),
        (None, -0.01, "saved no work"),
        (None, None, "saved no work"),
    ],
)
def test_never_executed_is_said_where_the_answers_are_dense_s_too(
    changed: float | None, difference: float | None, words: str
) -> None:
    def said(executed: bool | None, declared: str = "real", **changes: Any) -> str | None:
        beside = baseline(answers_changed=changed)
        return unexecuted(
            record(declared, trace={"executed": executed}, baseline=beside, scores=scores(difference), **changes)
        )

    assert str(said(executed=False)).startswith(words)
    assert said(executed=True) is said(executed=None) is None
    assert said(executed=False, declared="simulated") is None
    assert said(executed=False, memory={"kv_peak": 10}) is None  # it kept less in the cache


@pytest.mark.parametrize(
    ("ratios", "length", "changed", "saved"),
    [
        ({}, 1.0, 0.0, "none"),
        ({"weight_bytes": {"value": 0.5}}, 1.0, 0.0, "real"),  # drafts: fewer forwards for the same texts
        ({"kv_bytes": {"value": 0.9}}, None, 0.0, "real"),
        ({"kv_bytes": {"value": 0.9}}, None, 0.5, "real"),  # what is scored is the same, whatever is answered
        # one long text ended early: as many tokens in all, and less of all that grows faster than they do
        *(({name: {"value": 0.7}}, 0.995, 0.01, "none") for name in ("flops", "weight_bytes", "kv_bytes", "kv_peak")),
        ({"kv_bytes": {"value": 0.7}}, 1.0, 0.01, "none"),  # and another goes on for longer
        ({"kv_bytes": {"value": 0.7}}, 1.0, None, "none"),
        ({"weights": {"value": 0.7}}, 0.995, 0.01, "real"),
        ({"kv_bytes": {"value": 0.3}, "kv_bytes_total": {"value": 0.3}}, 0.3, 1.0, "none"),
    ],
)
def test_a_dense_run_counts_where_it_wrote_the_same_texts(
    ratios: dict[str, Any], length: float | None, changed: float | None, saved: str
) -> None:
    """Of the same forwards, dense may have cost the same, and yet have needed more of them."""
    beside = baseline(ratios=ratios, output_tokens=length, answers_changed=changed)
    idle = record(baseline=beside, trace={"executed": False}, scores=scores(0.0))
    assert saving(idle) == saved
    if saved == "none" and changed:
        assert str(unexecuted(idle)).startswith("saved no work")


def test_an_older_record_s_cache_is_not_smaller_for_texts_that_end_elsewhere() -> None:
    beside = baseline(ratios={"kv_bytes": {"value": 0.7}, "kv_peak": {"value": 0.7}}, output_tokens=0.995)
    assert unexecuted(record(old=True, baseline=beside, trace={"executed": False}))


@pytest.mark.parametrize("length", [0.5, 0.99, 1.04])
def test_answers_of_another_length_are_not_dense_s(length: float) -> None:
    beside = baseline(answers_changed=0.0, output_tokens=length)
    said = unexecuted(record(trace={"executed": False}, baseline=beside, scores=scores(0.0)))
    assert str(said).startswith("saved no work")


def test_a_layer_in_another_s_place_is_not_every_layer() -> None:
    routes = {"distinct": 1, "identity": 0.0, "entropy": 0.0, "common": {"1021": 1.0}}
    routes |= {"union_prefill": None, "union_decode": None}
    swapped = record(routes=routes)
    assert why_none(swapped) == "scored text: as many layers ran as in dense, others of them"
    assert why_none(record(routes=routes | {"identity": 1.0})) == "scored text: every layer ran on every token"


@pytest.mark.parametrize("ratio", [0.9, 1.002, 1.5])
def test_no_saving_is_real_while_the_counter_sees_other_work(ratio: float) -> None:
    doubtful = record(flops={"total": 4, "audit_ratio": ratio})
    assert saving(doubtful) == "none"
    assert "PyTorch's counter" in why_none(doubtful)
    for agreed in (1.0, 1.0005, None):
        assert saving(record(flops={"total": 4, "audit_ratio": agreed})) == "real"
    assert saving(record("simulated", flops={"total": 4, "audit_ratio": ratio})) == "simulated"
