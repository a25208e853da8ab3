"""PoLar's predictor: its likeliest path is the best of all, its labels are runs, its rows do not meet."""

from itertools import pairwise, product

import pytest
import torch

from harness.methods.routing.programs import Predictor, ProgramController, best_path, segments
from harness.model.paths.controller import Prompts
from harness.testing.tiny import tiny_decoder


def brute(begins, does):
    """The best of every segmentation and operation."""
    begin, keep, worth = begins.sigmoid().log(), (1 - begins.sigmoid()).log(), does.log_softmax(-1)
    found = []
    for cuts in product((0, 1), repeat=len(begins) - 1):
        starts = [0, *(layer for layer, cut in enumerate(cuts, 1) if cut), len(begins)]
        if any(after - before > 4 for before, after in pairwise(starts)):
            continue
        shape = sum(float(begin[layer] if cut else keep[layer]) for layer, cut in enumerate(cuts, 1))
        for operations in product(range(3), repeat=len(starts) - 1):
            done = sum(float(worth[start, op]) for start, op in zip(starts, operations, strict=False))
            path = [op for (a, b), op in zip(pairwise(starts), operations, strict=True) for _ in range(b - a)]
            found.append((shape + done, tuple(path)))
    return max(found)[1]


@pytest.mark.parametrize("seed", range(4))
def test_the_likeliest_path_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    begins, does = torch.randn(6, generator=generator) * 2, torch.randn(6, 3, generator=generator)
    assert best_path(begins, does) == brute(begins, does)


def test_segments_are_runs_of_at_most_four():
    assert segments((1, 1, 0, 0, 2, 1))[0] == [1, 0, 1, 0, 1, 1]
    assert segments((1,) * 9)[0] == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert segments((0, 1, 1, 1, 1, 1, 0))[0] == [1, 1, 0, 0, 0, 1, 1]


def test_each_row_is_read_alone():
    decoder = tiny_decoder("llama")
    torch.manual_seed(0)
    predictor = Predictor(32, 8, 4)
    controller = ProgramController(decoder, predictor, 0.0)
    hidden = torch.randn(2, 9, 32)
    ids = torch.ones(2, 9, dtype=torch.long)
    together = controller.decide(0, hidden, Prompts(ids, ((0, 9), (4, 9))))
    alone = controller.decide(0, hidden[1:, 4:], Prompts(ids[:1, :5], ((0, 5),)))
    assert together[1] == alone[0]
    assert ProgramController(decoder, predictor, 50.0).decide(0, hidden, Prompts(ids, ((0, 9),) * 2)) == [(0,) * 4] * 2


def test_padding_is_not_read_in_training():
    predictor = Predictor(16, 8, 3).eval()
    states, mask = torch.randn(1, 5, 16), torch.tensor([[True] * 5 + [False] * 3])
    padded = torch.cat([states, torch.randn(1, 3, 16)], 1)
    for found, expected in zip(predictor(padded, mask), predictor(states), strict=True):
        torch.testing.assert_close(found, expected)
