"""Every table as it is printed at 80 columns, at 100, and into a pipe: lines fit, and no number is cut.

The files in ``snapshots`` are what a reader sees. With ``HARNESS_SNAPSHOTS=write`` they are written anew.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len

from harness.cli import check, compare, display, doctor, fetch, ls, profile, show, summary
from harness.cli.columns import Column, blocks, folded, left
from harness.contract.describe import Description, Parameter
from harness.leaderboard.case import Finding
from harness.leaderboard.validate import Verdict
from harness.results.record import RunRecord
from harness.results.store import Store
from harness.testing import Result
from harness.testing.outcome import Outcome
from tests.conftest import Harness
from tests.measure.test_ideal import PROFILE
from tests.toys import record_json, sample_json

SNAPSHOTS = Path(__file__).parent / "snapshots"
METHODS = ("dense", "layer-drop:unit=attention,count=12", "wanda:pattern=16x1,sparsity=0.85+block-sparse")
TASKS = ("arc_challenge", "pocket_math")
COSTS = ("flops", "ideal_ref", "ideal_own", "latency", "tpot", "peak_memory", "energy")


def run(number: int, task: str, method: str) -> dict[str, Any]:
    """A finished run with all that a summary shows."""
    is_dense = method == "dense"
    plain = record_json(id=f"{number:x}" * 12, name=None if number % 3 else "first try")
    plain["method"] |= {"label": method, "name": method.partition(":")[0]} | (
        {"family": "baseline"} if is_dense else {}
    )
    plain["evaluation"] |= {"task": task, "limited": True, "limit": 200.0}
    change = {
        "difference": -0.035,
        "low": -0.061,
        "high": 0.009,
        "p": 0.125,
        "test": "mcnemar-exact",
        "n": 200,
        "gained": 3,
        "lost": 10,
        "detectable": 0.044,
    }
    score = plain["scores"][0] | {"task": task, "value": 0.81, "low": 0.75, "high": 0.858, "n": 200}
    plain["scores"] = [
        score | {"metric": metric, "filter": name, "vs_baseline": None if is_dense else change}
        for metric, name in (("exact_match", "strict-match"), ("exact_match", "flexible-extract"), ("f1", "none"))
    ]
    plain["trace"] |= {"mean_depth_prefill": 1.0, "mean_depth_decode": 0.643, "executed": None if is_dense else True}
    if not is_dense:
        ratios = {name: {"value": 1.02, "low": 0.91, "high": 1.13} for name in COSTS}
        ratios["flops"] = {"value": 0.84, "low": 0.83, "high": 0.85}
        ratios["ideal_own"] = {"value": 0.5}
        plain["baseline"] = {
            "run_id": "0" * 12 if task == TASKS[0] else "3" * 12,
            "documents": 200,
            "ratios": ratios,
            "noise": ratios,
            "answers_changed": 0.051,
            "output_tokens": 1.0,
        }
    plain["warnings"] = ["no kernel is 10% faster than dense here: torch int8 takes 18 times dense's time at 1 token"]
    return plain


RECORDS = [
    RunRecord.model_validate(run(3 * place + number, task, method))
    for place, task in enumerate(TASKS)
    for number, method in enumerate(METHODS)
]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The runs in a folder of results."""
    monkeypatch.chdir(tmp_path)
    store = Store(Path("runs"))
    for age, record in enumerate(RECORDS):
        folder = store.folder(record.id, record.method.label, "m", record.evaluation.task)
        names = [f"{score.metric},{score.filter}" for score in record.scores]
        right = [bool(n % (age + 2)) for n in range(20)]
        scores = [score.model_copy(update={"value": sum(right) / 20, "n": 20}) for score in record.scores]
        lines = [
            sample_json(
                task=record.evaluation.task,
                doc_id=n,
                doc_hash=f"{n:064x}",
                scores=dict.fromkeys(names, float(right[n])),
                flops=90 + n + age,
            )
            for n in range(20)
        ]
        command = f"harness run --method {record.method.label} --task {', '.join(TASKS)} --limit 200"
        folder.finish(record.model_copy(update={"scores": scores}), lines, {"command": command})
        os.utime(folder.path, (1e9 - age, 1e9 - age))
    return store


def listed() -> dict[str, list[dict[str, str]]]:
    """Rows of the lists that are made of what is installed here."""
    what = "Prune the linear layers in blocks, and run them on a sparse kernel that skips what is zero."
    return {
        "ls_methods": [
            {"name": name, "family": family, "saving": saving, "from": origin, "what": what}
            for name, family, saving, origin in (
                ("window-attention", "quantization", "simulated", "built in"),
                ("mine", "?", "?", "my-efficient-methods 0.12.3"),
            )
        ],
        "ls_tasks": [
            {
                "name": "pocket_recall_generate",
                "kind": "group",
                "from": "lm-eval",
                "data": "not here",
                "chance": "0.25",
                "dense": "pocket 0.694, smollm2-135m 0.20 of 30 documents",
                "for": "any model",
            }
        ],
        "ls_suites": [
            {"name": "llm-drop", "tasks": ", ".join(["winogrande", "gpqa_diamond_zeroshot"] * 4), "what": what}
            | {"paper": "arXiv:2406.15786"}
        ],
        "ls_models": [
            {
                "name": "HuggingFaceTB/SmolLM2-135M",
                "parameters": "134.5 M",
                "layers": "30",
                "positions": "8192",
                "licence": "apache-2.0",
                "on disk": "-",
                "here": "no: harness fetch --model smollm2-135m (93 MB)",
            }
        ],
        "ls_states": [
            {
                "method": "layer-drop:unit=attention,count=12",
                "size": "12.34 MB",
                "used": "2026-11-27 16:51+00:00",
                "folder": "/home/somebody/.cache/harness/prepared/layer-drop-a1aaab0b46a8d0a4",
            }
        ],
    }


def findings() -> list[tuple[str, str, str]]:
    return [
        ("efficiency-harness", "ok", "0.1.0"),
        ("load", "note", "3.15: other work is running; measured times would be noisy"),
        ("method window-attention", "broken", "cannot be imported: No module named 'nothing_of_this_name'"),
        (
            "roofline",
            "ok",
            "modelled: by data sheets v100-sxm-32, a100-sxm-80, h100-sxm, h200-sxm, mi300x, rtx4090, l4",
        ),
    ]


def described() -> Description:
    text = "Units to take out, of which each is one that the search has found to matter least, one after the other."
    return Description(
        name="layer-drop",
        family="pruning",
        summary="Take out the units of a model that matter least, once and for all inputs, without training.",
        paper="2406.15786",
        sections={"": text, "Cost": text},
        parameters=(Parameter("count", "int", "1 to 12", "2", text),),
        facts={"what it saves": "The running code does less work: fewer layers run, and fewer weights are read."},
        examples=("layer-drop:count=1",),
        neutral=None,
        source="harness.methods.layer_drop:LayerDrop",
    )


def plan() -> None:
    """``--dry_run``."""
    specs = [SimpleNamespace(id=record.id, record=record) for record in RECORDS[:3]]
    estimate = SimpleNamespace(
        lines=lambda: ["arc_challenge: 40 requests, 1,320 tokens to read: about 1 s a run, 3 runs"]
    )
    session = SimpleNamespace(
        plan=SimpleNamespace(specs=specs, notes=[]),
        folder=lambda spec: SimpleNamespace(path=Path(spec.id), finished=False),
        estimate=lambda: estimate,
    )
    display.plan(session, as_json=False)


TABLES: dict[str, Callable[[], object]] = {
    "scores": lambda: summary.scores(RECORDS),
    "summary": lambda: summary.results(RECORDS, Path("runs"), as_json=False),
    "costs": lambda: summary.results(RECORDS, Path("runs"), as_json=False, after_scores=True),
    "show_method": lambda: show._show_method(described()),
    "profile": lambda: profile._show(PROFILE, "pocket", 1024, 11),
    "check": lambda: check._print(
        METHODS[2],
        [
            Result("counts-what-runs", "The trace counts what runs.", Outcome.PASSED, "", 1.25),
            Result(
                "saves-measurably",
                "It is faster.",
                Outcome.FAILED,
                "a forward takes 100.4% of dense's time, " * 3,
                21.5,
            ),
        ],
    ),
    "prepare": lambda: display.prepared(
        [
            {
                "method": METHODS[1],
                "task": TASKS[0],
                "state": [{"dropped": [["block", 6]], "scores": [0.26378242671489716] * 6}],
            }
        ],
        Path("state"),
    ),
    "plan": plan,
    "fetch": lambda: fetch._print([("HuggingFaceTB/SmolLM2-135M", "fetched"), ("arc_challenge", "here already")]),
    **{name: lambda rows=rows: ls._print(rows, as_json=False) for name, rows in listed().items()},
}
COMMANDS = {
    "ls_runs": ["ls", "runs"],
    "show_run": ["show", "1111"],
    "compare": ["compare", "0000", "1111"],
    "doctor": ["doctor"],
    "validate": ["validate", "runs"],
}


def assert_fits(text: str, width: int) -> None:
    assert max(map(cell_len, text.splitlines())) <= width
    assert not any(line.endswith(" ") for line in text.splitlines())
    assert "…" not in text


def assert_snapshot(name: str, printed: dict[int, str]) -> None:
    text = "\n".join(f"--- {width} columns ---\n{part}" for width, part in printed.items())
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("HARNESS_SNAPSHOTS") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Sets the width of the terminal; None for a pipe."""

    def of(width: int | None) -> None:
        monkeypatch.delenv("COLUMNS", raising=False)
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))

    return of


@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits(
    name: str, at: Callable[[int | None], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "_described", lambda spec: described_run(spec.record))
    printed: dict[int | None, str] = {}
    for width in (80, 100, None):
        at(width)
        TABLES[name]()
        printed[width] = capsys.readouterr().out
        assert_fits(printed[width], width or 100)
    assert printed.pop(None) == printed[100]
    assert_snapshot(name, printed)


def described_run(record: RunRecord) -> dict[str, Any]:
    return {
        "method": record.method.label,
        "model": "SmolLM2-135M-Instruct",
        "task": record.evaluation.task,
        "documents": 1172,
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_fits(
    name: str, harness: Harness, stored: Store, at: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "the record says 0.84 [0.83, 0.85] of flops, and the two runs' files say 0.91 [0.9, 0.92]"
    problems = [Finding(Path("1" * 12), severity, "ratios", sentence) for severity in ("error", "warning")]
    monkeypatch.setattr("harness.leaderboard.validate.validate", lambda *_: Verdict(6, problems, ""))
    monkeypatch.setattr(doctor, "_findings", lambda _: iter(findings()))
    printed: dict[int | None, str] = {}
    for width in (80, 100, None):
        at(width)
        printed[width] = harness(*COMMANDS[name]).out
        assert_fits(printed[width], width or 100)
    assert printed.pop(None) == printed[100]
    assert_snapshot(name, printed)


@pytest.mark.parametrize(
    ("columns", "width"), [(None, 100), ("80", 80), ("100", 100), ("250", 100), ("5", 40), ("x", 100)]
)
def test_results_are_at_most_100_columns_wide(columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert display.stdout().width == width


@pytest.mark.parametrize("seed", range(40))
def test_no_number_is_ever_cut(seed: int) -> None:
    rng = random.Random(seed)
    rows, width = rng.randint(1, 5), rng.choice([60, 80, 100])

    def number() -> str:
        return rng.choice(
            ["", f"{rng.uniform(0, 9):.3f}", f"{rng.uniform(0, 9):.2f}x [{rng.uniform(0, 9):.2f}, 123.45]"]
        )

    lead = [left("id", [f"{rng.getrandbits(24):06x}" for _ in range(rows)])]
    lead.append(left("method", ["+".join(["method-of-mine:count=12"] * rng.randint(1, 4)) for _ in range(rows)], 12))
    numbers = [Column(f"a heading\nof {place}", [number() for _ in range(rows)]) for place in range(rng.randint(1, 9))]
    lines = [line.plain for block in blocks(lead, numbers, width) for line in block]
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for column in numbers:
        for cell in column.cells:
            assert text.count(cell) >= column.cells.count(cell)
    assert text.count("count=12") >= len(blocks(lead, numbers, width)) * rows  # a parameter stays with its value
    for block in blocks(lead, numbers, width):
        assert all(any(lead[0].cells[row] in line.plain for line in block) for row in range(rows))


def test_long_words_are_broken_at_their_signs() -> None:
    assert folded("wanda:pattern=16x1,sparsity=0.85+block-sparse", 16) == [
        "wanda:",
        "pattern=16x1,",
        "sparsity=0.85+",
        "block-sparse",
    ]
    assert folded("no sign in abcdefghijklmnop", 8) == ["no sign", "in", "abcdefgh", "ijklmnop"]
    assert folded("模型模型模型", 8) == ["模型模型", "模型"]
    assert folded("", 8) == [""]
    assert folded("two\nlines\x1b[31m", 40) == ["two\N{REPLACEMENT CHARACTER}lines\N{REPLACEMENT CHARACTER}[31m"]


def test_each_thing_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    summary.results(RECORDS, Path("runs"), as_json=False)
    below = " ".join(capsys.readouterr().out.partition("\n· ")[2].split())
    notes = below.partition(" records in ")[0].split(" · ")
    assert len(notes) == len(set(notes))
    text = " ".join(notes)
    assert text.count("depth: share of the layers") == 1
    assert text.count("no kernel is 10% faster") == 1
    assert text.count("for trying out, not for ranking") == 1
    assert text.count("is not shown to differ from dense") == 1  # of both methods on both tasks


def test_what_is_said_of_some_tasks_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    dearer = RECORDS[1].baseline
    assert dearer is not None
    ratios = dearer.ratios | {
        "latency": dearer.ratios["latency"].model_copy(update={"value": 4.0, "low": 3.0, "high": 5.0})
    }
    changed = RECORDS[1].model_copy(update={"baseline": dearer.model_copy(update={"ratios": ratios})})
    summary.results([RECORDS[0], changed, *RECORDS[2:]], Path("runs"), as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert f"{METHODS[1]} on arc_challenge: costs more than dense: Latency 4.00x" in text


def test_a_comparison_of_several_tasks_shows_both_p(capsys: pytest.CaptureFixture[str]) -> None:
    change = RECORDS[1].scores[0].vs_baseline
    assert change is not None
    scores = [
        RECORDS[1]
        .scores[0]
        .model_copy(update={"task": task, "vs_baseline": change.model_copy(update={"p": 0.02, "p_adjusted": 0.04})})
        for task in TASKS
    ]
    dense = RECORDS[0].model_copy(update={"scores": scores})
    compare._show_scores(display.stdout(), SimpleNamespace(a=dense, b=RECORDS[1], scores=scores))
    out = capsys.readouterr().out
    assert "p, Holm" in out
    assert "0.020" in out
    assert "0.040" in out
