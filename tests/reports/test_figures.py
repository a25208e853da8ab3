"""Figures show the numbers of their tables, and the tables those of the records."""

import copy
import csv
import json
import re
import xml.etree.ElementTree as ET
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.contract.families import LOOKS, OTHER, Family, look
from harness.core.errors import ReportError
from harness.reports.figures import front_of
from harness.reports.plots import pareto_data, phases_data, speedup_data
from harness.reports.report import write
from harness.reports.rows import rows
from harness.results.store import Store
from tests.leaderboard.generated import Made, groups, runs, write_all

pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")


@pytest.fixture(scope="module")
def made() -> list[Made]:
    group = groups(1, 1, 2)[0]
    library = list(runs(group))
    for run in library[4:6]:  # a method whose documents go to different depths
        for number, sample in enumerate(run.samples):
            sample["depth"] = 0.25 + 0.05 * (number % 12)
    return library


@pytest.fixture(scope="module")
def report(made: list[Made], tmp_path_factory: pytest.TempPathFactory) -> Path:
    results, folder = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    write_all(results, made)
    write(Store(results).folders(), folder)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(path.read_text())))


def test_every_figure_has_its_data_beside_it(report: Path) -> None:
    figures = {path.stem for path in report.glob("*.svg")}
    assert {"pareto", "breakdown", "breakdown_time", "phases", "speedup", "strength_layer-drop"} <= figures
    assert sum(name.startswith("depth_") for name in figures) == 2
    for name in figures:
        assert table(report / f"{name}.csv")
        assert (report / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_has_the_records_numbers(report: Path, made: list[Made]) -> None:
    lines = {line["id"]: line for line in table(report / "comparison.csv")}
    assert lines.keys() == {run.record["id"] for run in made}
    for run in made:
        line, record = lines[run.record["id"]], run.record
        assert float(line["score"]) == record["scores"][0]["value"]
        assert float(line["flops"]) == record["flops"]["total"] / record["scores"][0]["n"]
        if record["baseline"]:
            assert float(line["difference_low"]) == record["scores"][0]["vs_baseline"]["low"]
            assert float(line["latency_ratio"]) == record["baseline"]["ratios"]["latency"]["value"]


def test_pareto_points_are_drawn_where_the_data_says(report: Path) -> None:
    """Read the markers' places out of the picture: they are an affine map of the table's numbers."""
    data = table(report / "pareto.csv")
    root = ET.fromstring((report / "pareto.svg").read_text())
    places = {}
    for element in root.iter("{http://www.w3.org/2000/svg}g"):
        if number := re.fullmatch(r"run-(\d+)", element.get("id", "")):
            uses = list(element.iter("{http://www.w3.org/2000/svg}use"))
            places[int(number[1])] = (float(uses[-1].get("x")), float(uses[-1].get("y")))
    assert len(places) == len(data)
    for axis, name in ((0, "cost"), (1, "score")):
        values = [float(line[name]) for line in data]
        low, high = values.index(min(values)), values.index(max(values))
        scale = (places[high][axis] - places[low][axis]) / (values[high] - values[low])
        assert (scale > 0) == (name == "cost")
        for number, value in enumerate(values):
            assert places[number][axis] == pytest.approx(places[low][axis] + scale * (value - values[low]), abs=0.01)


def test_parts_sum_to_the_ratio(report: Path, made: list[Made]) -> None:
    dense = next(run for run in made if run.record["baseline"] is None)
    by_label = {run.record["method"]["label"]: run.record for run in made}
    for line in table(report / "breakdown.csv"):
        total = sum(float(value) for name, value in line.items() if name != "method")
        assert total == pytest.approx(by_label[line["method"]]["flops"]["total"] / dense.record["flops"]["total"])


def test_speed_ups_are_the_ratios_turned_over(report: Path, made: list[Made]) -> None:
    by_label = {run.record["method"]["label"]: run.record for run in made}
    for line in table(report / "speedup.csv"):
        ratios = by_label[line["method"]]["baseline"]["ratios"]
        assert float(line["measured"]) == pytest.approx(1 / ratios["latency"]["value"])
        assert float(line["measured_low"]) == pytest.approx(1 / ratios["latency"]["high"])
        assert float(line["modelled"]) == pytest.approx(1 / ratios["ideal_ref"]["value"])


@pytest.mark.parametrize(
    ("own", "stated", "used"),
    [("p", True, 0.4), (None, True, 0.4), ("q", True, 0.6), ("p", False, 0.6), (None, False, 0.6)],
)
def test_speed_ups_stand_beside_those_of_the_same_requests(
    made: list[Made], own: str | None, stated: bool, used: float
) -> None:
    """Unless the method's modules are its own, whose costs the requests are not charged."""
    record = copy.deepcopy(next(run.record for run in made if run.record["baseline"]))
    record["time"]["ideal"] |= {"profile": "p", "own_profile": own}
    record["baseline"]["ratios"] |= {"ideal_own": {"value": 0.6, "low": None, "high": None}}
    if stated:
        record["baseline"]["ratios"] |= {"ideal_requests": {"value": 0.4, "low": 0.3, "high": 0.5}}
    (line,) = speedup_data([SimpleNamespace(record=record, dense=made[0].record, is_dense=False)]).to_dict("records")
    assert line["modelled"] == pytest.approx(1 / used)


def test_phases_are_ratios_of_one_session_turned_over(made: list[Made]) -> None:
    """Dense's own run may have been measured when the machine was slower."""
    dense, method = copy.deepcopy(made[0].record), copy.deepcopy(made[1].record)
    dense["time"]["latency"]["prefill_tokens_per_s"] /= 3
    ratios = method["baseline"]["ratios"]
    (scored,) = phases_data(rows([dense, method])).to_dict("records")
    assert scored["prefill"] == pytest.approx(1 / ratios["latency"]["value"])
    method["time"]["latency"]["kind"] = "generate"
    ratios |= {"ttft": {"value": 0.8, "low": None, "high": None}, "tpot": {"value": 0.5, "low": None, "high": None}}
    (written,) = phases_data(rows([dense, method])).to_dict("records")
    assert (written["prefill"], written["decode"]) == (1.25, 2.0)
    method["baseline"]["ratios"] = {}
    assert phases_data(rows([dense, method])) is None


@pytest.mark.parametrize(("bounds", "kept"), [((None, None), 2), ((0.49, 0.51), 1)])
def test_a_measured_cost_without_an_interval_takes_no_row_off_the_front(
    made: list[Made], bounds: tuple[float | None, float | None], kept: int
) -> None:
    dense, method = copy.deepcopy(made[0].record), copy.deepcopy(made[1].record)
    method["scores"][0] |= {name: dense["scores"][0][name] for name in ("value", "low", "high")}
    method["baseline"]["ratios"]["latency"] = {"value": 0.5, "low": bounds[0], "high": bounds[1]}
    data = pareto_data(rows([dense, method]), "latency")
    assert len(front_of(data)) == kept


def test_depths_are_those_of_the_documents(report: Path, made: list[Made]) -> None:
    right = {sample["doc_id"]: sample["scores"]["acc,none"] > 0.5 for sample in made[0].samples}
    for run in made[4:6]:
        lines = table(report / f"depth_{run.record['id']}.csv")
        assert {int(line["document"]): float(line["depth"]) for line in lines} == {
            sample["doc_id"]: sample["depth"] for sample in run.samples
        }
        assert all((line["dense_right"] == "True") == right[int(line["document"])] for line in lines)


def test_the_page_holds_all_and_asks_for_nothing(report: Path, made: list[Made]) -> None:
    page = (report / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == len(list(report.glob("*.svg")))
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert all(run.record["method"]["label"] in page for run in made)


def test_svg_text_is_text(report: Path) -> None:
    assert re.search(r"<text[^>]*>FLOPs \(counted\), × dense</text>", (report / "pareto.svg").read_text())


def test_a_row_of_an_unknown_family_is_drawn_like_the_others(made: list[Made], tmp_path: Path) -> None:
    method = made[1]
    record = method.record | {"method": method.record["method"] | {"family": "kv-cache"}}
    write_all(tmp_path / "runs", [made[0], Made(record, method.samples, method.manifest)])
    write(Store(tmp_path / "runs").folders(), tmp_path / "report")
    figure = (tmp_path / "report" / "pareto.svg").read_text()
    assert record["method"]["label"] in figure
    for name, shown in {"baseline": LOOKS[Family.BASELINE], "kv-cache": OTHER}.items():
        assert look(name) is shown
        assert f"stroke: {shown.light}" in figure
    assert LOOKS[Family.PRUNING].light not in figure
    assert {line["family"] for line in table(tmp_path / "report" / "pareto.csv")} == {"baseline", "kv-cache"}


def test_figures_are_the_same_every_time(made: list[Made], tmp_path: Path) -> None:
    write_all(tmp_path / "runs", made[:3])
    for name in ("first", "again"):
        write(Store(tmp_path / "runs").folders(), tmp_path / name)
    for name in ("pareto.svg", "pareto.csv", "comparison.tex", "comparison.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_latex_and_markdown_take_names_for_names(made: list[Made], tmp_path: Path) -> None:
    run = made[1]
    hostile = Made({**run.record, "method": {**run.record["method"], "label": r"a_b&c|\input{x}$^~"}}, [], {})
    write_all(tmp_path / "runs", [made[0], hostile])
    write(Store(tmp_path / "runs").folders(), tmp_path / "report")
    assert (
        r"a\_b\&c|\textbackslash{}input\{x\}\$\textasciicircum{}\textasciitilde{}"
        in (tmp_path / "report" / "comparison.tex").read_text()
    )
    line = next(each for each in (tmp_path / "report" / "comparison.md").read_text().splitlines() if "a_b" in each)
    assert r"`a_b&c¦\input{x}$^~`" in line


def test_what_must_be_read_with_a_row_stands_below_every_table(made: list[Made], tmp_path: Path) -> None:
    dense, method = copy.deepcopy(made[0].record), copy.deepcopy(made[1].record)
    baseline = method["baseline"] | {"output_tokens": 0.3}
    baseline["ratios"] |= {"flops_total": {"value": 0.2}}
    kernels = {"kernels": {"onednn int8": 8}, "kernel_asked": "onednn int8", "kernel_slower": True}
    method |= {"baseline": baseline, "method": method["method"] | kernels | {"savings": "real", "declared_real": True}}
    write_all(tmp_path / "runs", [Made(dense, made[0].samples, {}), Made(method, made[1].samples, {})])
    write(Store(tmp_path / "runs").folders(), tmp_path / "report")
    for name in ("comparison.md", "comparison.tex", "report.html"):
        text = (tmp_path / "report" / name).read_text()
        assert "none here: the kernel that was asked for is slower than dense on this machine" in text, name
        assert "its ratios are of the same tokens" in text, name
        assert "totals: FLOPs 0.20" in text, name


def test_no_runs_and_unknown_costs_are_said(made: list[Made], tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no finished runs"):
        write([], tmp_path)
    write_all(tmp_path / "runs", made[:2])
    with pytest.raises(ReportError, match="there are flops"):
        write(Store(tmp_path / "runs").folders(), tmp_path, "speed")


def said_of(made: list[Made], folder: Path, **changes: object) -> tuple[str, dict[str, str]]:
    """The page of a report, and why figures are not drawn, by their titles."""
    write_all(folder / "runs", made)
    for path in (folder / "runs").glob("*/record.json"):
        record = json.loads(path.read_text()) | changes
        record["evaluation"]["limited"] = bool(changes)
        if changes and record["baseline"]:
            record["baseline"]["ratios"] = {"flops": record["baseline"]["ratios"]["flops"]}
        path.write_text(json.dumps(record))
    said: list[str] = []
    write(Store(folder / "runs").folders(), folder / "out", say=said.append)
    page = (folder / "out" / "report.html").read_text()
    assert all(sentence.replace("'", "&#39;") in page for sentence in said)
    return page, dict(sentence.split(" is not drawn: ") for sentence in said)


def test_a_figure_that_is_not_drawn_says_why(made: list[Made], tmp_path: Path) -> None:
    missing = {"time": "not measured: --measure asked for neither latency nor ideal"}
    _, because = said_of(made[:2], tmp_path, time=None, missing=missing)
    unasked = "--measure asked for neither latency nor ideal"
    part = "all: a part of the task's documents"
    assert because["Quality against cost"] == f"it needs two runs that may be ranked, of which there are 0; {part}"
    assert because["Where the time goes"] == f"Idealized time, mean: {unasked}"
    assert because["Prefill and decode"] == because["Measured against modelled"] == f"Latency: {unasked}"
    assert because["Quality against strength"] == "no method was run at two strengths or more"
    assert because["Depth by difficulty"] == "no run goes deeper for some documents than for others"
    assert "Where the FLOPs go" not in because
    assert not list((tmp_path / "out").glob("pareto*"))


def test_a_figure_of_a_single_run_says_what_else_it_needs(made: list[Made], tmp_path: Path) -> None:
    _, because = said_of([next(run for run in made if not run.record["baseline"])], tmp_path / "dense")
    assert because["Quality against cost"] == "it needs two runs that may be ranked, of which there is 1"
    assert because["Prefill and decode"] == "there is no run beside dense"
    _, because = said_of([next(run for run in made if run.record["baseline"])], tmp_path / "method")
    assert because["Where the FLOPs go"] == because["Depth by difficulty"] == "no dense run is among them"


def test_every_figure_is_drawn_or_said(report: Path) -> None:
    assert "is not drawn" not in (report / "report.html").read_text()
