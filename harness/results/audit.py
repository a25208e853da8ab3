"""When PyTorch's count of a run's FLOPs doubts those that are stated."""

from typing import Final

AUDIT_TOLERANCE: Final = 1e-3
"""Share by which the counter may differ: what is counted here and there agrees exactly, so that a thousandth is an
operator that one of the two does not know."""


def audit_doubt(ratio: float | None) -> str | None:
    """What a reader must know of an audit, in words; None where the counter agrees, or was not asked.

    Args:
        ratio: FLOPs that PyTorch's counter saw over those stated for the same requests.
    """
    if ratio is None or abs(ratio - 1) <= AUDIT_TOLERANCE:
        return None
    return f"PyTorch's counter saw {ratio:.4g} times the FLOPs stated here"
