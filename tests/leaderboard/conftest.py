"""A site of made-up runs, and Debian's Chromium to look at it with."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.leaderboard.results import load_all
from harness.leaderboard.site import build
from harness.leaderboard.submit import submit
from harness.results.store import Store
from tests.leaderboard.generated import groups, library, runs, write_all
from tests.leaderboard.tampered import Submission

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    library(folder)
    return folder


@pytest.fixture(scope="session")
def site(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "board"
    build(results, folder)
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A browser for all tests; each opens contexts of its own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: object, site: Path) -> Iterator[Callable[..., object]]:
    """Open a page of the site from disk. Requests that leave the site, and script errors, fail the test."""
    contexts, bad = [], []

    def open_page(name: str = "index.html", folder: Path = site, init: str = "", **options: object) -> object:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        home = folder.as_uri()
        page.on("request", lambda request: request.url.startswith((home, "blob:")) or bad.append(request.url))
        page.on("pageerror", lambda error: bad.append(str(error)))
        page.on("console", lambda message: message.type == "error" and bad.append(message.text))
        if init:
            page.add_init_script(init)
        page.goto(f"{home}/{name}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert bad == []


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = list(runs(groups(1, 1, 1)[0], settings=2))
    results, board = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("packed") / "data"
    write_all(results, made)
    for run in made[1:]:
        submit(run.record["id"], Store(results), board)
    return board


@pytest.fixture
def board(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "data")


@pytest.fixture
def victim(board: Path) -> Submission:
    """The packed run that is not dense."""
    methods = [result for result in load_all(board)[0] if result.record["method"]["family"] != "baseline"]
    return Submission(methods[0].folder)
