"""Benchmarks are run by hand: that each still fits the code that it measures is tested."""

from importlib import import_module

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "benchmarks").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path) -> None:
    assert import_module(f"tests.benchmarks.{path.stem}").__doc__
