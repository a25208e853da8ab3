"""The examples do what they say; tests/test_wheels.py runs them as an outside author does."""

import torch

from harness.contract import registry
from harness.contract.describe import describe
from harness.testing.tiny import tiny_decoder
from tests.conftest import ROOT


def test_the_loose_method_keeps_the_ends() -> None:
    method = registry.from_file(ROOT / "examples" / "loose_method.py", "Funnel")
    model, ids = tiny_decoder("llama", layers=4), torch.arange(3, 15)[None]
    blocks = [block.module for block in model.anatomy.blocks]
    with method.from_args({"keep": "0.5"}).attach(model, method().prepare(model, None)), torch.no_grad():
        assert [blocks.index(layer) for layer in model.module.model.layers] == [0, 3]
        model.module(ids)
    assert list(model.module.model.layers) == blocks
    with method.from_args({"keep": "0"}).attach(model, method().prepare(model, None)):
        assert len(model.module.model.layers) == 2
    assert describe(method).neutral == "funnel:keep=1.0"
