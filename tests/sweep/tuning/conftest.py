"""Searches need Optuna."""

import pytest


@pytest.fixture
def optuna() -> None:
    """Skip a test where Optuna is not installed."""
    pytest.importorskip("optuna", reason="pip install 'efficiency-harness[tune]' searches")
