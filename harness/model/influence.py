"""How much each layer, attention and MLP changes the residual stream, measured on text.

The score of a unit is 1 - mean cos(x, y) over tokens, with x the residual stream before it and y the stream after it.
For a whole layer this is ShortGPT's Block Influence (arXiv:2403.03853); for a branch it is the score of LLM-Drop
(arXiv:2406.15786). The stream is read off the modules that run, so a scaled branch counts as it is added.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from torch.utils.hooks import RemovableHandle

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.core.errors import MethodError

Unit = Literal["block", "attention", "mlp"]


@dataclass(frozen=True)
class Influence:
    """Scores measured on some text.

    Attributes:
        scores: by unit, one score per layer, 0 (the unit only scales the stream) to 2 (it reverses it).
        tokens: how many tokens the scores are a mean over.
    """

    scores: dict[Unit, tuple[float, ...]]
    tokens: int


@torch.no_grad()
def influence(model: Decoder, windows: Iterable[torch.Tensor]) -> Influence:
    """Score every unit of a dense model.

    Args:
        windows: token ids, each [rows, tokens].

    Raises:
        MethodError: a score is not a number, because activations overflow or a weight is damaged; or an MLP has been
            removed.
    """
    layers = len(model.anatomy.blocks)
    changes: dict[Unit, list[float]] = {unit: [0.0] * layers for unit in get_args(Unit)}  # sums over tokens
    tokens = 0
    with ExitStack() as hooks:
        for block in model.anatomy.blocks:
            hooks.enter_context(_watched(block, changes))
        for window in windows:
            # The layers alone: the language-model head has no part in the scores.
            model.anatomy.parent(input_ids=window, use_cache=False)
            tokens += window.numel()
    for unit, sums in changes.items():
        for layer, change in enumerate(sums):
            if not math.isfinite(change):
                raise MethodError(f"the {unit} score of layer {layer} is {change}: activations are not finite")
    return Influence({unit: tuple(change / tokens for change in sums) for unit, sums in changes.items()}, tokens)


@contextmanager
def _watched(block: Block, changes: dict[Unit, list[float]]) -> Iterator[None]:
    """Add the changes made in every forward of a block to the sums."""
    streams: dict[str, torch.Tensor] = {}  # each [rows, tokens, width], or [rows * tokens, width] in OPT's MLP

    def keep_input(key: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            streams[key] = args[0] if args else kwargs["hidden_states"]

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def keep_output(key: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            streams[key] = _tensor(output)

        return module.register_forward_hook(hook)

    def finish(_: nn.Module, __: Any, output: Any) -> None:
        x, y = streams["input"], _tensor(output)
        if not block.parallel and "middle" not in streams:
            raise MethodError(f"the MLP of layer {block.index} is out of the model: score it before taking parts out")
        pairs: dict[Unit, tuple[torch.Tensor, torch.Tensor]] = {"block": (x, y)}
        if block.parallel:
            pairs |= {"attention": (x, x + streams["attention"]), "mlp": (x, x + streams["mlp"])}
        else:  # between the branches is what the MLP, or the norm before it, reads
            pairs |= {"attention": (x, streams["middle"]), "mlp": (streams["middle"], y)}
        for unit, pair in pairs.items():
            changes[unit][block.index] += _change(*pair)
        streams.clear()

    handles = [keep_input("input", block.module)]
    if block.parallel:
        handles += [keep_output("attention", block.attention.output), keep_output("mlp", block.mlp.output)]
    else:
        handles += [keep_input("middle", block.mlp.input)]
    handles += [block.module.register_forward_hook(finish)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _change(x: torch.Tensor, y: torch.Tensor) -> float:
    """Sum over tokens of 1 - cos(x, y), of streams [rows, tokens, width] or [rows * tokens, width]."""
    # hooks see the input where the layer before left it, which may be on another device
    x, y = (stream.to(y.device).reshape(-1, stream.shape[-1]).float() for stream in (x, y))  # [rows * tokens, width]
    return float((1 - cosine_similarity(x, y, dim=-1)).sum())


def _tensor(output: Any) -> torch.Tensor:
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first
