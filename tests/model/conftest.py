"""Every family of decoder, under the attention implementations that it has."""

import pytest
import torch

from harness.testing.tiny import EAGER_ONLY, FAMILIES, tiny_decoder

USUAL = [(family, "eager" if family in EAGER_ONLY else "sdpa") for family in FAMILIES]
OTHER = [(family, "eager") for family in FAMILIES if family not in EAGER_ONLY]


def variants(name, cases, other=1):
    """Parametrize ``decoder`` and another argument: every case on every family under its usual attention.

    Args:
        name: the other argument.
        cases: its values.
        other: how many of the cases, from the first on, run under the other attention implementation too.
    """
    cases = list(cases)
    pairs = [(variant, case) for variant in USUAL for case in cases]
    pairs += [(variant, case) for variant in OTHER for case in cases[:other]]
    ids = [f"{'-'.join(variant)}-{getattr(case, '__name__', case)}" for variant, case in pairs]
    return pytest.mark.parametrize(("decoder", name), pairs, ids=ids, indirect=["decoder"])


usual = pytest.mark.parametrize("decoder", USUAL, ids="-".join, indirect=True)
"""Every family under its usual attention: for what no attention implementation has a part in."""


@pytest.fixture(params=USUAL + OTHER, ids="-".join)
def decoder(request):
    """A fresh tiny decoder; a test may break it."""
    family, attention = request.param
    return tiny_decoder(family, attention=attention)


@pytest.fixture
def ids():
    """Token ids of shape [2, 16]: longer than the sliding windows, with no special token."""
    return torch.randint(3, 259, (2, 16), generator=torch.Generator().manual_seed(1))
