"""Percentiles are stated only where MLPerf would state them."""

import numpy as np
import pytest

from harness.results.stats.summary import percentile, queries_needed, summarize


@pytest.mark.parametrize(
    ("share", "sizes"), [(0.90, (44, 64, 127, 197)), (0.95, (90, 130, 259, 398)), (0.99, (459, 662, 1307, 2010))]
)
def test_sizes_of_mlperf(share, sizes):
    assert tuple(queries_needed(share, set_aside) for set_aside in (0, 1, 5, 10)) == sizes


def test_a_small_sample_has_no_percentile():
    assert percentile(np.arange(43.0), 0.90) is None
    assert percentile(np.arange(44.0), 0.90) == 43
    assert percentile(np.arange(64.0), 0.90) == 62


def test_summary():
    values = np.array([3.0, 1.0, 2.0, 4.0, 100.0])
    found = summarize(values)
    assert (found.n, found.min, found.median, found.mad, found.p90) == (5, 1.0, 3.0, 1.0, None)
    assert found.relative_iqr == pytest.approx(2 / 3)
    assert found.median_low <= 3 <= found.median_high
    assert summarize(np.arange(1.0, 51.0)).drift == pytest.approx(1.0)
    assert summarize(np.ones(9)).drift is None
    with pytest.raises(ValueError, match="no measurements"):
        summarize(np.array([]))
