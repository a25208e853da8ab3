"""What searched paths have to teach, without a look at the questions, for docs/routing.md.

    python -m tests.benchmarks.routing_labels work/paths-0123456789abcdef.json

Reads the journal that `routing_pareto --work work` keeps: how often each layer is skipped, and how well it is told on a
fifth of the paths whether one is, by the layer's more frequent choice, and by a small network that sees the path's
earlier layers. A router that knows something of the question must do better.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal", type=Path)
    stored = json.loads(parser.parse_args().journal.read_text()).values()
    paths = [tuple(path) for path, *_ in stored if path is not None]
    print(f"{len(paths)} paths, {len(set(paths))} of them different, {sum(2 in path for path in paths)} repeat a layer")
    executed = (torch.tensor(paths) > 0).float()
    print("skipped:", ", ".join(f"{share:.0%}" for share in 1 - executed.mean(0)))
    order = torch.randperm(len(executed), generator=torch.Generator().manual_seed(0))
    judged, training = executed[order[: len(order) // 5]], executed[order[len(order) // 5 :]]
    frequent = (training.mean(0) > 0.5).float()
    print(f"the more frequent choice: accuracy {(judged == frequent).float().mean():.3f}")
    torch.manual_seed(0)
    told = torch.stack([from_earlier(training, judged, layer) for layer in range(executed.shape[1])], 1)
    print(f"from the path's earlier layers: accuracy {(judged == told).float().mean():.3f}")


def from_earlier(training: torch.Tensor, judged: torch.Tensor, layer: int) -> torch.Tensor:
    """Whether a layer is executed on the judged paths, from those before it; [paths, layers] of 0 and 1."""
    seen, unseen = (torch.cat([each[:, :layer], each[:, :layer].sum(1, True)], 1) for each in (training, judged))
    network = nn.Sequential(nn.Linear(layer + 1, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        torch.autograd.backward(binary_cross_entropy_with_logits(network(seen)[:, 0], training[:, layer]))
        optimizer.step()
    return (network(unseen)[:, 0] > 0).float()


if __name__ == "__main__":
    main()
