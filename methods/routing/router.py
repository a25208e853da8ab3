"""Dr.LLM's routers: one small MLP before each layer, which sees the prompt pooled into a few windows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.contract.decoder import Auxiliary, only
from harness.core.errors import MethodError
from harness.model.paths.controller import Controller, Prompts

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.model.paths.routed_cache import LayerPath

CLASSES = 3
"""Skip, run once, run twice."""


def pool(states: torch.Tensor, windows: int) -> torch.Tensor:
    """Means over windows of equal length: [prompt, width] to [W, width], W = min(windows, prompt).

    The last prompt mod W tokens belong to no window (arXiv:2510.12773, section 3).
    """
    length, width = states.shape
    count = min(windows, length)
    size = length // count
    return states[: count * size].reshape(count, size, width).mean(1)  # [W, size, width] to [W, width]


def new_router(width: int, hidden: int, generator: torch.Generator) -> nn.Sequential:
    """Linear, GELU (tanh), Linear to the three classes; Xavier-uniform weights and zero biases."""
    with torch.random.fork_rng(devices=[]):  # linears draw weights of their own first
        read, decide = nn.Linear(width, hidden), nn.Linear(hidden, CLASSES)
    for layer in (read, decide):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(read, nn.GELU(approximate="tanh"), decide).requires_grad_(False)


def load_routers(model: "Decoder", tensors: dict[str, torch.Tensor]) -> list[nn.Sequential]:
    """The routers of a prepared state.

    Raises:
        MethodError: the tensors are not those of one router for each of the model's layers.
    """
    routers = []
    for layer in range(len(model.anatomy.blocks)):
        prefix = f"router.{layer}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            hidden, width = own["0.weight"].shape
            router = new_router(width, hidden, torch.Generator())
            router.load_state_dict(own)
        except (KeyError, ValueError, RuntimeError) as error:
            raise MethodError(f"the prepared state holds no router for layer {layer}: {error}") from error
        if width != model.config.hidden_size:
            raise MethodError(
                f"the prepared routers read {width} channels, and this model has {model.config.hidden_size}"
            )
        routers.append(router)
    return routers


def controlled(probabilities: torch.Tensor, control: float) -> torch.Tensor:
    """The paper's control knob (appendix C): class probabilities drawn towards skip, run once or repeat.

    At -1 every layer is skipped, at -0.5 the routers decide, at 0.5 every layer runs once, at 1 it is repeated.
    """
    skip, once, twice = torch.eye(CLASSES, device=probabilities.device)  # each [classes]
    if control <= -0.5:
        low, high, share = skip, probabilities, (control + 1) / 0.5
    elif control <= 0.5:
        low, high, share = probabilities, once, control + 0.5
    else:
        low, high, share = once, twice, (control - 0.5) / 0.5
    mixed: torch.Tensor = (1 - share) * low + share * high  # [rows, classes] or [classes]
    return mixed.expand_as(probabilities)


class RouterController(Controller):
    """Decides layer by layer as the prompt is read."""

    def __init__(self, model: "Decoder", routers: Sequence[nn.Module], windows: int, control: float) -> None:
        self._model, self._windows, self._control = model, windows, control
        self.routers = [router.float().to(model.device).eval() for router in routers]

    @property
    def auxiliaries(self) -> list[Auxiliary]:
        """The routers, to be charged with what they do."""
        return [Auxiliary(router, "router") for router in self.routers]

    @torch.no_grad()
    def decide(self, layer: int, hidden: torch.Tensor, prompts: Prompts) -> Sequence["LayerPath"]:
        """One router's choice for each row; rows of as many windows share a call."""
        pooled = [pool(states.float(), self._windows) for states in prompts.states(hidden)]  # of each row, [W, width]
        decided: list[int] = []  # rows, in the order of what is decided about them
        chosen = []
        for count in {len(windows) for windows in pooled}:
            rows = tuple(row for row, windows in enumerate(pooled) if len(windows) == count)
            with only(self._model, rows):
                logits = self.routers[layer](torch.stack([pooled[row] for row in rows])).mean(1)
            decided += rows
            chosen.append(controlled(logits.softmax(-1), self._control).argmax(-1))  # [rows of as many windows]
        counts = dict(zip(decided, torch.cat(chosen).tolist(), strict=True))  # the one transfer to the host
        return [(counts[row],) for row in range(len(pooled))]
