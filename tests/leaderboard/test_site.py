"""The site as files: of no run, one and many; what other programs read; what `site check` finds; the commands."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest

from harness.core.errors import SiteError
from harness.leaderboard.board import data as board_data
from harness.leaderboard.check import check
from harness.leaderboard.evidence import flips, histogram
from harness.leaderboard.exports import every_eval_ever
from harness.leaderboard.results import load_all
from harness.leaderboard.site import build
from harness.reports.numbers import PAGE
from harness.reports.rows import rows
from tests.conftest import Harness
from tests.leaderboard.generated import Made, groups, manifest_of, runs, write_all

ATOM = "{http://www.w3.org/2005/Atom}"


def test_a_board_of_no_runs_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert build(tmp_path / "none", tmp_path / "site").runs == 0
    assert "No runs yet" in (tmp_path / "site" / "index.html").read_text()
    assert check(tmp_path / "site") == []


def test_a_board_of_one_run(tmp_path: Path) -> None:
    write_all(tmp_path / "runs", [next(runs(groups(1, 1, 1)[0]))])
    assert build(tmp_path / "runs", tmp_path / "site").runs == 1
    assert check(tmp_path / "site") == []


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert check(site) == []


def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    write_all(tmp_path / "runs", [next(runs(groups(1, 1, 1)[0]))])
    build(tmp_path / "runs", tmp_path / "site")
    page = tmp_path / "site" / "about.html"
    bad = '<a href="gone.html">x</a><img src="https://elsewhere.test/x"><p onclick="x()"><a href="javascript:x()">'
    page.write_text(
        page.read_text().replace("</main>", f"{bad}</main>").replace('http-equiv="Content', 'name="Content')
    )
    problems = "\n".join(check(tmp_path / "site"))
    for word in (
        "gone.html",
        "elsewhere.test",
        "script in an attribute",
        "javascript:x()",
        "no content security policy",
    ):
        assert word in problems
    with pytest.raises(SiteError, match="no site in"):
        check(tmp_path)


def test_only_a_site_gives_way_to_a_site(tmp_path: Path) -> None:
    write_all(tmp_path / "runs", [next(runs(groups(1, 1, 1)[0]))])
    build(tmp_path / "runs", tmp_path / "site")
    (tmp_path / "site" / "stale.html").write_text("")
    build(tmp_path / "runs", tmp_path / "site")
    assert not (tmp_path / "site" / "stale.html").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(SiteError, match="is not a leaderboard"):
        build(tmp_path / "runs", tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_the_index_fits_its_schema_and_the_records(site: Path, results: Path) -> None:
    index = json.loads((site / "index.json").read_text())
    jsonschema.validate(index, json.loads((site / "index.schema.json").read_text()))
    records = {result.record["id"]: result.record for result in load_all(results)[0]}
    assert {entry["id"] for entry in index["runs"]} == records.keys()
    for entry in index["runs"]:
        record = records[entry["id"]]
        assert entry["score"] == record["scores"][0]["value"]
        assert entry["costs"]["weights"] == record["memory"]["weights"]
        assert (site / entry["page"]).is_file()
        assert json.loads((site / entry["data"] / "record.json").read_text()) == record


def test_the_feed_announces_the_newest_runs(site: Path, results: Path, tmp_path: Path) -> None:
    feed = ET.parse(site / "feed.xml").getroot()
    dates = [entry.findtext(f"{ATOM}updated") for entry in feed.iter(f"{ATOM}entry")]
    assert len(dates) == 50
    assert dates == sorted(dates, reverse=True)
    build(results, tmp_path / "site", "https://board.test/here")
    link = next(ET.parse(tmp_path / "site" / "feed.xml").getroot().iter(f"{ATOM}entry")).find(f"{ATOM}link")
    assert link.get("href").startswith("https://board.test/here/runs/")


def test_every_eval_ever_has_what_its_schema_asks_for(site: Path) -> None:
    """Required fields and allowed names of eval.schema.json, version 0.2.1."""
    for line in (site / "every_eval_ever.jsonl").read_text().splitlines():
        shared = json.loads(line)
        required = {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info"}
        required |= {"eval_library", "evaluation_results"}
        assert required <= shared.keys() <= required | {"evaluation_timestamp"}
        assert {"source_type", "source_organization_name", "evaluator_relationship"} <= shared["source_metadata"].keys()
        assert shared["model_info"].keys() >= {"name", "id"}
        assert all(isinstance(value, str) for value in shared["model_info"]["additional_details"].values())
        for result in shared["evaluation_results"]:
            assert {"evaluation_name", "source_data", "metric_config", "score_details"} <= result.keys()
            assert result["source_data"].keys() == {"dataset_name", "source_type", "additional_details"}
            assert isinstance(result["metric_config"]["lower_is_better"], bool)
            assert isinstance(result["score_details"]["score"], float)


def test_scores_without_a_value_are_not_exported() -> None:
    record = next(runs(groups(1, 1, 1)[0])).record
    record = {**record, "scores": [{**record["scores"][0], "value": None}]}
    assert every_eval_ever(record)["evaluation_results"] == []


def test_a_run_page_shows_the_command_and_the_documents_that_changed(site: Path, results: Path) -> None:
    by_label = {row.record["method"]["label"]: row for row in rows(r.record for r in load_all(results)[0])}
    row = by_label["router:budget=0.8"]
    page = (site / "runs" / f"{row.id}.html").read_text()
    task = row.record["evaluation"]["task"]
    assert f"--method router:budget=0.8 --tasks {task} --pretrained" in page
    paired = row.score["vs_baseline"]
    assert f"{paired['lost']} got worse" in page
    assert f"{paired['gained']} got better" in page


def test_unranked_runs_say_why() -> None:
    dense, method = list(runs(groups(1, 1, 1)[0], settings=1))
    same = {**method.record, "trace": {**method.record["trace"], "executed": False}}
    off = {**method.record, "flops": {**method.record["flops"], "audit_ratio": 0.5}}
    slightly = {**method.record, "flops": {**method.record["flops"], "audit_ratio": 1.002}}
    alone = {**method.record, "baseline": None}
    reasons = [row.apart for row in rows([dense.record, same, off, slightly, alone])]
    assert reasons[0] == []
    assert "saved no work" in reasons[1][0]  # its answers changed
    assert "0.5 times the FLOPs" in reasons[2][0]
    assert "1.002 times the FLOPs" in reasons[3][0]
    assert reasons[4] == ["no dense run of the same documents"]


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of dense, of a run that saved nothing and costs more, and of one that wrote a third of dense's tokens."""
    folder = tmp_path_factory.mktemp("telling")
    dense, nothing, short = (made for made in runs(groups(1, 1, 1)[0], settings=2))
    every = nothing.record["trace"]["layer_tokens_total"]
    nothing.record["trace"] |= {"attention_layer_tokens": every, "mlp_layer_tokens": every}
    work = dense.record["flops"]["total"]
    nothing.record["flops"] |= {"total": work + 1, "audit_ratio": 1.5}
    alike = {name: {"value": 1.0} for name in ("flops", "weights", "weight_bytes", "kv_bytes", "kv_peak")}
    nothing.record["baseline"]["ratios"] = alike | {"latency": {"value": 1.4, "low": 1.3, "high": 1.5}}
    totals = {"flops": {"value": 0.9}, "flops_total": {"value": 0.3}}
    short.record["baseline"] |= {"ratios": totals, "output_tokens": 0.33}
    write_all(folder / "runs", [dense, nothing, short])
    build(folder / "runs", folder / "site")
    return folder / "site"


def test_every_page_says_that_nothing_was_saved_and_what_costs_more(telling: Path) -> None:
    by_label = {run["label"]: run for run in json.loads((telling / "index.json").read_text())["runs"]}
    nothing = by_label["layer-drop:count=1"]
    assert nothing["savings"] == "none"
    seen_more = "PyTorch's counter saw 1.5 times the FLOPs stated here, so that what was saved is not known"
    assert f"none here: {seen_more}" in nothing["notes"]
    assert "costs more than dense: Latency 1.40×" in nothing["notes"]
    assert by_label["dense"]["savings"] == "none"
    assert by_label["dense"]["notes"] == []
    page = (telling / nothing["page"]).read_text()
    assert "nothing here" in page
    assert "costs more than dense" in page
    assert "saw 1.5 times the FLOPs" in page
    counted = by_label["layer-drop:count=1"]["costs"]["flops"]
    seen, stated = PAGE.quantity(1.5 * counted, "FLOP"), PAGE.quantity(counted, "FLOP")
    assert f"PyTorch's counter: {seen}, stated {stated}" in page.replace("&#39;", "'")
    shared = [json.loads(line) for line in (telling / "every_eval_ever.jsonl").read_text().splitlines()]
    savings = {each["evaluation_id"].rpartition("/")[2]: each["model_info"]["additional_details"] for each in shared}
    assert savings[nothing["id"]]["savings"] == "none"
    assert '<span class="tag warn">none here</span>' in (telling / "methods" / "layer-drop.html").read_text()


def test_totals_are_named_where_a_run_wrote_another_length(telling: Path) -> None:
    (short,) = [run for run in json.loads((telling / "index.json").read_text())["runs"] if "count=2" in run["label"]]
    assert short["ratios"]["flops"]["value"] == 0.9
    assert short["ratios"]["flops_total"]["value"] == 0.3
    page = (telling / short["page"]).read_text()
    assert "FLOPs, totals" in page
    assert "on the same tokens" in page
    assert "wrote 0.33× the tokens that dense wrote" in page


def test_two_models_of_one_folder_name_are_two(tmp_path: Path) -> None:
    alice, bob = (next(runs(group)) for group in groups(2, 1, 1))
    alice.record["model"] |= {"name": "checkpoint-10", "pretrained": "runs/alice/checkpoint-10", "layers": 4}
    bob.record["model"] |= {"name": "checkpoint-10", "pretrained": "runs/bob/checkpoint-10", "layers": 6}
    bob.record["model"]["fingerprint"] = "other weights"
    write_all(tmp_path / "runs", [alice, bob])
    build(tmp_path / "runs", tmp_path / "site")
    pages = [path.read_text() for path in (tmp_path / "site" / "models").glob("*checkpoint-10*.html")]
    assert sorted(f"{layers} layers" for page in pages for layers in (4, 6) if f"{layers} layers" in page) == [
        "4 layers",
        "6 layers",
    ]
    assert all(f"{who}/checkpoint-10" in "".join(pages) for who in ("alice", "bob"))


def test_a_model_whose_weights_were_rounded_says_so_wherever_it_stands(tmp_path: Path) -> None:
    formats = {"Q4_1": {"share": 0.79, "group": 32}, "Q8_0": {"share": 0.21, "group": 32}}
    made = list(runs(groups(1, 1, 1)[0], settings=1))
    for run in made:
        run.record["model"]["rounding"] = {"format": "Q4_1", "formats": formats}
    made[1].record["method"]["family"] = "quantization"
    write_all(tmp_path / "runs", made)
    build(tmp_path / "runs", tmp_path / "site")
    words = "its weights were rounded once (Q4_1 79%, Q8_0 21%, groups of 32)"
    (board,) = board_data(rows([run.record for run in made]))["groups"]
    assert board["model"].endswith(" (dequantized from Q4_1)")
    (models,) = [path for path in (tmp_path / "site" / "models").glob("*.html") if path.name != "index.html"]
    pages = [models, *(tmp_path / "site" / "runs" / f"{run.record['id']}.html" for run in made)]
    assert all(f"dequantized from Q4_1: {words}" in page.read_text() for page in pages)
    assert f"{words} before the method rounds them" in pages[2].read_text()
    assert words in (tmp_path / "site" / "index.html").read_text()


def test_numbers_without_an_interval_say_why(tmp_path: Path) -> None:
    dense, method = list(runs(groups(1, 1, 1)[0], settings=1))
    record = json.loads(json.dumps(method.record))
    record["baseline"]["ratios"]["latency"] = {"value": 0.5, "low": None, "high": None, "reason": "3 prompts: too few"}
    record["scores"][0]["vs_baseline"] |= {"low": None, "high": None, "p": None, "reason": "all alike"}
    board = board_data(rows([dense.record, record]))
    notes = {key: [board["texts"][note] for note in board["numbers"][key]["note"]] for key in ("latency", "difference")}
    assert any("no interval: 3 prompts: too few" in note for note in notes["latency"])
    assert "no interval: all alike" in notes["difference"]
    assert 0.5 in board["numbers"]["latency"]["value"]


def test_groups_keep_apart_what_may_not_be_ranked_together() -> None:
    record = next(runs(groups(1, 1, 1)[0])).record
    different = [
        {**record, "environment": {**record["environment"], "threads": 4}},
        {**record, "evaluation": {**record["evaluation"], "data": "other documents"}},
        {**record, "evaluation": {**record["evaluation"], "batch_size": 8}},
        {**record, "model": {**record["model"], "dtype": "float32"}},
        {**record, "model": {**record["model"], "fingerprint": "other weights"}},
    ]
    assert len({row.group for row in rows([record, *different])}) == 6


def test_histograms_count_every_value_once() -> None:
    values = [0.0, 0.1, 0.1, 0.5, 1.0]
    assert sum(bar.count for bar in histogram(values)) == 5
    assert histogram([]) == []
    assert [bar.count for bar in histogram([2.0, 2.0])] == [2]


def test_flips_pair_documents_by_their_digest() -> None:
    def line(number: int, score: float, digest: str = "d") -> dict[str, object]:
        return {"task": "t", "doc_id": number, "doc_hash": f"{digest}{number}", "scores": {"acc,none": score}}

    method = [line(0, 1.0), line(1, 0.0), line(2, 1.0), line(3, 0.0, "other")]
    dense = [line(0, 0.0), line(1, 1.0), line(2, 1.0), line(3, 1.0)]
    changed = flips(method, dense, "acc,none", more_is_better=True)
    assert (changed.pairs, changed.worse, changed.better) == (3, 1, 1)
    changed = flips(method, dense, "acc,none", more_is_better=False)
    assert (changed.worse, changed.better) == (1, 1)
    assert [each.document for each in changed.listed] == [0, 1]


def test_from_a_run_to_the_board_by_commands(harness: Harness, tmp_path: Path) -> None:
    made = list(runs(groups(1, 1, 1)[0], settings=2))
    made[1].manifest["command"] = "harness run -o /home/somebody/secret/runs"
    write_all(tmp_path / "runs", made)
    submitted = harness("submit", made[1].record["id"])
    assert submitted.code == 0
    assert submitted.out.count("leaderboard/data/") == 2
    packed = tmp_path / "leaderboard" / "data" / made[1].record["id"]
    assert "somebody" not in "".join(path.read_text(errors="replace") for path in packed.iterdir())
    assert "already" in harness("submit", made[1].record["id"]).sentence
    assert harness("validate", "leaderboard/data").out.splitlines()[-1] == "2 runs, 0 errors, 0 warnings"
    assert "2 runs in" in harness("site", "build", "--results", "leaderboard/data").out
    assert "every link" in harness("site", "check").out
    limited = json.loads(json.dumps(made[2].record))
    limited["evaluation"] |= {"limited": True, "limit": 2.0}
    manifest = manifest_of(limited)
    limited["id"] = manifest["id"]
    write_all(tmp_path / "runs", [Made(limited, made[2].samples, manifest)])
    assert "a part of the task's documents" in harness("submit", limited["id"]).sentence
    assert harness("validate", "runs").code == 1


def test_the_published_board_is_valid() -> None:
    from harness.leaderboard.validate import validate
    from tests.conftest import ROOT

    verdict = validate(ROOT / "leaderboard" / "data")
    assert [finding for finding in verdict.findings if finding.severity == "error"] == []


def test_stylesheets_and_scripts_name_no_other_place(site: Path) -> None:
    for path in [*site.rglob("*.css"), site / "index.html"]:
        script = re.sub(r'<script type="application/json".*?</script>', "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|eval\(|innerHTML", script)
