"""Training Dr.LLM's routers: focal loss with class-balanced weights (arXiv:2510.12773, section 3.3).

The model is frozen and execution follows the label's path, so a router's input is constant: it is pooled once and
stored, and each layer's router trains by itself. The paper's loss is the mean over layers, whose gradient for a router
is that of its own layer's loss, scaled; Adam is invariant to the scale.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.functional import log_softmax

from harness.contract.study import Workbench
from harness.core.text import duration
from harness.methods.routing.features import NOWHERE, Examples, logits_of
from harness.methods.routing.router import CLASSES, new_router

if TYPE_CHECKING:
    from harness.core.progress import Bar

TIMED: Final = 5
"""Steps of a throwaway router that tell how long a training takes."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters, the paper's but for beta (see ``class_weights``) and epochs: few questions need more."""

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
    logp = log_softmax(logits, -1).gather(-1, labels[:, None])[:, 0]  # log p_y, [samples]
    return (-weights[labels] * (1 - logp.exp()) ** gamma * logp).mean()


def train(
    examples: Examples, chosen: torch.Tensor, recipe: Recipe, seed: int, workbench: Workbench = NOWHERE
) -> list[nn.Sequential]:
    """One router for each layer.

    Args:
        examples: stored in the model's own precision, as they are most of the memory.
        chosen: indices of the samples to learn from.
        recipe: the hyper-parameters.
        seed: of the weights and of the order of the samples.
        workbench: where the time that it takes is said, and how far it is.
    """
    counts = torch.bincount(examples.labels[chosen].flatten(), minlength=CLASSES).tolist()
    weights = class_weights(counts, recipe.beta)
    layers = range(len(examples.features))
    began = perf_counter()
    _train_one(examples, 0, chosen[: recipe.batch], weights, replace(recipe, epochs=TIMED), seed)
    steps = len(layers) * recipe.epochs * math.ceil(len(chosen) / recipe.batch)
    about = duration((perf_counter() - began) / TIMED * steps)
    workbench.say(
        f"training {len(layers)} routers on {len(chosen)} questions: about {about}, by {TIMED} of {steps} steps"
    )
    with workbench.bar("training routers") as bar:
        if bar is not None:
            bar.expect(steps)
        return [_train_one(examples, layer, chosen, weights, recipe, seed + layer, bar) for layer in layers]


def _train_one(
    examples: Examples,
    layer: int,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    recipe: Recipe,
    seed: int,
    bar: "Bar | None" = None,
) -> nn.Sequential:
    features, labels = examples.features[layer], examples.labels[:, layer]  # [samples, W, width], [samples]
    generator = torch.Generator().manual_seed(seed)
    router = new_router(features.shape[-1], recipe.hidden, generator).requires_grad_(True)
    steps = recipe.epochs * math.ceil(len(chosen) / recipe.batch)
    warmup = min(recipe.warmup, max(steps // 10, 1))
    optimizer = torch.optim.AdamW(router.parameters(), recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step + 1, warmup, steps))

    def loss(batch: torch.Tensor) -> torch.Tensor:
        logits = logits_of(router, features[batch], examples.windows[batch])  # [batch, classes]
        return focal_loss(logits, labels[batch], weights, recipe.gamma)

    fit(loss, optimizer, schedule, chosen, epochs=recipe.epochs, batch=recipe.batch, generator=generator, bar=bar)
    return router.requires_grad_(False)


def fit(
    loss: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    samples: torch.Tensor,
    *,
    epochs: int,
    batch: int,
    generator: torch.Generator | None = None,
    bar: "Bar | None" = None,
) -> None:
    """Minimise a loss on batches of samples, in a new random order for each epoch.

    Args:
        loss: of a batch, given the indices of its samples.
        samples: indices of all samples, shape [samples].
        batch: samples in a batch; the last of an epoch may have fewer.
        generator: draws the orders; the global one where there is none.
        bar: counts the steps.
    """
    with torch.enable_grad():
        for _ in range(epochs):
            for chosen in torch.split(samples[torch.randperm(len(samples), generator=generator)], batch):
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss(chosen))
                optimizer.step()
                schedule.step()
                if bar is not None:
                    bar.advance(1)


def quality(predicted: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Accuracy, recall of each class, and macro-F1 over the classes that occur in either; flat tensors of classes.

    Most layers run once, so accuracy alone says little.
    """
    recall, f1 = {}, []
    for number, name in enumerate(("skip", "once", "twice")):
        hit = int(((predicted == number) & (labels == number)).sum())
        true, guessed = int((labels == number).sum()), int((predicted == number).sum())
        recall[name] = hit / true if true else None
        if true or guessed:
            f1.append(2 * hit / (true + guessed))
    return {"accuracy": float((predicted == labels).float().mean()), "recall": recall, "macro f1": sum(f1) / len(f1)}


def _rate(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
