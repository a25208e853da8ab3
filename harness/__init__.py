"""Compare efficiency methods for language models: what each costs in quality and what it really saves.

The public names of the framework; each is imported from its module on first use, so that ``import harness``
stays free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.calibration import Calibration
    from harness.method import Family, Method, Savings
    from harness.model.decoder import Decoder
    from harness.prepared import Prepared
    from harness.record import RunRecord

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "harness.calibration",
    "Decoder": "harness.model.decoder",
    "Family": "harness.method",
    "Method": "harness.method",
    "Prepared": "harness.prepared",
    "RunRecord": "harness.record",
    "Savings": "harness.method",
}

__all__ = ["Calibration", "Decoder", "Family", "Method", "Prepared", "RunRecord", "Savings", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
