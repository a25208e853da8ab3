"""Pooling, the control knob, the loss and its weights, against values computed by hand."""

import math

import pytest
import torch

from harness.core.errors import MethodError
from harness.methods.routing.features import Examples
from harness.methods.routing.router import RouterController, controlled, load_routers, new_router, pool
from harness.methods.routing.training import Recipe, class_weights, focal_loss, quality, train
from harness.model.paths.controller import Prompts
from harness.testing.tiny import tiny_decoder


def test_pooled_windows():
    states = torch.arange(22.0).reshape(11, 2)
    pooled = pool(states, 4)  # windows of 2; the last 3 tokens belong to none
    assert pooled.tolist() == [[1, 2], [5, 6], [9, 10], [13, 14]]
    assert torch.equal(pool(states[:3], 8), states[:3])
    assert torch.equal(pool(states, 1), states.mean(0, keepdim=True))


def test_rows_are_pooled_without_their_padding():
    decoder = tiny_decoder("llama")
    generator = torch.Generator().manual_seed(0)
    routers = [new_router(32, 16, generator) for _ in range(4)]
    controller = RouterController(decoder, routers, windows=4, control=-0.5)
    hidden = torch.randn(3, 12, 32, generator=generator)
    ids = torch.ones(3, 12, dtype=torch.long)
    spans = ((0, 12), (5, 12), (9, 11))
    together = controller.decide(1, hidden, Prompts(ids, spans))
    for row, (begin, end) in enumerate(spans):
        alone = Prompts(ids[:1, : end - begin], ((0, end - begin),))
        assert controller.decide(1, hidden[row : row + 1, begin:end], alone) == together[row : row + 1]


def test_the_mean_of_the_windows_logits_decides():
    decoder = tiny_decoder("llama")
    router = torch.nn.Sequential(torch.nn.Linear(32, 3), torch.nn.Identity(), torch.nn.Identity())
    with torch.no_grad():
        router[0].weight.zero_()
        router[0].weight[0, 0], router[0].weight[2, 1] = 1.0, 1.0
        router[0].bias.zero_()
    controller = RouterController(decoder, [router], windows=2, control=-0.5)
    hidden = torch.zeros(1, 2, 32)
    hidden[0, 0, 0], hidden[0, 1, 1] = 1.0, 3.0  # skip has 0.5 on average, twice 1.5
    prompts = Prompts(torch.ones(1, 2, dtype=torch.long), ((0, 2),))
    assert controller.decide(0, hidden, prompts) == [(2,)]


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (-1.0, (1, 0, 0)),
        (-0.75, (0.6, 0.25, 0.15)),
        (-0.5, (0.2, 0.5, 0.3)),
        (0.0, (0.1, 0.75, 0.15)),
        (0.5, (0, 1, 0)),
        (0.75, (0, 0.5, 0.5)),
        (1.0, (0, 0, 1)),
    ],
)
def test_the_control_knob(control, expected):
    found = controlled(torch.tensor([[0.2, 0.5, 0.3]]), control)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))


def test_class_weights_of_the_paper_and_what_balances():
    counts = (4399, 120956, 1457)
    assert class_weights(counts, 0.999).tolist() == pytest.approx([0.92, 0.90, 1.18], abs=0.005)
    assert class_weights(counts, 0.99999).tolist() == pytest.approx([0.74, 0.046, 2.21], abs=0.005)
    assert class_weights((1, 5, 9), 0.0).tolist() == pytest.approx([1, 1, 1])
    assert class_weights((3, 3, 0), 0.9).tolist() == pytest.approx([1.5, 1.5, 0])


def test_the_focal_loss():
    logits, labels = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]]), torch.tensor([1, 0])
    weights = torch.tensor([0.5, 2.0, 1.0])
    expected = (2 * (2 / 3) ** 2 * math.log(3) + 0.5 * 0.5**2 * math.log(2)) / 2
    assert float(focal_loss(logits, labels, weights, 2.0)) == pytest.approx(expected)


def examples(samples=120, seed=0):
    """Two layers, one of which is to be skipped where a channel says so; prompts of two window counts."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(samples, 4, 8, generator=generator) for _ in range(2)]
    windows = torch.where(torch.arange(samples) % 3 == 0, 2, 4)
    skip = (features[1][:, :2, 0].sum(1) > 0).long()
    features[1][:, :, 0] = (2 * skip - 1)[:, None].float()
    for layer in features:
        layer[windows == 2, 2:] = 100.0  # must not be read
    return Examples(features, windows, torch.stack([torch.ones(samples, dtype=torch.long), 1 - skip], 1))


def test_training_learns_what_can_be_told_and_is_seeded():
    data, recipe = examples(), Recipe(hidden=8, epochs=20, rate=1e-2)
    every = torch.arange(len(data.labels))
    routers, again = train(data, every[:90], recipe, seed=3), train(data, every[:90], recipe, seed=3)
    assert quality(data.predicted(routers, every[90:])[:, 1], data.labels[90:, 1])["macro f1"] > 0.9
    for one, other in zip(routers, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert not any(parameter.requires_grad for parameter in one.parameters())


def test_quality_is_not_fooled_by_the_common_class():
    labels = torch.tensor([1] * 8 + [0, 2])
    found = quality(torch.ones(10, dtype=torch.long), labels)
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["recall"] == {"skip": 0.0, "once": 1.0, "twice": 0.0}
    assert found["macro f1"] == pytest.approx((16 / 18) / 3)


def test_a_state_of_another_size_is_refused():
    decoder = tiny_decoder("llama")
    router = new_router(16, 4, torch.Generator())
    state = {f"router.{layer}.{name}": t for layer in range(4) for name, t in router.state_dict().items()}
    with pytest.raises(MethodError, match="read 16 channels, and this model has 32"):
        load_routers(decoder, state)
    with pytest.raises(MethodError, match="no router for layer 0"):
        load_routers(decoder, {})
