"""Scores equal the formula computed by hand from what the modules add."""

import numpy as np
import pytest
import torch

from harness.core.errors import MethodError
from harness.model.influence import influence
from harness.model.surgery import without_branches
from harness.testing.tiny import tiny_decoder
from tests.model.conftest import usual
from tests.model.dropping import assert_same, snapshot


def by_hand(decoder, windows):
    """1 - mean cos(x, y), x + branch output as y, in double precision with numpy, one token at a time."""
    sums = {unit: np.zeros(len(decoder.anatomy.blocks)) for unit in ("block", "attention", "mlp")}
    tokens = 0
    for window in windows:
        seen, handles = {}, []

        def keep(key, seen=seen):
            def hook(module, args, output):
                first = output[0] if isinstance(output, tuple) else output
                seen[key] = first.detach().double().reshape(-1, first.shape[-1]).numpy()
                seen.setdefault(("x", *key), args[0].detach().double().numpy() if args else None)

            return hook

        for block in decoder.anatomy.blocks:
            handles.append(block.module.register_forward_hook(keep((block.index, "block"))))
            handles.append(block.attention.output.register_forward_hook(keep((block.index, "attention"))))
            handles.append(block.mlp.output.register_forward_hook(keep((block.index, "mlp"))))
        decoder.module(input_ids=window, use_cache=False)
        for handle in handles:
            handle.remove()
        tokens += window.numel()
        for block in decoder.anatomy.blocks:
            x = seen["x", block.index, "block"].reshape(-1, 32)
            after_attention = x + seen[block.index, "attention"]
            mlp_x = x if block.parallel else after_attention
            pairs = {
                "block": (x, seen[block.index, "block"]),
                "attention": (x, after_attention),
                "mlp": (mlp_x, mlp_x + seen[block.index, "mlp"]),
            }
            for unit, (before, after) in pairs.items():
                for a, b in zip(before, after, strict=True):
                    sums[unit][block.index] += 1 - a @ b / np.sqrt((a @ a) * (b @ b))
    return {unit: values / tokens for unit, values in sums.items()}


@usual
def test_scores_are_the_mean_over_all_tokens(decoder, ids):
    """Windows of different length, so a mean of window means would differ."""
    windows = [ids[:1], ids[1:, :5]]
    before = snapshot(decoder)
    measured = influence(decoder, windows)
    assert_same(before, snapshot(decoder))
    assert measured.tokens == 21
    expected = by_hand(decoder, windows)
    for unit, scores in measured.scores.items():
        np.testing.assert_allclose(scores, expected[unit], atol=1e-5)
        assert min(scores) > 1e-3


def test_a_branch_that_adds_nothing_scores_zero(ids):
    decoder = tiny_decoder("llama")
    torch.nn.init.zeros_(decoder.anatomy.blocks[2].mlp.modules[0].down_proj.weight)
    assert influence(decoder, [ids]).scores["mlp"][2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(ids, value):
    decoder = tiny_decoder("llama")
    decoder.anatomy.blocks[1].mlp.modules[0].down_proj.weight.data[0, 0] = value
    before = snapshot(decoder)["hooks"]
    with pytest.raises(MethodError, match="the block score of layer 1 is nan"):
        influence(decoder, [ids])
    assert snapshot(decoder)["hooks"] == before


def test_refuses_a_model_without_one_of_its_mlps() -> None:
    model = tiny_decoder("llama", layers=3)
    with without_branches(model, mlp=[1]), pytest.raises(MethodError, match="MLP of layer 1"):
        influence(model, [torch.tensor([[1, 2, 3]])])
