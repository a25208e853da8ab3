"""``harness run``: what is asked for is what runs, once, and what comes out can be read by a machine."""

import shutil
from pathlib import Path

import pytest

from harness.results.store import Store
from tests.conftest import Harness

LOOSE = '''
from contextlib import nullcontext
from dataclasses import dataclass
from harness import Family, Method


@dataclass(frozen=True, kw_only=True)
class Idle(Method):
    """Does nothing."""

    name = "idle"
    family = Family.PRUNING
    strength: float = 0.5

    def attach(self, model, prepared):
        return nullcontext()
'''


def run(harness: Harness, tiny: list[object], *more: object, task: str = "tiny_letters") -> list[dict]:
    return harness("run", *tiny, "--tasks", task, "--limit", 3, "--json", *more).json()


def test_json_is_all_of_stdout(harness: Harness, tiny: list[object]) -> None:
    """Also where lm-eval prints, as it does when it bootstraps."""
    assert [record["evaluation"]["task"] for record in run(harness, tiny, task="tiny_last")] == ["tiny_last"]


def test_method_is_compared_with_dense(harness: Harness, tiny: list[object]) -> None:
    dense, dropped = run(harness, tiny, "--method", "layer-drop:layers=1", task="tiny_choice")
    assert [dense["method"]["label"], dense["baseline"]] == ["dense", None]
    assert dropped["baseline"]["run_id"] == dense["id"]
    assert dropped["baseline"]["ratios"]["flops"]["value"] < 1
    difference = dropped["scores"][0]["value"] - dense["scores"][0]["value"]
    assert dropped["scores"][0]["vs_baseline"]["difference"] == difference


def test_table_names_method_scores_and_folder(harness: Harness, tiny: list[object]) -> None:
    done = harness("run", *tiny, "-t", "tiny_choice", "-L", 3, "-m", "layer-drop:layers=1", "-o", "out")
    assert done.code == 0
    for word in ("dense", "layer-drop:", "acc_norm", "75%", "real", "out/", "for trying out"):
        assert word in done.out


def test_hyphens_are_underscores(harness: Harness, tiny: list[object]) -> None:
    hyphens = [str(word).replace("--include_path", "--include-path") for word in tiny]
    (record,) = run(harness, hyphens, "--batch-size", 2, "--no-baseline", "--num-fewshot", 1)
    assert (record["evaluation"]["batch_size"], record["evaluation"]["num_fewshot"]) == (2, 1)


def test_dry_run_promises_the_ids_of_the_run(harness: Harness, tiny: list[object]) -> None:
    args = ("--method", "layer-drop:layers=1", "--dry_run")
    planned = run(harness, tiny, *args)
    assert not Path("runs").exists()
    assert [row["state"] for row in planned] == ["to run", "to run"]
    assert [row["documents"] for row in planned] == [3, 3]
    made = run(harness, tiny, *args[:2])
    assert [row["id"] for row in planned] == [record["id"] for record in made]
    assert [row["state"] for row in run(harness, tiny, *args)] == ["finished", "finished"]
    assert {row["folder"] for row in planned} == {str(folder.path) for folder in Store(Path("runs")).folders()}


def test_dry_run_for_people(harness: Harness, tiny: list[object]) -> None:
    done = harness("run", *tiny, "--tasks", "tiny_letters", "tiny_choice", "--dry_run")
    assert done.code == 0
    lines = done.out.splitlines()[1:]
    assert [line.split()[1:4] for line in lines[:2]] == [
        ["dense", "tiny-llama", "tiny_letters"],
        ["dense", "tiny-llama", "tiny_choice"],
    ]
    assert "tokens to read" in lines[2]
    assert "scores in about" in lines[-1]
    assert not Path("runs").exists()


def test_scores_are_shown_before_costs_are_measured(
    harness: Harness, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("run", *tiny, "-t", "tiny_choice", "-L", 3, "-m", "layer-drop:layers=1", "--measure", "flops,memory")
    with monkeypatch.context() as patch:
        patch.setattr("harness.run.costs.measure_costs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stopped = harness(*args)
    assert stopped.code == 130
    assert "against dense" in stopped.out
    assert "cost, dense" not in stopped.out
    done = harness(*args)
    assert done.out.count("against dense") == 1
    assert done.out.index("against dense") < done.out.index("cost, dense = 1.00x")
    assert harness(*args).out.count("cost, dense = 1.00x") == 1


def test_same_run_again_is_not_computed(harness: Harness, tiny: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(harness, tiny)
    with monkeypatch.context() as patch:
        patch.setattr("harness.run.session.evaluate", lambda *_: pytest.fail("computed again"))
        again = harness("run", *tiny, "--tasks", "tiny_letters", "--limit", 3, "--json")
    assert again.json() == first
    assert "nothing to do" in again.err
    assert "loading" not in again.err


def test_no_resume_computes_again(harness: Harness, tiny: list[object]) -> None:
    (first,) = run(harness, tiny)
    (second,) = run(harness, tiny, "--no_resume")
    assert first["id"] == second["id"]
    assert first["started"] < second["started"]
    assert first["scores"] == second["scores"]
    assert len(Store(Path("runs")).folders()) == 1


def test_baseline_that_comes_later_completes_the_comparison(harness: Harness, tiny: list[object]) -> None:
    (alone,) = run(harness, tiny, "--method", "layer-drop:layers=1", "--no_baseline")
    assert alone["baseline"] is None
    dense, compared = run(harness, tiny, "--method", "layer-drop:layers=1")
    assert compared["started"] == alone["started"]
    assert (compared["baseline"]["run_id"], compared["baseline"]["documents"]) == (dense["id"], 3)
    assert compared["baseline"]["ratios"]["flops"]["value"] == pytest.approx(0.75, abs=0.05)
    assert compared["scores"][0]["vs_baseline"] is not None
    assert harness("show", alone["id"], "--json").json() == compared


def test_method_args_are_the_methods_own(harness: Harness, tiny: list[object]) -> None:
    written = run(harness, tiny, "--method", "layer-drop:unit=mlp,count=2", "--dry_run")
    given = run(harness, tiny, "--method", "layer-drop", "--method_args", "unit=mlp", "count=2", "--dry_run")
    assert [row["id"] for row in written] == [row["id"] for row in given]
    assert written[1]["method"] == "layer-drop:unit=mlp,count=2"


def test_stacked_methods_run_together(harness: Harness, tiny: list[object]) -> None:
    both = "layer-drop:unit=attention,layers=1+layer-drop:unit=mlp,layers=2"
    (record,) = run(harness, tiny, "--method", both, "--no_baseline")
    assert record["method"]["name"] == "layer-drop+layer-drop"
    assert [part["unit"] for part in record["method"]["params"]] == ["attention", "mlp"]
    assert record["trace"]["mean_depth_prefill"] == pytest.approx(0.75)


def test_loose_file_that_never_executes_is_said(harness: Harness, tiny: list[object]) -> None:
    Path("mine.py").write_text(LOOSE)
    done = harness("run", *tiny, "--tasks", "tiny_letters", "--limit", 3, "--method", "./mine.py:Idle:strength=0.25")
    assert done.code == 0, done.err
    assert "never executed" in done.out
    (record,) = [folder.record() for folder in Store(Path("runs")).folders() if "idle" in folder.path.name]
    assert record.trace.executed is False
    assert record.method.params == [{"strength": 0.25}]


def test_edited_loose_file_is_another_method(harness: Harness, tiny: list[object]) -> None:
    ids = []
    for text in (LOOSE, LOOSE + "\n# changed\n"):
        Path("mine.py").write_text(text)
        ids += [row["id"] for row in run(harness, tiny, "--method", "./mine.py:Idle", "--no_baseline", "--dry_run")]
    assert len(set(ids)) == 2


def test_samples_pick_documents_in_any_order(harness: Harness, tiny: list[object]) -> None:
    common = ("run", *tiny, "--tasks", "tiny_choice", "--json")
    (whole,) = harness(*common).json()
    (picked,) = harness(*common, "--samples", '{"tiny_choice": [7, 0, 7]}').json()
    store = Store(Path("runs"))
    wanted = {line["doc_id"]: line for line in store.find(whole["id"]).samples()}
    lines = list(store.find(picked["id"]).samples())
    assert [line["doc_id"] for line in lines] == [0, 7]
    for line in lines:
        for key in ("doc_hash", "target", "target_hash"):
            assert line[key] == wanted[line["doc_id"]][key]
        assert len(line["rows"]) == 3
    assert picked["evaluation"]["limited"]


def test_seed_and_generation_arguments_reach_the_run(harness: Harness, tiny: list[object]) -> None:
    arguments = ("--gen_kwargs", 'until=["a","e"],max_gen_toks=4', "--seed", "1,2,None,4", "--dry_run")
    (row,) = run(harness, tiny, *arguments, task="tiny_answer")
    evaluation = row["identity"]["evaluation"]
    assert evaluation["gen_kwargs"] == {"until": ["a", "e"], "max_gen_toks": 4}
    assert evaluation["seeds"] == [1, 2, None, 4]


def test_few_shot_examples_are_the_same_for_every_method(harness: Harness, tiny: list[object]) -> None:
    records = run(harness, tiny, "--method", "layer-drop:layers=1", task="tiny_choice")
    prompts = [[line["prompt_hash"] for line in Store(Path("runs")).find(record["id"]).samples()] for record in records]
    assert prompts[0] == prompts[1]


def test_yaml_gives_defaults_and_flags_win(harness: Harness, tiny_folder: Path, tiny_tasks: Path, device: str) -> None:
    Path("job.yaml").write_text(f"""
task: [tiny_letters, tiny_answer]
pretrained: {tiny_folder}
include-path: {tiny_tasks}
method: ["layer-drop", dense]
method_args: {{layers: [1, 2], unit: mlp}}
model_args: {{dtype: float32, max_length: 100}}
gen_kwargs: {{until: ["a,b", "c"], max_gen_toks: 3}}
limit: 2
batch_size: 2
seed: [1, 2, 3, 4]
no_baseline: true
dry_run: true
json: true
num_fewshot:
""")
    rows = harness("run", "--config", "job.yaml", "--batch_size", 3, "--device", device).json()
    assert [row["task"] for row in rows] == ["tiny_letters", "tiny_letters", "tiny_answer", "tiny_answer"]
    assert rows[0]["method"].startswith("layer-drop:unit=mlp")
    assert rows[0]["documents"] == 2
    identity = rows[0]["identity"]
    assert identity["evaluation"]["batch_size"] == 3
    assert identity["evaluation"]["seeds"] == [1, 2, 3, 4]
    assert identity["evaluation"]["gen_kwargs"] == {"until": ["a,b", "c"], "max_gen_toks": 3}
    assert identity["evaluation"]["num_fewshot"] is None
    assert identity["model_args"]["max_length"] == 100


def test_yaml_with_an_unknown_key_is_refused(harness: Harness) -> None:
    Path("job.yaml").write_text("methd: a\n")
    assert "Did you mean 'method'" in harness("run", "--config", "job.yaml").sentence
    Path("job.yaml").write_text("- a\n")
    assert "mapping" in harness("run", "--config", "job.yaml").sentence
    Path("job.yaml").write_text("a: [\n")
    assert "cannot be read" in harness("run", "--config", "job.yaml").sentence


def test_chat_template_is_used(harness: Harness, tiny_folder: Path, tiny: list[object], tmp_path: Path) -> None:
    chat = shutil.copytree(tiny_folder, tmp_path / "chat")
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    (chat / "chat_template.jinja").write_text(template)
    tiny = ["--pretrained", chat, *tiny[2:]]
    (plain,) = run(harness, tiny)
    (record,) = run(harness, tiny, "--apply_chat_template")
    assert record["evaluation"]["apply_chat_template"] is True
    # "[user] " and ">" around each prompt of bytes
    assert record["trace"]["prompt_tokens"] == plain["trace"]["prompt_tokens"] + 3 * len("[user] >")
    assert "one without a name" in harness("run", *tiny, "-t", "tiny_letters", "--apply_chat_template", "rag").sentence
