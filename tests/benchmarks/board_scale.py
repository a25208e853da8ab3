"""The board at scale: time and memory of a build, weight of the page, first rows and sorting in headless Chromium.

    python -m tests.benchmarks.board_scale --runs 5000

The runs are made up. Limits to hold it against: 5,000 runs build in 30 s and 1.5 GB; the page weighs 1.5 MB gzipped,
shows its first rows in 1 s and sorts again in 100 ms; 20,000 runs cost about four times that.
"""

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from statistics import median

from tests.leaderboard.conftest import FLAGS
from tests.leaderboard.generated import groups, runs

_BUILD = """
import resource, sys, time
from pathlib import Path
from harness.leaderboard.site import build
start = time.perf_counter()
built = build(Path(sys.argv[1]), Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
cpu = resource.getrusage(resource.RUSAGE_SELF)
print(built.runs, time.perf_counter() - start, peak, cpu.ru_utime + cpu.ru_stime)
"""


def main() -> None:
    """Make runs, build their site, and look at it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--documents", type=int, default=100)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results, site = Path(folder) / "results", Path(folder) / "site"
        generate(results, asked.runs, asked.documents)
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, results, site], capture_output=True, text=True, check=True
        ).stdout.split()
        page = (site / "index.html").read_bytes()
        print(f"{done[0]} runs of {asked.documents} documents")
        print(f"build: {float(done[1]):.1f} s ({float(done[3]):.1f} s of CPU), peak {float(done[2]):.2f} GB")
        print(f"index.html: {len(page) / 1e6:.2f} MB, gzipped {len(gzip.compress(page)) / 1e6:.2f} MB")
        look(site)


def generate(root: Path, count: int, documents: int) -> None:
    """Groups of 50 runs each."""
    wanted = count // 50 + 1
    made = (run for group in groups(wanted // 10 + 1, 5, 2) for run in runs(group, documents=documents, settings=49))
    for run in islice(made, count):
        run.write(root)


def look(site: Path) -> None:
    """Times in the browser: navigation to first rows, and from a click to the next frame."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        print("no chromium: the page was not looked at")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        firsts, sorts = [], []
        for _ in range(3):
            page = browser.new_page()
            page.goto((site / "index.html").as_uri())
            firsts.append(page.evaluate("performance.getEntriesByType('paint').at(-1).startTime"))
            sorts += [page.evaluate(_SORT, key) for key in ("flops", "latency", "label", "quality", "weights")]
            page.close()
        browser.close()
    print(f"first rows: {median(firsts):.0f} ms (median of {len(firsts)})")
    print(f"sort again: {median(sorts):.0f} ms, worst {max(sorts):.0f} ms (of {len(sorts)})")


_SORT = """
(key) => new Promise((done) => {
  const start = performance.now();
  document.querySelector(`#board [data-sort="${key}"]`).click();
  document.getElementById("board").offsetHeight;
  done(performance.now() - start);
})
"""

if __name__ == "__main__":
    main()
