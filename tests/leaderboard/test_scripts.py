"""The board's script: its form, and that what it does again as Python does comes to the same."""

import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.contract.families import LOOKS, OTHER, look
from harness.leaderboard.render import BOARD, HERE, families_css
from harness.leaderboard.site import build
from harness.reports.numbers import PAGE
from harness.results.stats.pareto import Point, front
from tests.leaderboard.generated import Made, groups, runs, write_all

SCRIPTS = HERE / "scripts"
Open = Callable[..., Any]


def test_scripts_are_short_and_all_of_them_are_used() -> None:
    """As prettier --print-width 120 leaves them; no CI needs npm to see a file that was not formatted."""
    files = sorted(path.name for path in SCRIPTS.iterdir())
    assert files == sorted([*BOARD, "theme.js"])
    for name in files:
        lines = (SCRIPTS / name).read_text().splitlines()
        assert len(lines) <= 400, name
        assert [line for line in lines if len(line) > 120 or line != line.rstrip() or "\t" in line] == [], name


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with a method of a family that this project does not know."""
    folder = tmp_path_factory.mktemp("unknown")
    dense, method = runs(groups(1, 1, 1)[0], settings=1)
    record = method.record | {"method": method.record["method"] | {"family": "kv-cache"}}
    write_all(folder / "runs", [dense, Made(record, method.samples, method.manifest)])
    build(folder / "runs", folder / "site")
    return folder / "site"


def test_a_row_of_an_unknown_family_looks_like_the_others(unknown: Path) -> None:
    assert look("kv-cache") is OTHER
    page = (unknown / "methods" / "layer-drop.html").read_text()
    assert "kv-cache" in page
    assert sum("f-other" in path.read_text() for path in (unknown / "runs").iterdir()) == 1
    assert (unknown / "assets" / "families.css").read_text() == families_css()
    for shown in (*LOOKS.values(), OTHER):
        assert shown.light in families_css()
        assert shown.dark in families_css()


@pytest.mark.slow
def test_a_row_of_an_unknown_family_on_the_board(unknown: Path, opened: Open) -> None:
    page = opened(folder=unknown, color_scheme="light")
    symbol = page.locator("#board tbody tr:not(.group) th .shape").nth(1)
    assert symbol.get_attribute("class") == "shape f-other"
    assert symbol.locator("path").get_attribute("d") == OTHER.outline
    assert symbol.evaluate("(svg) => getComputedStyle(svg).fill") == "rgb(98, 95, 88)"  # OTHER.light
    assert page.locator("#legend li").nth(1).inner_text() == "kv-cache"
    assert page.locator("#plot .point.f-other").count() == 1
    page.locator('[data-menu="family"] summary').click()
    page.locator('[data-menu="family"] input[value="kv-cache"]').check()
    assert page.locator("#board tbody tr:not(.group)").count() == 1


def source(*names: str) -> str:
    return "\n".join((SCRIPTS / name).read_text() for name in names)


@pytest.mark.slow
def test_the_front_is_that_of_the_statistics(opened: Open) -> None:
    """Also with ties, and where an interval is absent or holds the rival."""
    rng = random.Random(7)

    def around(value: float) -> tuple[float, float] | None:
        return None if rng.random() < 0.3 else (value - rng.choice((0, 0.1, 0.3)), value + rng.choice((0, 0.1, 0.3)))

    cases = []
    for _ in range(200):
        places = [(rng.randint(0, 8) / 8, rng.randint(0, 8) / 8) for _ in range(rng.randint(1, 8))]
        kinds = rng.choice(("counted", "measured", "estimated")), rng.choice(("scored", "measured"))
        cases.append([Point(cost, quality, around(cost), around(quality), *kinds) for cost, quality in places])
    given = [
        [
            {
                "cost": point.cost,
                "quality": point.quality,
                "costInterval": point.cost_interval,
                "qualityInterval": point.quality_interval,
                "costKind": point.cost_kind,
                "qualityKind": point.quality_kind,
            }
            for point in points
        ]
        for points in cases
    ]
    fronts = opened().evaluate(f"(cases) => {{ {source('front.js')}; return cases.map(front); }}", given)
    assert fronts == [front(points) for points in cases]
    assert {len(kept) == len(points) for kept, points in zip(fronts, cases, strict=True)} == {True, False}


@pytest.mark.slow
def test_numbers_are_written_as_on_the_other_pages(opened: Open) -> None:
    """But for halves, which JavaScript rounds up and Python to the even digit."""
    rng = random.Random(7)
    values = [rng.choice((-1, 1)) * 10 ** rng.uniform(-11, 9) for _ in range(400)]
    values += [0.0, 1.0, 0.0951, 0.0949, 9.99996, 10.0, 999.6, 123456.7]
    units = ("s", "J/request", "share", "B")
    forms = [{"form": form, "unit": "s"} for form in ("score", "difference", "ratio")]
    forms += [{"form": "value", "unit": unit} for unit in units]
    program = f"""([notation, values, columns]) => {{
      {source("numbers.js")};
      return columns.map((column) => values.map((value) =>
        [written(value, column), writtenInterval([value, value + 1], column)]));
    }}"""
    written = opened().evaluate(program, [asdict(PAGE), values, forms])
    writers = [PAGE.score, PAGE.difference, PAGE.ratio]
    writers += [lambda value, unit=unit: PAGE.quantity(value, unit.partition("/")[0]) for unit in units]
    for column, texts, write in zip(forms, written, writers, strict=True):
        for value, (text, interval) in zip(values, texts, strict=True):
            assert text == write(value), (column, value)
            if column["form"] != "value":
                assert interval == PAGE.interval(value, value + 1, column["form"]), (column, value)
