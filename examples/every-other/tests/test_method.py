"""The harness's checks on both units, and what is particular to every-other."""

from collections.abc import Callable

import pytest
from harness.testing import parametrize_methods
from harness.testing.tiny import tiny_decoder
from torch import nn

from harness_every_other.method import EveryOther


@parametrize_methods([EveryOther, EveryOther(start=0.25, unit="attention")])
def test_contract(check: Callable[[], None]) -> None:
    """One test per check; none of them is expected to fail."""
    check()


@pytest.mark.parametrize(("start", "dropped"), [(0, [0, 2, 4]), (0.5, [3, 5]), (0.9, [5]), (1, [])])
def test_which_layers_lose_their_mlp(start: float, dropped: list[int]) -> None:
    model = tiny_decoder("llama", layers=6)
    method = EveryOther(start=start)
    ran: set[int] = set()

    def watch(index: int) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: ran.add(index)

    for block in model.anatomy.blocks:
        block.mlp.modules[-1].register_forward_hook(watch(block.index))
    with method.attach(model, method.prepare(model, study=None)):
        model.module(model.tokenizer("a few words", return_tensors="pt").input_ids)
    assert sorted({*range(6)} - ran) == dropped
