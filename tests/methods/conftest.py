import pytest
import torch

from harness.model.weights.int8 import Int8Linear


@pytest.fixture
def ids():
    """Two rows of tokens of the tiny models."""
    return torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(2))


def error_of_product(scale, *, large):
    """The median relative error, over tokens, of a product in eight bits with scaled channels.

    Args:
        scale: gives the scales [in] from activations [tokens, in] and a weight [out, in].
        large: whether six channels of the activations are fifty times the others.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1024, generator=generator)
    weight = torch.randn(512, 1024, generator=generator)
    if large:
        x[:, torch.randperm(1024, generator=generator)[:6]] *= 50
    s = scale(x, weight)
    y = Int8Linear(weight * s, None, None)(x / s)
    dense = x @ weight.T
    return float(((y - dense).norm(dim=1) / dense.norm(dim=1)).median())
