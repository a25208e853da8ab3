"""One tolerance of the audit, and one sentence."""

import pytest

from harness.results.audit import audit_doubt


@pytest.mark.parametrize("ratio", [None, 1.0, 0.99993, 1.0009, 0.9991])
def test_agreement_is_no_doubt(ratio: float | None) -> None:
    assert audit_doubt(ratio) is None


@pytest.mark.parametrize(("ratio", "said"), [(3.088, "3.088"), (1.0011, "1.001"), (0.944, "0.944"), (0.0, "0 times")])
def test_a_thousandth_is_a_doubt(ratio: float, said: str) -> None:
    assert said in str(audit_doubt(ratio))
    assert "PyTorch's counter saw" in str(audit_doubt(ratio))
