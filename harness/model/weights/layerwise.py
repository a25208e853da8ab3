"""Calibrate layer by layer: the inputs of each layer, with the layers before it as a method has changed them.

The hidden states of all windows are kept for one layer at a time, and nothing else: memory is the model, these, and
what the method itself computes for one layer. This is how Wanda and SparseGPT propagate (arXiv:2306.11695, section 4).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.core.errors import Enough, MethodError

Observers = Mapping[nn.Module, Callable[[torch.Tensor], None]]
"""For some modules of a layer, what is called with the inputs [tokens, in] of each forward."""

Visit = Callable[[Block, Callable[[Observers], None]], AbstractContextManager[Any]]
"""A method's work on one layer: it is given the block and a function that runs the layer on all windows under
observers, which it may call any number of times. It returns a context manager that changes the layer while its outputs,
the next layer's inputs, are computed."""

Calls = dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]
"""The arguments of each layer's call, positional and by name, beside its hidden states."""


@torch.no_grad()
def layer_by_layer(model: Decoder, windows: Iterable[torch.Tensor], visit: Visit) -> int:
    """Visit every layer that is in the model, in order, on token windows of shape [1, length].

    Returns:
        The number of tokens in the windows.

    Raises:
        MethodError: a layer's outputs are not finite.
    """
    live = model.live
    calls: dict[int, Calls] = {}  # by length: masks and positions depend on nothing else
    modules = [block.module for block in live]
    states = [_first_input(model, modules, window, calls) for window in windows]  # each [1, length, width]

    def forward(module: nn.Module, state: torch.Tensor) -> torch.Tensor:
        args, kwargs = calls[state.shape[1]][module]
        output = module(state, *args, **kwargs)  # [1, length, width], alone or first of a tuple
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    for block in live:
        module = block.module

        def run(observers: Observers, module: nn.Module = module) -> None:
            with _observed(observers):
                for state in states:
                    forward(module, state)

        with visit(block, run):
            for index, state in enumerate(states):
                states[index] = forward(module, state)
        if not all(bool(torch.isfinite(state).all()) for state in states):
            raise MethodError(f"on the calibration text, the output of layer {block.index} is not finite")
    return sum(state.shape[1] for state in states)


def _first_input(model: Decoder, live: list[nn.Module], window: torch.Tensor, calls: dict[int, Calls]) -> torch.Tensor:
    """The first layer's input [1, length, width]; the first window of a length also records the layers' calls."""
    inputs: list[torch.Tensor] = []
    known = window.shape[1] in calls
    recorded = calls.setdefault(window.shape[1], {})

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        inputs.append(args[0] if args else kwargs.pop("hidden_states"))
        if known:
            raise Enough
        recorded[module] = args[1:], kwargs

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in live]
    try:
        model.anatomy.parent(input_ids=window, use_cache=False)
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return inputs[0]


@contextmanager
def _observed(observers: Observers) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        observers[module](args[0].reshape(-1, args[0].shape[-1]))  # [tokens, in]

    handles = [module.register_forward_pre_hook(hook) for module in observers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
