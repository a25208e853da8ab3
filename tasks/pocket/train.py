"""Train the pocket model from nothing: ``python -m harness.tasks.pocket.train --out DIR``.

Every step is a function of the seed and its number, so a run that was stopped and started again ends with the
same weights. Two habits make layers skippable, as they are in large models: deeper layers are left out more
often (stochastic depth), and a random layer's state must already predict the next token (early-exit loss).
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy

from . import mixture, probe, tokenizer
from .export import export
from .network import Network, Shape
from .splits import Draw

CHECKPOINT: Final = "checkpoint.pt"
LOG: Final = "log.jsonl"
MEETING: Final = "workers"
"""The file through which workers find each other."""
FIRST_EXIT: Final = 2
"""The shallowest layer after which the model learns to predict."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training run does; everything that decides the weights.

    Attributes:
        steps: optimizer steps. Until the decay begins nothing depends on their number, so it may still change.
        decay: the last steps, in which the learning rates go down to zero.
        matrix_rate: learning rate of the layers' matrices (Muon).
        other_rate: learning rate of the embedding and the norms (AdamW).
        skip: chance of leaving out the deepest layer, in the half of the batches that leave layers out.
        skip_ramp: steps over which that chance grows from zero.
        exit_weight: weight of the early-exit loss.
        workers: processes that each read batches of their own; the gradients are averaged.
        compile: compile the layers, which is faster and rounds differently.
    """

    steps: int = 5000
    seed: int = 0
    warmup: int = 100
    decay: int = 800
    matrix_rate: float = 0.004
    other_rate: float = 0.004
    weight_decay: float = 0.1
    skip: float = 0.4
    skip_ramp: int = 2500
    exit_weight: float = 0.25
    workers: int = 2
    compile: bool = True

    def rate(self, step: int) -> float:
        """Factor of the learning rates at a step: up, level, and down to zero."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / max(1, self.decay))

    def skipped(self, draw: Draw, step: int, layers: int) -> list[int]:
        """The layers to leave out of one batch: none in half of them, else more likely the deeper."""
        if draw.between(0, 1):
            return []
        chance = self.skip * min(1.0, step / self.skip_ramp)
        return [layer for layer in range(layers) if draw.between(1, 10000) <= 1e4 * chance * layer / (layers - 1)]


class Trainer:
    """A network with its optimizers, at a step."""

    def __init__(self, plan: Plan, shape: Shape, codec: Any, rank: int = 0) -> None:
        self.plan, self.codec, self.rank, self.step = plan, codec, rank, 0
        self.end: int = codec.token_to_id(tokenizer.END)
        self.network = Network(shape, seed=plan.seed)
        matrices = list(self.network.layers.named_parameters())
        deep = [parameter for _, parameter in matrices if parameter.ndim == 2]
        rest = [p for p in self.network.parameters() if not any(p is other for other in deep)]
        self.muon = torch.optim.Muon(
            deep, lr=plan.matrix_rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(rest, lr=plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.loss = _loss
        if plan.compile:
            # Each shape of a batch is compiled by itself, in training and in probing.
            torch._dynamo.config.recompile_limit = 32
            self.loss = torch.compile(_loss, dynamic=False)
            for layer in self.network.layers:
                layer.compile(dynamic=False)

    def encode(self, content: str) -> list[int]:
        """Token ids of a text, without begin or end."""
        ids: list[int] = self.codec.encode(content, add_special_tokens=False).ids
        return ids

    def advance(self) -> dict[str, float]:
        """One step. Returns the losses in nats per weighted token and the number of tokens read."""
        factor = self.plan.rate(self.step)
        for optimizer, rate in ((self.muon, self.plan.matrix_rate), (self.adam, self.plan.other_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        row: dict[str, float] = {"tokens": 0.0}
        seed = f"{self.plan.seed}/{self.rank}"
        packed, recall = mixture.batches(self.step, seed=seed, encode=self.encode, end=self.end)
        for name, batch in (("packed", packed), ("recall", recall)):
            row |= self._backward(f"{seed}/{name}", name, batch)
            row["tokens"] += batch.inputs.numel() * self.plan.workers
        if self.plan.workers > 1:
            self._average()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adam.step()
        self.network.zero_grad(set_to_none=True)
        self.step += 1
        return row | {"norm": norm.item()}

    def _average(self) -> None:
        """Replace the gradients by their mean over the workers; a layer that was left out has none."""
        parameters = list(self.network.parameters())
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.plan.workers
        for one in parameters:
            one.grad, flat = flat[: one.numel()].view_as(one), flat[one.numel() :]

    def _backward(self, seed: str, name: str, batch: mixture.Batch) -> dict[str, float]:
        draw = Draw(seed, self.step, "depth")
        layers = self.network.shape.num_hidden_layers
        skip = self.plan.skipped(draw, self.step, layers)
        exit_at = draw.between(FIRST_EXIT, layers - 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            final, early = self.network(batch.inputs, owner=batch.owner, skip=skip, exit_at=exit_at)
            loss = self.loss(self.network.lm_head.weight, final, batch.labels, batch.weights)
            exit_loss = self.loss(self.network.lm_head.weight, early, batch.labels, batch.weights)
        (loss + self.plan.exit_weight * exit_loss).backward()  # type: ignore[no-untyped-call]
        return {name: loss.item(), f"{name}_exit": exit_loss.item()}

    def save(self, folder: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "step": self.step,
            "plan": asdict(self.plan),
            "network": self.network.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
        }
        torch.save(state, folder / f"{CHECKPOINT}.part")
        (folder / f"{CHECKPOINT}.part").replace(folder / CHECKPOINT)

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in the folder, if there is one."""
        if not (folder / CHECKPOINT).exists():
            return
        state = torch.load(folder / CHECKPOINT, weights_only=True)
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def _loss(head: Tensor, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross entropy of the next token, in nats."""
    logits = torch.nn.functional.linear(hidden, head).float()
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def run(plan: Plan, folder: Path, *, shape: Shape | None = None, save_every: int = 100, probe_every: int = 500) -> None:
    """Train to the end of the plan, continuing what the folder holds; leaves checkpoint, log and model there."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = (plan, folder, shape, save_every, probe_every)
    if plan.workers == 1:
        _work(0, *arguments)
    else:
        (folder / MEETING).unlink(missing_ok=True)
        spawn(_work, arguments, nprocs=plan.workers)  # type: ignore[no-untyped-call]


def _work(rank: int, plan: Plan, folder: Path, shape: Shape | None, save_every: int, probe_every: int) -> None:
    """What one worker does; the first also saves, probes and writes the log."""
    if plan.workers > 1:
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo", f"file://{(folder / MEETING).resolve()}", timedelta(days=1), plan.workers, rank
        )
    codec = tokenizer.train()
    trainer = Trainer(plan, shape or Shape(vocab_size=codec.get_vocab_size()), codec, rank)
    trainer.load(folder)
    log = Log(folder / LOG, trainer.step) if rank == 0 else None
    began = time.perf_counter()
    while trainer.step < plan.steps:
        row = trainer.advance()
        if not all(math.isfinite(value) for value in row.values()):
            raise FloatingPointError(f"training diverged at step {trainer.step}: {row}")
        if log is None:
            continue
        seconds, began = time.perf_counter() - began, time.perf_counter()
        log.write({"step": trainer.step, **row, "seconds": seconds})
        if trainer.step % save_every == 0 or trainer.step == plan.steps:
            trainer.save(folder)
        if trainer.step % probe_every == 0 or trainer.step == plan.steps:
            log.write({"step": trainer.step, "probe": probe.accuracies(trainer.network, trainer.encode, trainer.end)})
    if rank == 0:
        export(trainer.network, codec, folder / "model")


class Log:
    """One JSON object per line; lines after the step that training continues from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, row: dict[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(row, default=float) + "\n")


def main() -> None:
    """Train and export, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, the log and the model")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--decay", type=int, default=Plan.decay)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--workers", type=int, default=Plan.workers)
    parser.add_argument("--skip", type=float, default=Plan.skip, help="chance of leaving out the deepest layer")
    parser.add_argument("--exit_weight", type=float, default=Plan.exit_weight, help="weight of the early-exit loss")
    arguments = vars(parser.parse_args())
    run(Plan(**{name: value for name, value in arguments.items() if name != "out"}), arguments["out"])


if __name__ == "__main__":
    main()
