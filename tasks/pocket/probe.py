"""How well the network writes whole targets, measured in training on the validation split.

A target counts when each of its tokens is the most likely one after the true tokens before it, which is
exactly when greedy decoding writes it. lm-eval's scores are as high or higher: an answer may be right another way.
"""

from collections.abc import Callable
from itertools import islice
from typing import Final

import torch

from . import arithmetic, choice, recall
from .network import Network
from .splits import Document, Split, documents

KINDS: Final = {"math": (arithmetic, 20), "choice": (choice, 20), "recall": (recall, 8)}
"""Each kind and its documents per level."""


def accuracies(network: Network, encode: Callable[[str], list[int]], end: int) -> dict[str, float]:
    """Share of targets written exactly, by kind and level: ``{"math/1": 0.95, ...}``."""
    scores: dict[str, float] = {}
    for name, (kind, size) in KINDS.items():
        for level in kind.LEVELS:
            sample = islice(documents(kind.make, [level], Split.VALIDATION, "probe"), size)
            right = [_writes(network, document, encode, end) for document in sample]
            scores[f"{name}/{level}"] = sum(right) / size
    return scores


@torch.no_grad()
def _writes(network: Network, document: Document, encode: Callable[[str], list[int]], end: int) -> bool:
    prompt, target = [end, *encode(document.prompt)], encode(document.target)
    # Few lengths, so that compiled layers serve; what is padded after the end changes nothing before it.
    ids = prompt + target
    length = next(size for size in (256, 512, 1024) if size >= len(ids))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, _ = network(torch.tensor([ids + [end] * (length - len(ids))]))
        best = network.lm_head(hidden[0, len(prompt) - 1 : len(ids) - 1]).argmax(-1)
    return bool(best.tolist() == target)
