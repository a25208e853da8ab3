"""Compare efficiency methods for language models: what each costs in quality and what it really saves.

The public names of the framework; each is imported from its module on first use, so that ``import harness``
stays free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.facts import Savings
    from harness.contract.families import Family
    from harness.contract.method import Method
    from harness.contract.prepared import Prepared
    from harness.contract.study import Needs, Study
    from harness.results.record import RunRecord

__version__ = "0.1.0"

_HOMES = {
    "Needs": "harness.contract.study",
    "Study": "harness.contract.study",
    "Decoder": "harness.contract.decoder",
    "Family": "harness.contract.families",
    "Method": "harness.contract.method",
    "Prepared": "harness.contract.prepared",
    "RunRecord": "harness.results.record",
    "Savings": "harness.contract.facts",
}

__all__ = ["Decoder", "Family", "Method", "Needs", "Prepared", "RunRecord", "Savings", "Study", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
