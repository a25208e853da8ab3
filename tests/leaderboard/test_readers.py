"""What readers do with the board: compare runs, keep to a budget, read one score over tasks, tell versions apart."""

import json
from collections.abc import Callable
from math import exp, log, sqrt
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from harness.leaderboard.board import data as board_data
from harness.leaderboard.facets import choices
from harness.leaderboard.groups import machine_facts, model_facts
from harness.leaderboard.history import histories
from harness.leaderboard.site import build
from harness.reports.rows import rows
from tests.leaderboard.generated import Made, groups, manifest_of, runs, write_all

Open = Callable[..., Any]
PROCESSOR = {"family": 6, "model": 207, "stepping": 2, "instruction_sets": ["AVX2", "AMX-INT8"]}


def entries(site: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads((site / "index.json").read_text())["runs"]
    return listed


def again(made: Made, started: str, **changes: Any) -> Made:
    """The same setting run again, in another version."""
    record = json.loads(json.dumps(made.record)) | {"started": started}
    record["environment"]["versions"] |= changes
    record["method"]["fingerprint"] += started
    manifest = manifest_of(record)
    return Made(record | {"id": manifest["id"]}, made.samples, manifest)


def as_limited(made: Made, dense_id: str | None) -> Made:
    record = json.loads(json.dumps(made.record))
    record["evaluation"] |= {"limit": 20.0, "limited": True}
    if record["baseline"]:
        record["baseline"]["run_id"] = dense_id
    manifest = manifest_of(record)
    return Made(record | {"id": manifest["id"]}, made.samples, manifest)


# ---- what the records tell ----------------------------------------------------------------------------------------


def test_models_have_a_size_and_a_license_and_the_unknown_is_last() -> None:
    record = next(runs(groups(1, 1, 1)[0])).record
    models = [record["model"] | {"fingerprint": "a", "parameters": 8_030_261_248, "license": "apache-2.0"}]
    models += [record["model"] | {"fingerprint": "b", "parameters": 0}, record["model"]]
    board = board_data(rows({**record, "model": model} for model in models))
    assert board["facets"]["size"]["choices"] == ["below 100 M", "3 B to 9 B", "unknown"]
    assert board["facets"]["license"]["choices"] == ["apache-2.0", "unknown"]
    texts = {board["texts"][number] for number in board["rows"]["size"]}
    assert texts == {"below 100 M", "3 B to 9 B", "unknown"}
    assert model_facts({"model": models[0]}) == ["8.03 B parameters"]
    assert choices("family", ["zeta", "routing", "baseline"]) == ["baseline", "routing", "zeta"]


def test_processors_of_one_name_are_two_machines() -> None:
    record = next(runs(groups(1, 1, 1)[0])).record
    told = {**record, "environment": {**record["environment"], "processor": PROCESSOR, "instructions": "AVX2"}}
    host = {"this-host": {"seconds": 1.0, "bandwidth": 1.9e10}}
    told["time"] = record["time"] | {"roofline": host}
    on_device = {**told, "environment": told["environment"] | {"device": "cuda:0", "instructions": None}}
    assert machine_facts(on_device) == ["read memory at 19 GB/s"]
    table = rows([record, told])
    assert len({row.group for row in table}) == 2
    assert len({row.hardware for row in table}) == 1
    assert machine_facts(record) == []
    assert machine_facts(told) == [
        "family 6 model 207 stepping 2",
        "AVX2, AMX-INT8",
        "torch used AVX2",
        "read memory at 19 GB/s",
    ]


def test_groups_name_what_they_differ_in() -> None:
    record = next(runs(groups(1, 1, 1)[0])).record
    asked, model = record["evaluation"], record["model"]
    different = {
        "machine": {"environment": record["environment"] | {"threads": 4}},
        "documents": {"evaluation": asked | {"data": "others"}},
        "few-shot examples": {"evaluation": asked | {"num_fewshot": 5}},
        "prompt template": {"evaluation": asked | {"apply_chat_template": True}},
        "generation": {"evaluation": asked | {"gen_kwargs": {"temperature": 1}}},
        "way of scoring": {"evaluation": asked | {"score_mode": "context-first"}},
        "batch size": {"evaluation": asked | {"batch_size": 8}},
        "seeds": {"evaluation": asked | {"seeds": [1]}},
        "number format": {"model": model | {"dtype": "float32"}},
        "model": {"model": model | {"fingerprint": "others"}},
    }
    board = board_data(rows([record, *({**record, **change} for change in different.values())]))
    first, *rest = (board["groups"][number]["terms"] for number in board["rows"]["group"])
    unlike = [[name for name in first if first[name] != terms[name]] for terms in rest]
    assert unlike == [[name] for name in different]


def test_a_total_of_a_shorter_text_is_never_ranked() -> None:
    dense, long, short = (made.record for made in runs(groups(1, 1, 1)[0], settings=2))
    for record, length in ((short, 0.33), (long, 1.5)):
        values = {"flops": 0.9, "flops_total": 0.9 * length}
        ratios = {name: {"value": value, "low": None, "high": None} for name, value in values.items()}
        record["baseline"] |= {"ratios": ratios, "output_tokens": length}
    board = board_data(rows([dense, long, short]))
    columns = {column["key"]: column for column in board["columns"]}
    assert columns["flops"]["basis"] == "same tokens"
    assert columns["flops_total"]["basis"] == columns["flops_value"]["basis"] == "texts as written"
    assert columns["latency"]["basis"] == "texts of one length"
    assert not columns["flops_total"]["shown"]
    for key in ("flops_total", "flops_value", "roofline:H100_value"):
        assert board["numbers"][key]["ranked"] == [1, 0, 0], key
        notes = [board["texts"][number] for number in board["numbers"][key]["note"]]
        assert ["as much" in note for note in notes] == [False, True, True], key
    assert "ranked" not in board["numbers"]["flops"]
    alike = board_data(rows([dense]))
    assert not any(column.get("basis") for column in alike["columns"])


def test_a_method_has_a_history_where_a_setting_was_run_again() -> None:
    dense, made = runs(groups(1, 1, 1)[0], settings=1)
    made.record["environment"]["versions"] |= {"efficiency-harness": "0.1.0"}
    newer = again(made, "2026-09-01T00:00:00Z", **{"efficiency-harness": "0.2.0", "torch": "3.0"})
    assert histories(rows([dense.record, made.record])) == []
    (history,) = histories(rows([newer.record, dense.record, made.record]))
    assert [entry.row.id for entry in history.entries] == [made.record["id"], newer.record["id"]]
    assert [entry.version for entry in history.entries] == ["0.1.0", "0.2.0"]
    assert [entry.changes for entry in history.entries] == [
        "",
        "efficiency-harness 0.1.0 → 0.2.0, torch 2.13.0 → 3.0, the method's code or parameters",
    ]


# ---- in a browser -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_are_chosen_by_boxes_and_stand_side_by_side(opened: Open) -> None:
    page = opened("index.html?model=tiny-a&task=recall&hardware=Accelerator+Y")
    assert page.locator("#compared").is_hidden()
    assert page.locator("#chosen").is_hidden()
    boxes = page.locator("#board [data-compare]")
    for place in (0, 1, 3):
        boxes.nth(place).focus()
        page.keyboard.press("Space")
    assert boxes.nth(2).is_disabled()
    ids = [boxes.nth(place).get_attribute("data-compare") for place in (0, 1, 3)]
    assert f"compare={'%2C'.join(ids)}" in page.evaluate("location.href")
    assert "Comparable: same model" in page.locator("#comparability").inner_text()
    lines = {
        line.locator("th").inner_text().partition("\n")[0]: line.locator("td").all_inner_texts()
        for line in page.locator("#compared-table tbody tr").all()
    }
    assert lines["Against dense"][0] == "reference"
    assert len(lines["Quality"]) == 3
    assert lines["Model"] == ["tiny-a, 20 M parameters"]  # said once of all
    page.locator("[data-away]").first.click()
    assert page.locator("#compared-table thead th").count() == 2
    assert page.evaluate("document.activeElement.id") == "compared-title"
    page.reload()
    assert page.locator("#compared-table thead th").count() == 2
    assert page.locator("#board [data-compare]:checked").count() == 2
    page.locator("#forget").click()
    assert page.locator("#compared").is_hidden()
    assert "compare" not in page.evaluate("location.href")


@pytest.mark.slow
def test_runs_that_are_not_comparable_say_why_and_none_is_best(opened: Open, site: Path) -> None:
    listed = entries(site)

    def chosen(**terms: str) -> dict[str, Any]:
        return next(run for run in listed if not run["apart"] and all(run[key] == terms[key] for key in terms))

    first = chosen(model="tiny-a", task="recall", hardware="Accelerator Y", method="int8")
    for name, terms in (
        ("model", {"model": "tiny-b", "task": "recall", "hardware": "Accelerator Y"}),
        ("task, documents", {"model": "tiny-a", "task": "arithmetic", "hardware": "Accelerator Y"}),
        ("machine", {"model": "tiny-a", "task": "recall", "hardware": "Processor X, 2 threads"}),
    ):
        second = chosen(**terms, method="router")
        page = opened(f"index.html?compare={first['id']},{second['id']},nowhere,%3Cb%3E", viewport=NARROW)
        assert page.locator("#comparability").inner_text().startswith(f"Not comparable: they differ in {name}.")
        assert page.locator("#compared-table .tag.front").count() == 0
        assert page.locator("#gone").inner_text() == "2 of the runs to compare are not on this board."
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


NARROW = {"width": 360, "height": 740}


@pytest.mark.slow
def test_the_best_within_a_budget_is_marked_and_none_is_said(opened: Open, site: Path) -> None:
    page = opened("index.html?x=latency&budget=0.8&rows=1000")
    assert page.locator("#budget").get_attribute("aria-valuetext") == "0.80×"
    best = set()
    groups_of_runs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in entries(site):
        if not run["apart"] and run["ratios"].get("latency", {"value": 9.0})["value"] <= 0.8:
            groups_of_runs.setdefault((run["model"], run["task"], run["hardware"]), []).append(run)
    for members in groups_of_runs.values():
        order = sorted(members, key=lambda run: (-round(run["score"], 5), run["ratios"]["latency"]["value"]))
        best.add(order[0]["id"])
    marked = page.locator("#board tr.best th a").evaluate_all("(all) => all.map((a) => a.getAttribute('href'))")
    assert {name.removeprefix("runs/").removesuffix(".html") for name in marked} == best
    assert page.locator("#within a").get_attribute("href") in marked
    page.locator("#budget").focus()
    page.keyboard.press("Home")
    assert "budget=0.05" in page.evaluate("location.href")
    assert page.locator("#within").inner_text().startswith("None")
    assert page.locator("#board tr.best").count() == 0
    page.keyboard.press("End")
    assert "budget" not in page.evaluate("location.href")
    for nonsense in ("-1", "abc", "", "NaN", "Infinity", "1e999"):
        assert opened(f"index.html?budget={nonsense}").locator("#budget-text").inner_text() == "any", nonsense


@pytest.mark.slow
def test_one_score_is_the_mean_over_all_tasks_or_none(opened: Open, tmp_path: Path) -> None:
    made = [run for group in groups(1, 3, 1) for run in runs(group, settings=4)]
    rising = [run for run in made if run.record["evaluation"]["task"] == "reading"]
    for run in rising:  # a task in another unit
        run.record["scores"][0] |= {"metric": "bits_per_byte", "higher_is_better": False}
    lacking = next(run for run in made if run.record["method"]["label"] == "layer-drop:count=2")
    write_all(tmp_path / "runs", [run for run in made if run is not lacking])
    build(tmp_path / "runs", tmp_path / "site")
    page = opened("index.html?saving=real", folder=tmp_path / "site")  # tasks are those of dense, whatever is shown
    head, *lines = (line.inner_text() for line in page.locator("#suites-table tbody tr").all())
    assert "2 tasks" in head
    assert "not in the mean: reading" in head
    cells = {line.partition("\t")[0].strip(): line.split("\t")[1:] for line in lines}
    assert cells["layer-drop:count=2"] == ["no score: not run on recall"]
    assert "dense" not in cells
    runs_of = [run.record for run in made if run.record["method"]["label"] == "layer-drop:count=4"][:2]
    paired = [record["scores"][0]["vs_baseline"] for record in runs_of]
    below = sqrt(sum((each["difference"] - each["low"]) ** 2 for each in paired)) / 2
    above = sqrt(sum((each["high"] - each["difference"]) ** 2 for each in paired)) / 2
    centre = mean(each["difference"] for each in paired)
    work = exp(mean(log(record["baseline"]["ratios"]["flops"]["value"]) for record in runs_of))
    numbers = [part.replace("−", "-") for cell in cells["layer-drop:count=4"] for part in cell.split("\n") if part]
    assert float(numbers[0]) == pytest.approx(mean(record["scores"][0]["value"] for record in runs_of), abs=1e-4)
    assert float(numbers[1]) == pytest.approx(centre, abs=1e-4)
    assert [float(bound) for bound in numbers[2].split(" to ")] == pytest.approx(
        [centre - below, centre + above], abs=2e-4
    )
    assert float(numbers[3]) == pytest.approx(min(each["difference"] for each in paired), abs=1e-4)
    assert float(numbers[5].rstrip("×")) == pytest.approx(work, abs=0.006)
    assert opened("index.html?task=recall", folder=tmp_path / "site").locator("#suites").is_hidden()


@pytest.mark.slow
def test_a_board_of_limited_runs_shows_them_marked(opened: Open, tmp_path: Path) -> None:
    dense, *methods = runs(groups(1, 1, 1)[0], settings=3)
    first = as_limited(dense, None)
    limited = [first, *(as_limited(made, first.record["id"]) for made in methods)]
    write_all(tmp_path / "runs", limited)
    build(tmp_path / "runs", tmp_path / "site")
    page = opened("index.html?budget=1.4", folder=tmp_path / "site")
    assert page.locator("#board tbody tr:not(.group)").count() == 4
    assert page.locator("#board th .tag.warn", has_text="not ranked").count() == 4
    assert "a part of the task's documents" in page.locator("#board").inner_text()
    assert page.locator("#unranked").is_visible()
    assert page.locator("#apart").is_hidden()
    assert page.locator("#plot .point").count() == 4
    assert page.locator(".tag.front, .point.kept, #plot .front").count() == 0
    assert page.locator("#within").inner_text().startswith("None")


@pytest.mark.slow
def test_markup_in_what_readers_are_told_of_is_text(opened: Open, tmp_path: Path) -> None:
    markup = "<img src=x onerror=window.hacked=1>"
    made = [*runs(groups(1, 2, 1)[0], settings=1), *runs(groups(1, 2, 1)[1], settings=1)]
    for number, run in enumerate(made):
        run.record["model"] |= {"license": f"{markup} {number}", "pretrained": markup, "fingerprint": markup}
        run.record["environment"] |= {"processor": {"instruction_sets": [markup]}, "instructions": markup}
        run.record["environment"]["versions"] |= {"efficiency-harness": markup, "torch": markup}
    made.append(again(made[1], "2026-09-01T00:00:00Z", torch=f"{markup} again"))
    write_all(tmp_path / "runs", made)
    build(tmp_path / "runs", tmp_path / "site")
    ids = ",".join(run.record["id"] for run in made[:3])
    for name in (f"index.html?compare={ids}&x=latency&budget=0.9&license={markup}", "methods/layer-drop.html"):
        page = opened(name, folder=tmp_path / "site")
        assert markup in page.locator("main").inner_text()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0


_BOXES = """(selector) => [...document.querySelectorAll(selector)].map((each) => {
  const { left, right, top, bottom } = each.getBoundingClientRect(); return [left, right, top, bottom]; })"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 360])
def test_names_of_points_do_not_collide(width: int, opened: Open, tmp_path: Path) -> None:
    """Many points on the front, some of them at one place."""
    dense, *methods = runs(groups(1, 1, 1)[0], settings=26)
    for number, made in enumerate(methods):
        share = 0.5 + 0.4 * (number // 3) / 9
        made.record["baseline"]["ratios"]["flops"] = {"value": share}
        made.record["scores"][0] |= {"value": 0.3 + share / 2, "low": 0.3 + share / 2, "high": 0.3 + share / 2}
    write_all(tmp_path / "runs", [dense, *methods])
    build(tmp_path / "runs", tmp_path / "site")
    page = opened(folder=tmp_path / "site", viewport={"width": width, "height": 900})
    names, marks = page.evaluate(_BOXES, "#plot .beside"), page.evaluate(_BOXES, "#plot .point path")
    (plot,) = page.evaluate(_BOXES, "#plot svg")
    assert len(names) > 4
    for place, (left, right, top, bottom) in enumerate(names):
        assert plot[0] <= left
        assert right <= plot[1]
        for other in [*names[:place], *marks]:
            assert left >= other[1] or right <= other[0] or top + 2 >= other[3] or bottom <= other[2] + 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_versions_of_one_setting_are_told_apart_on_the_board(opened: Open, tmp_path: Path) -> None:
    dense, made = runs(groups(1, 1, 1)[0], settings=1)
    newer = again(made, "2026-09-01T00:00:00Z", **{"efficiency-harness": "0.2.0"})
    write_all(tmp_path / "runs", [dense, made, newer])
    build(tmp_path / "runs", tmp_path / "site")
    page = opened(folder=tmp_path / "site")
    assert "run of 2026-09-01, harness 0.2.0: the newest of 2" in page.locator("#board").inner_text()
    assert "not the newest of 2" in page.locator("#board").inner_text()
    method = opened("methods/layer-drop.html", folder=tmp_path / "site").locator("main").inner_text()
    assert "Over versions" in method
    assert "efficiency-harness absent → 0.2.0" in method


def test_rows_that_knew_the_question_and_rows_that_did_not_are_apart() -> None:
    record = next(runs(groups(1, 1, 1)[0])).record
    aware = {**record, "evaluation": record["evaluation"] | {"score_mode": "context-first"}}
    unaware = {**aware, "evaluation": aware["evaluation"] | {"score_suffix": "Question:"}}
    board = board_data(rows([aware, unaware]))
    first, second = (board["groups"][number]["terms"] for number in board["rows"]["group"])
    assert [name for name in first if first[name] != second[name]] == ["way of scoring"]
