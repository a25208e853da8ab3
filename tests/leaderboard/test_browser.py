"""The board in a real browser: state in the address, keyboard, accessibility, no request elsewhere, any storage."""

import csv
import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from harness.leaderboard.serve import server
from harness.leaderboard.site import build
from harness.reports.report import write as write_report
from harness.reports.rows import rows, score_interval
from harness.results.stats import pareto
from harness.results.store import Store
from tests.leaderboard.generated import Made, groups, runs, write_all

pytestmark = pytest.mark.slow  # a browser is started
Open = Callable[..., Any]
AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
FACETS = ("family", "method", "model", "task", "hardware", "output", "saving")
PAGES = ("index.html", "about.html", "methods/index.html", "methods/layer-drop.html", "models/tiny-a.html")


def labels(page: Any) -> list[str]:
    return page.locator("#board tbody tr:not(.group) th a").all_inner_texts()


def address(page: Any) -> str:
    """Where the page says it is; what the browser reports lags."""
    return str(page.evaluate("location.href"))


def run_page(site: Path, method: str = "layer-drop:count=4") -> str:
    runs = json.loads((site / "index.json").read_text())["runs"]
    return next(run["page"] for run in runs if run["label"] == method)


@pytest.mark.parametrize("facet", FACETS)
def test_every_facet_round_trips_through_the_address(facet: str, opened: Open) -> None:
    page = opened()
    before = labels(page)
    menu = page.locator(f'[data-menu="{facet}"]')
    menu.locator("summary").click()
    box = menu.locator("input").last
    value, count = box.get_attribute("value"), int(menu.locator("label small").last.inner_text())
    box.check()
    assert f"{facet}=" in address(page)
    chosen = labels(page)
    assert count > 0
    assert page.locator("#status").inner_text().startswith(f"{count} of ")
    assert chosen != before or count == len(before)
    page.reload()
    assert labels(page) == chosen
    assert page.locator(f'[data-menu="{facet}"] input[value="{value}"]').is_checked()
    page.locator("#clear").click()
    assert labels(page) == before
    assert "?" not in address(page)


def test_every_sort_round_trips_through_the_address(opened: Open) -> None:
    page = opened("index.html?model=tiny-a&task=recall&hardware=Accelerator+Y")
    page.evaluate("document.querySelectorAll('[data-menu=cols] input:not(:checked)').forEach((box) => box.click())")
    keys = page.evaluate("[...document.querySelectorAll('#board [data-sort]')].map((button) => button.dataset.sort)")
    assert len(keys) > 8
    for key in keys * 2:
        page.evaluate(f"document.querySelector('#board [data-sort=\"{key}\"]').click()")
        sort = re.search(r"sort=(-?)([\w:]+)", unquote(address(page)))  # absent where it is the first order
        assert sort is None or sort[2] == key
        way = "ascending" if sort and not sort[1] else "descending"
        assert page.locator(f'#board th:has([data-sort="{key}"])').get_attribute("aria-sort") == way
    shown = labels(page)
    page.reload()
    assert labels(page) == shown


def test_groups_begin_with_dense_and_ratios_rise(opened: Open) -> None:
    page = opened("index.html?sort=flops")
    for body in page.locator("#board tbody").all()[:3]:
        names = body.locator("tr:not(.group) th a").all_inner_texts()
        assert names[0] == "dense"
        cells = body.locator("tr:not(.group) td[data-title=FLOPs] > span:first-child").all_inner_texts()[1:]
        ratios = [float(cell.rstrip("×")) for cell in cells]
        assert ratios == sorted(ratios)


def test_the_whole_view_is_in_the_address_and_paints_right_first(opened: Open) -> None:
    page = opened()
    page.locator("#search").fill("tiny-a router")
    page.locator("#axis-x").select_option("weights")
    page.locator("#axis-y").select_option("difference")
    page.locator("#one").check()
    page.locator('[data-menu="cols"] summary').click()
    page.locator('[data-menu="cols"] input[value="kv_peak"]').check()
    name = address(page).rpartition("/")[2]
    assert all(part in name for part in ("q=tiny-a+router", "x=weights", "y=difference", "list=one", "kv_peak"))
    watch = """
      window.seen = [];
      const look = () => { const box = document.getElementById("board");
        if (box?.tBodies.length) seen.push([...box.querySelectorAll("tbody th a")].map((a) => a.textContent).join());
        requestAnimationFrame(look); };
      requestAnimationFrame(look);
    """
    again = opened(name, init=watch)
    again.evaluate("""() => new Promise((done) => {
      const look = () => (seen.length < 5 ? requestAnimationFrame(look) : done());
      look();
    })""")
    assert labels(again) == labels(page)
    assert again.locator("#search").input_value() == "tiny-a router"
    assert again.locator("#axis-y").input_value() == "difference"
    assert again.evaluate("new Set(seen).size") == 1  # never anything else on the screen
    assert page.locator("#mixed").is_visible()


def test_nonsense_in_the_address_is_ignored(opened: Open) -> None:
    page = opened("index.html?sort=nothing&x=__proto__&y=constructor&cols=a,b&rows=-5&list=two&chart=no&family=%3Cb%3E")
    assert page.locator("#empty").is_visible()
    page.locator("#clear").click()
    assert len(labels(page)) == 50


def test_runs_on_a_part_stand_apart(opened: Open) -> None:
    page = opened()
    assert page.locator("#apart").is_visible()
    assert "a part of the task's documents" in page.locator("#apart-board").inner_text()
    assert page.locator("#apart-board .tag.front").count() == 0
    assert "a part of the task's documents" not in page.locator("#board").inner_text()


def test_what_was_not_measured_says_why(opened: Open) -> None:
    page = opened("index.html?cols=energy,depth_decode&hardware=Processor+X,+2+threads")
    cells = {cell.partition("\n")[0] for cell in page.locator("#board tbody td").all_inner_texts()}
    assert {"not measured: no meter on this machine", "not measured: no such work in this task"} <= cells
    run = opened(page.locator("#board tbody th a").nth(3).get_attribute("href"))
    assert "not measured: no meter on this machine" in run.locator("main").inner_text()


def test_doubtful_numbers_are_marked_and_never_lead(opened: Open) -> None:
    page = opened("index.html?sort=latency&cols=latency,ideal_ref&rows=1000")
    assert "shared machine" in " ".join(page.locator("#board td .tag.warn").all_inner_texts())
    assert "poor" in page.locator("#board").inner_text()
    for body in page.locator("#board tbody").all():
        cells = body.locator("tr:not(.group):not(.reference) td[data-title=Latency]").all()
        doubtful = [cell.locator(".tag.warn").count() > 0 for cell in cells]
        assert doubtful == sorted(doubtful)


def test_simulated_savings_are_marked_everywhere(opened: Open, site: Path) -> None:
    assert opened("index.html?method=masked").locator("#board .tag.warn").first.inner_text() == "simulated"
    assert opened("methods/masked.html").locator("td .tag.warn, th .tag.warn").first.inner_text() == "simulated"
    assert "simulated" in opened(run_page(site, "masked:sparsity=0.5")).locator(".lede").inner_text()


def test_a_run_that_saved_nothing_is_marked_filtered_and_exported(opened: Open, tmp_path: Path) -> None:
    dense, made = list(runs(groups(1, 1, 1)[0], settings=1))
    made.record["flops"]["total"] = made.record["flops"]["dense_equivalent"]
    alike = {name: {"value": 1.0} for name in ("flops", "weights", "weight_bytes", "kv_bytes", "kv_peak")}
    made.record["baseline"]["ratios"] = alike | {"latency": {"value": 1.4, "low": 1.3, "high": 1.5}}
    write_all(tmp_path / "runs", [dense, made])
    build(tmp_path / "runs", tmp_path / "site")
    page = opened("index.html?saving=none+here", folder=tmp_path / "site")
    assert labels(page) == ["layer-drop:count=1"]
    assert page.locator("#board th .tag.warn").inner_text() == "none here"
    assert page.locator("#board td[data-title=Latency] .tag.note").first.inner_text() == "costs more than dense"
    with page.expect_download() as asked:
        page.locator("#csv").click()
    (line,) = csv.DictReader(io.StringIO(Path(asked.value.path()).read_text()))
    assert line["saving"] == "none here"
    assert line["notes"].startswith("none here: ")
    assert line["latency_note"].startswith("costs more than dense")


def test_keyboard_alone(opened: Open) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.locator("#search").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens the first facet
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert "family=" in address(page)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.locator('#board [data-sort="flops"]').focus()
    page.keyboard.press("Enter")
    assert "sort=flops" in address(page)
    assert page.evaluate("document.activeElement.dataset.sort") == "flops"


def test_points_of_the_chart_are_walked_with_arrows(opened: Open) -> None:
    page = opened()
    page.locator("#budget").focus()
    page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first
    assert second
    assert first != second
    assert second.partition(",")[0] in page.locator(".tip").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/*.html")
    assert page.locator("h1").inner_text() == second.partition(",")[0]


def test_the_front_is_that_of_the_reports(opened: Open, results: Path) -> None:
    """The page's own script and harness.results.stats.pareto agree on every group."""
    from harness.leaderboard.results import load_all

    page = opened("index.html?rows=1000")
    table = {row.id: row for row in rows(result.record for result in load_all(results)[0])}
    for body in page.locator("#board tbody").all():
        links = body.locator("tr:not(.group)").all()
        ids = [re.search(r"(\w+)\.html", line.locator("th a").get_attribute("href"))[1] for line in links]
        shown = {each for each, line in zip(ids, links, strict=True) if line.locator(".tag.front").count()}
        points = []
        for run_id in ids:
            row = table[run_id]
            cost = 1.0 if row.is_dense else _flops(row)
            points.append(pareto.Point(cost, row.score["value"], None, score_interval(row.score)))
        assert shown == {ids[i] for i in pareto.front(points)}
        assert shown


def _flops(row: Any) -> float:
    from harness.reports.columns import BY_KEY, ratio

    return ratio(row.record, row.dense, BY_KEY["flops"]).value


def test_csv_and_json_are_what_is_shown(opened: Open) -> None:
    page = opened("index.html?method=router&cols=quality,flops&sort=flops")
    count = int(page.locator("#status").inner_text().split()[0])
    with page.expect_download() as asked:
        page.locator("#csv").click()
    table = list(csv.DictReader(io.StringIO(Path(asked.value.path()).read_text())))
    with page.expect_download() as asked:
        page.locator("#json").click()
    records = json.loads(Path(asked.value.path()).read_text())
    assert len(table) == len(records) == count
    assert {row["method_name"] for row in table} == {"router"}
    assert "flops" in table[0]
    assert "weights" not in table[0]
    assert [float(row["quality"]) for row in table] == [record["quality"] for record in records]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme: str, opened: Open, site: Path) -> None:
    chosen = [Path(run_page(site, label)).stem for label in ("dense", "router:budget=0.8")]
    view = f"?x=latency&budget=0.8&compare={','.join(chosen)}"
    for name in (*PAGES, run_page(site)):
        for width in (1280, 360) if name == "index.html" else (1280,):
            page = opened(
                name + (view if width == 360 else ""),
                color_scheme=scheme,
                viewport={"width": width, "height": 900},
                bypass_csp=True,
            )
            page.evaluate(AXE)
            violations = page.evaluate(
                "axe.run({preload: false}).then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))"
            )
            assert violations == [], (name, width)


def test_menus_are_accessible_when_open(opened: Open) -> None:
    page = opened(bypass_csp=True)
    page.locator('[data-menu="family"] summary').click()
    page.evaluate(AXE)
    assert page.evaluate("axe.run({preload: false}).then((r) => r.violations.map((v) => v.id))") == []


def test_the_theme_is_chosen_and_kept_even_without_storage(opened: Open) -> None:
    throwing = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    for init in ("", throwing):
        page = opened(init=init, color_scheme="light")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator(".theme").click()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark != light
        assert len(labels(page)) == 50
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (light if init else dark)


@pytest.mark.slow
def test_a_report_fits_360_pixels(opened: Open, tmp_path: Path) -> None:
    """Notes hold names that no space breaks."""
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    dense, method = runs(groups(1, 1, 1)[0], settings=1)
    label = f"layer-drop:layers={'1/' * 60}1"
    named = method.record["method"] | {"label": label, "savings": "simulated", "declared_real": False}
    record = method.record | {"method": named, "warnings": ["/" + "a" * 90]}
    write_all(tmp_path / "runs", [dense, Made(record, method.samples, method.manifest)])
    write_report(Store(tmp_path / "runs").folders(), tmp_path / "report")
    page = opened("report.html", folder=tmp_path / "report", viewport={"width": 360, "height": 740})
    assert page.locator("li").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("name", [*PAGES, "run"])
def test_pages_fit_360_pixels(name: str, opened: Open, site: Path) -> None:
    page = opened(run_page(site) if name == "run" else name, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = "[...document.querySelectorAll('main button, main select, main summary')].filter((e) => e.offsetParent && "
    small += "!e.closest('thead') && e.getBoundingClientRect().height < 24).length"
    assert page.evaluate(small) == 0


def test_a_phone_can_sort_and_filter(opened: Open) -> None:
    page = opened(viewport={"width": 360, "height": 740})
    page.locator("#sort").select_option("flops")
    assert "sort=flops" in address(page)
    page.locator('[data-menu="family"] summary').click()
    box = page.locator('[data-menu="family"] input').first
    box.check()
    sheet = page.locator('[data-menu="family"] .sheet').bounding_box()
    assert sheet["x"] >= 0
    assert sheet["x"] + sheet["width"] <= 360


def test_on_paper_there_are_rows_and_no_controls(opened: Open) -> None:
    page = opened()
    page.emulate_media(media="print")
    assert not page.locator("#search").is_visible()
    assert page.locator("#board tbody tr").first.is_visible()


def test_from_a_server_under_any_path_nothing_is_asked_elsewhere(chromium: Any, site: Path) -> None:
    running = server(site.parent, 0) if (site.parent / "index.html").exists() else None
    if running is None:
        (site.parent / "index.html").write_text("")
        running = server(site.parent, 0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{running.server_port}/board/"
    context = chromium.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(home)
    assert len(labels(page)) == 50
    page.locator("#board tbody th a").first.click()
    page.wait_for_url("**/runs/*.html")
    page.locator(".crumbs a").first.click()
    page.wait_for_url("**/methods/*.html")
    assert page.evaluate("getComputedStyle(document.body).marginTop") == "0px"  # the sheet was allowed
    assert [url for url in asked if not url.startswith(home)] == []
    context.close()
    running.shutdown()


def test_without_a_script_pages_lead_to_every_run(opened: Open) -> None:
    page = opened(java_script_enabled=False)
    assert "all methods" in page.locator("noscript").inner_text() or page.locator(".notice").first.is_visible()
    assert opened("methods/router.html", java_script_enabled=False).locator("tbody tr").count() > 5
