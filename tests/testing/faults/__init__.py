"""Methods that are wrong, each in one way, with the checks that must fail for it and no others; a file per engine."""

from importlib import import_module
from pkgutil import iter_modules

from tests.testing.faults.declared import FAULTS

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["FAULTS"]
