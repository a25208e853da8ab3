"""A module that patches torch when it is imported, and the method in it."""

from dataclasses import dataclass

import torch

from tests.testing.sound import Sound

_original = torch.nn.functional.softsign


def _softsign(tensor):
    return _original(tensor)


torch.nn.functional.softsign = _softsign


@dataclass(frozen=True, kw_only=True)
class PatchesAtImport(Sound):
    """Replaces a function of torch for everybody."""
