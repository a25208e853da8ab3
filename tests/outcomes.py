"""The outcomes of a test session as a JSON file, whole at any time: written anew after every test."""

import json
import os
from pathlib import Path
from typing import Any

import pytest


class Outcomes:
    """A plugin of pytest.

    Attributes:
        tests: what each test came to: "name", "outcome" as pytest calls it, "seconds" of set-up, test and teardown
            together, and "why" in words where it was skipped or failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self.tests.setdefault(report.nodeid, {"name": report.nodeid, "outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 3)
        if report.outcome != "passed":
            test["outcome"] = "error" if report.failed and report.when != "call" else report.outcome
            test["why"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else _last(report)
        if report.when == "teardown":
            beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            beside.write_text(json.dumps(list(self.tests.values()), indent=1) + "\n")
            beside.replace(self.path)


def _last(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr)[:2000]
