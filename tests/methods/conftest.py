import pytest
import torch


@pytest.fixture
def ids():
    """Two rows of tokens of the tiny models."""
    return torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(2))
