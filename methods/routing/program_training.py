"""Training PoLar's predictor on the shortest right paths of training questions."""

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.rnn import pad_sequence

from harness.contract.study import Workbench
from harness.core.text import duration
from harness.methods.routing.features import NOWHERE
from harness.methods.routing.programs import Predictor, segments
from harness.methods.routing.training import TIMED, fit

if TYPE_CHECKING:
    from harness.core.progress import Bar
    from harness.model.paths.routed_cache import LayerPath

BATCH = 32


def train(
    states: Sequence[torch.Tensor],
    paths: "Sequence[LayerPath]",
    width: int,
    epochs: int,
    rate: float,
    seed: int,
    workbench: Workbench = NOWHERE,
) -> Predictor:
    """A predictor of paths from the prompt's embeddings: AdamW on a cosine schedule.

    The loss is binary cross-entropy of where segments begin, and cross-entropy of what is done at each beginning.

    Args:
        states: the embeddings of each question's prompt, [tokens, channels].
        paths: each question's path.
        width: channels of the predictor.
        epochs: passes over the questions.
        rate: learning rate at the start.
        seed: of the weights, of dropout and of the order of the questions; the global random state is left as it was.
        workbench: where the time that it takes is said, and how far it is.
    """
    began = perf_counter()
    _train(states[:BATCH], paths[:BATCH], width, TIMED, rate, seed, None)
    steps = epochs * -(-len(paths) // BATCH)
    about = duration((perf_counter() - began) / TIMED * steps)
    workbench.say(f"training a predictor on {len(paths)} questions: about {about}, from {TIMED} steps timed")
    with workbench.bar("training the predictor") as bar:
        if bar is not None:
            bar.expect(steps)
        return _train(states, paths, width, epochs, rate, seed, bar)


def _train(
    states: Sequence[torch.Tensor],
    paths: "Sequence[LayerPath]",
    width: int,
    epochs: int,
    rate: float,
    seed: int,
    bar: "Bar | None",
) -> Predictor:
    targets = [segments(path) for path in paths]
    begins = torch.tensor([begin for begin, _ in targets])  # [questions, layers]
    does = torch.tensor([operation for _, operation in targets])  # [questions, layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = Predictor(states[0].shape[-1], width, len(paths[0])).train()

        def loss(batch: torch.Tensor) -> torch.Tensor:
            chosen = [states[index] for index in batch.tolist()]
            mask = pad_sequence([torch.ones(len(state), dtype=torch.bool) for state in chosen], batch_first=True)
            begin_logits, operation_logits = predictor(pad_sequence(chosen, batch_first=True), mask)
            value = binary_cross_entropy_with_logits(begin_logits[:, 1:], begins[batch][:, 1:])
            starts = begins[batch] == 1
            return value + cross_entropy(operation_logits[starts], does[batch][starts])

        optimizer = torch.optim.AdamW(predictor.parameters(), rate)
        steps = epochs * -(-len(paths) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        fit(loss, optimizer, schedule, torch.arange(len(paths)), epochs=epochs, batch=BATCH, bar=bar)
    return predictor.eval().requires_grad_(False)
