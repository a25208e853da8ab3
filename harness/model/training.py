"""A small trainer: some parameters of a model, or new ones that act on it, fitted to text while all else is frozen.

Deterministic: the batches are given, no dropout runs, and what is drawn at random is drawn from the step's own seed.
Resumable: every few steps the state is written to the workbench, and a killed training goes on from there to the same
result. What is trained takes the place of parameters for a forward alone, so the model is never written to.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from harness.contract.identity import model_identity
from harness.core.errors import MethodError
from harness.model.given import unusable
from harness.model.training_given import check_given
from harness.model.training_state import TrainingState
from harness.model.weights.replaced import dense_names

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.contract.method import Method
    from harness.contract.study import Study, Workbench

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A number to be made small, of logits [rows, tokens, vocabulary] and the token ids [rows, tokens] that gave them."""

Acting = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
"""From what is trained to the values of the model's parameters, by their names in the dense model."""

EVERY: Final = 20
"""Steps between two states that are kept."""


@dataclass(frozen=True)
class Tuned:
    """The end of a training.

    Attributes:
        tensors: what was trained, by name, in float32.
        losses: the loss at each step, before the step was taken.
    """

    tensors: dict[str, torch.Tensor]
    losses: list[float]


def text_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each next token of the text, in nats."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def dense_loss(study: "Study", temperature: float = 1.0) -> Loss:
    """T^2 KL(dense || model) of the next token, mean over tokens, in nats; both softened by a temperature T.

    The knowledge distillation of arXiv:1503.02531, with the dense model as the teacher.
    """

    def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        dense, model = (
            log_softmax(each.flatten(0, 1).float() / temperature, -1)  # [rows * tokens, vocabulary]
            for each in (study.teacher(ids), logits)
        )
        return temperature**2 * kl_div(model, dense, reduction="batchmean", log_target=True)

    return loss


def tune(
    model: "Decoder",
    parameters: Mapping[str, torch.Tensor],
    batches: Sequence[torch.Tensor],
    loss: Loss,
    *,
    method: "Method",
    rate: float,
    seed: int,
    workbench: "Workbench",
    acting: Acting = dict,
    name: str = "",
) -> Tuned:
    """Fit parameters by Adam, one step for each batch, at a rate that falls to zero along half a cosine.

    The model stays as it is, with whatever is attached to it; it is run in eval mode, without a cache.

    Args:
        parameters: what is trained, by name, at its start: the model's own parameters by their names in the dense
            model, or new ones, and then ``acting`` says what they make of the model.
        batches: token ids, each [rows, tokens], as ``Study.batches`` gives them.
        method: whose training it is, for its errors and to tell trainings apart.
        rate: Adam's learning rate at the first step.
        seed: of what the loss, or ``acting``, draws at random; the global generators are left as they were.
        workbench: where a state is kept every few steps.
        name: tells trainings of one preparation apart that differ in their loss, in ``acting`` or in what is attached
            alone, as no state says these.

    Raises:
        MethodError: what is given cannot be trained; a loss, or what comes of it, is not finite, or the loss depends on
            nothing that is trained; or a second training of a preparation would have the state of the first.
    """
    check_given(model, parameters, batches, rate, method.name)
    trained = {name: start.detach().clone().float().requires_grad_() for name, start in parameters.items()}
    optimizer = torch.optim.Adam(trained.values(), lr=rate)
    depends = [model_identity(model), method.fingerprint, rate, seed, name]
    kept = TrainingState.of(workbench.folder, depends, parameters, batches)
    if kept.file is not None and kept.file in workbench.trained:
        raise MethodError(
            f"{method.name}: a second training of this preparation has start, batches, rate and seed of one before, "
            "and would be given its result: tell them apart by tune(..., name=...)"
        )
    losses = kept.restored(trained, optimizer)
    with _frozen(model), _own_randomness(model), workbench.bar(f"training {method.name}") as bar:
        if bar is not None:
            bar.expect(len(batches))
            bar.advance(len(losses))
        for step in range(len(losses), len(batches)):
            torch.manual_seed(Random(f"{seed} {step}").getrandbits(63))
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
            place = f"step {step + 1} of {len(batches)} of its training"
            value = loss(_logits(model, acting(trained), batches[step], method.name), batches[step])
            _check(value, f"{method.name}: at {place}", rate)
            _descend(value, trained, optimizer, method.name, place)
            losses.append(value.item())
            if len(losses) % EVERY == 0 and len(losses) < len(batches):
                kept.write(trained, optimizer, losses)
            if bar is not None:
                bar.advance(1)
    tensors = {name: tensor.detach() for name, tensor in trained.items()}
    kept.write(tensors, None, losses)
    if kept.file is not None:
        workbench.trained.add(kept.file)
    return Tuned(tensors, losses)


_NOTHING: Final = "the loss depends on nothing that is trained"


def _descend(
    value: torch.Tensor, trained: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, method: str, place: str
) -> None:
    """Take one step down the gradient of a loss.

    Args:
        place: the step, in words.

    Raises:
        MethodError: the loss depends on nothing that is trained, or the step leads nowhere finite.
    """
    gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise MethodError(f"{method}: at {place}, {_NOTHING}")
    for tensor, gradient in zip(trained.values(), gradients, strict=True):
        tensor.grad = torch.zeros_like(tensor) if gradient is None else gradient
    optimizer.step()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in trained.values()):
        raise MethodError(f"{method}: {place} gives a number that is not finite: try a smaller rate")


def _check(value: torch.Tensor, where: str, rate: float) -> None:
    if not isinstance(value, torch.Tensor):
        raise MethodError(f"{where}, the loss is no single number, and a tensor of it, but a {type(value).__name__}")
    if value.is_meta or value.is_complex() or unusable(value, value.device) or value.numel() != 1:
        raise MethodError(f"{where}, the loss is no single number: a dense tensor of one real number is")
    if not torch.isfinite(value):
        raise MethodError(f"{where}, the loss is {value.item()}: try a smaller rate than {rate:g}")
    if not value.requires_grad:
        raise MethodError(f"{where}, {_NOTHING}")


def _logits(model: "Decoder", values: Mapping[str, torch.Tensor], ids: torch.Tensor, method: str) -> torch.Tensor:
    """The model's logits [rows, tokens, vocabulary] with these values in place of parameters."""
    now = {module: name for name, module in model.module.named_modules()}
    modules = {name: module for module, name in dense_names(model).items()}
    placed = {}
    if not isinstance(values, Mapping):
        raise MethodError(f"{method}: acting gives the model's parameters by name, not a {type(values).__name__}")
    for name, tensor in values.items():
        owner, _, attribute = name.rpartition(".")
        parameter = modules[owner]._parameters.get(attribute) if owner in modules else None
        if parameter is None:
            raise MethodError(f"{method}: {name} cannot be trained: the model has no such parameter now")
        if not isinstance(tensor, torch.Tensor) or (tensor.is_meta or unusable(tensor, tensor.device)):
            raise MethodError(f"{method}: acting gives a dense tensor in place of {name}, not {tensor!r:.60}")
        if tensor.shape != parameter.shape:
            raise MethodError(
                f"{method}: {name} has the shape {list(parameter.shape)}, and what is to take its place "
                f"{list(tensor.shape)}"
            )
        placed[f"{now[modules[owner]]}.{attribute}"] = tensor.to(parameter)
    with torch.autocast(ids.device.type, model.autocast, enabled=model.autocast is not None):
        output = functional_call(model.module, placed, kwargs={"input_ids": ids, "use_cache": False})
    logits: torch.Tensor = output.logits
    return logits


@contextmanager
def _frozen(model: "Decoder") -> Iterator[None]:
    """Record gradients, and none of the model's own parameters."""
    with ExitStack() as undo:
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                undo.callback(parameter.requires_grad_)
                parameter.requires_grad_(False)
        undo.enter_context(torch.enable_grad())
        yield


@contextmanager
def _own_randomness(model: "Decoder") -> Iterator[None]:
    """Leave the global generators as they were, and take algorithms that give the same again where there are any."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
