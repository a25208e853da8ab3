"""lm-eval's resampling, shortened where its length has no part in what is compared."""

import pytest


@pytest.fixture
def few_resamples(monkeypatch):
    """A hundredth of lm-eval's bootstrap samples, for whoever takes them."""
    from lm_eval.api import metrics

    bootstrap = metrics.bootstrap_stderr
    monkeypatch.setattr(metrics, "bootstrap_stderr", lambda f, xs, iters: bootstrap(f, xs, iters=iters // 100))
