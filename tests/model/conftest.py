"""Every family of decoder under every attention implementation it has."""

import pytest
import torch

from harness.testing.tiny import EAGER_ONLY, FAMILIES, tiny_decoder

VARIANTS = [(f, a) for f in FAMILIES for a in ("sdpa", "eager") if not (a == "sdpa" and f in EAGER_ONLY)]


@pytest.fixture(params=VARIANTS, ids="-".join)
def decoder(request):
    """A fresh tiny decoder; a test may break it."""
    family, attention = request.param
    return tiny_decoder(family, attention=attention)


@pytest.fixture
def ids():
    """Token ids of shape [2, 16]: longer than the sliding windows, with no special token."""
    return torch.randint(3, 259, (2, 16), generator=torch.Generator().manual_seed(1))
