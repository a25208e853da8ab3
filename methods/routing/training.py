"""Training the routers on kept features: focal loss with class-balanced weights (arXiv:2510.12773, section 3.3).

The model is frozen and execution follows the label's path, so what a router reads is constant: it is pooled once and
kept, and each layer's router trains by itself. The paper's loss is the mean over layers, whose gradient for a router
is that of its own layer's loss, scaled; Adam does not see the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import log_softmax

from harness.methods.routing.features import Examples, logits_of
from harness.methods.routing.router import CLASSES, new_router


@dataclass(frozen=True)
class Recipe:
    """How routers train; the paper's but for the epochs, of which few questions need more, and beta, see below."""

    hidden: int = 128
    epochs: int = 100
    batch: int = 16
    rate: float = 1e-3
    decay: float = 0.01
    warmup: int = 500
    beta: float = 0.99999
    gamma: float = 2.0


def class_weights(counts: Sequence[int], beta: float) -> torch.Tensor:
    """(1 - beta) / (1 - beta^n) for each class, scaled to sum to their number; 0 for a class without samples.

    The effective number saturates at 1 / (1 - beta): with the paper's 0.999 and 120,956 samples of one class the
    weights hardly balance (0.92, 0.90, 1.18).
    """
    weights = torch.tensor([(1 - beta) / (1 - beta**count) if count else 0.0 for count in counts], dtype=torch.float64)
    return (weights * len(counts) / weights.sum()).float()


def focal_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, gamma: float) -> torch.Tensor:
    """Mean of -w_y (1 - p_y)^gamma log p_y; logits [samples, classes], labels [samples]."""
    logp = log_softmax(logits, -1).gather(-1, labels[:, None])[:, 0]
    return (-weights[labels] * (1 - logp.exp()) ** gamma * logp).mean()


def train(examples: Examples, chosen: torch.Tensor, recipe: Recipe, seed: int) -> list[nn.Sequential]:
    """One router for each layer.

    Args:
        examples: what to learn; kept as they are, in the model's precision, as they are most of the memory.
        chosen: which of the samples to learn from.
        recipe: how.
        seed: of the weights and of the order of the samples.
    """
    counts = torch.bincount(examples.labels[chosen].flatten(), minlength=CLASSES).tolist()
    weights = class_weights(counts, recipe.beta)
    layers = range(len(examples.features))
    return [_train_one(examples, layer, chosen, weights, recipe, seed + layer) for layer in layers]


def _train_one(
    examples: Examples, layer: int, chosen: torch.Tensor, weights: torch.Tensor, recipe: Recipe, seed: int
) -> nn.Sequential:
    features, labels = examples.features[layer], examples.labels[:, layer]
    generator = torch.Generator().manual_seed(seed)
    router = new_router(features.shape[-1], recipe.hidden, generator).requires_grad_(True)
    steps = recipe.epochs * math.ceil(len(chosen) / recipe.batch)
    warmup = min(recipe.warmup, max(steps // 10, 1))
    optimizer = torch.optim.AdamW(router.parameters(), recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step + 1, warmup, steps))
    with torch.enable_grad():
        for _ in range(recipe.epochs):
            for batch in torch.split(chosen[torch.randperm(len(chosen), generator=generator)], recipe.batch):
                logits = logits_of(router, features[batch], examples.windows[batch])
                loss = focal_loss(logits, labels[batch], weights, recipe.gamma)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    return router.requires_grad_(False)


def quality(predicted: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Accuracy, recall of each class, and macro-F1 over the classes that occur in either; flat tensors of classes.

    Most layers run once, so accuracy alone says little.
    """
    recall, f1 = {}, []
    for number, name in enumerate(("skip", "once", "twice")):
        hit = int(((predicted == number) & (labels == number)).sum())
        true, said = int((labels == number).sum()), int((predicted == number).sum())
        recall[name] = hit / true if true else None
        if true or said:
            f1.append(2 * hit / (true + said))
    return {"accuracy": float((predicted == labels).float().mean()), "recall": recall, "macro f1": sum(f1) / len(f1)}


def _rate(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
