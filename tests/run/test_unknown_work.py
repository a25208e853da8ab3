"""A method with an operator that no formula counts: its FLOPs are null with the reason, also where a run is resumed."""

from pathlib import Path

import torch

from harness.results.store import Store
from tests.conftest import Harness
from tests.run.test_resume import execute, stopped_after

METHOD = '''
from contextlib import contextmanager
from dataclasses import dataclass
import torch
from harness import Family, Method, Savings

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    """An operator of its own in place of a product."""
    name = "mine"
    family = Family.QUANTIZATION
    savings = Savings.REAL

    @contextmanager
    def attach(self, model, prepared):
        down = model.module.model.layers[1].mlp.down_proj
        down.forward = lambda states: torch.ops.unknown_work_test.product(states, down.weight)
        try:
            yield
        finally:
            del down.forward
'''


@torch.library.custom_op("unknown_work_test::product", mutates_args=())
def product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product in a kernel of somebody's own."""
    return states @ weight.T


def test_unknown_work_is_null_with_its_reason(
    harness: Harness, tiny_folder: Path, tiny_tasks: Path, tmp_path: Path, device: str
) -> None:
    Path("mine.py").write_text(METHOD)
    model = {"pretrained": str(tiny_folder), "include_path": str(tiny_tasks), "device": device, "limit": 4}
    job = {**model, "methods": ("dense", "./mine.py:Mine"), "tasks": ("tiny_choice",)}
    whole = execute(job, Store(tmp_path / "whole"))
    with stopped_after(5):  # dense's four, and one
        execute(job, Store(tmp_path / "stopped"))
    resumed = execute(job, Store(tmp_path / "stopped")).record()
    record = whole.record()
    says = "no formula counts unknown_work_test.product, which ran"
    assert record.flops is None
    assert says in record.missing["flops"]
    assert says in record.missing["time.roofline"]
    assert {line["flops"] for line in whole.samples()} == {None}
    assert record.trace.executed
    assert record.method.savings == "none"
    assert record.memory.kv_peak
    assert (resumed.missing, resumed.warnings) == (record.missing, record.warnings)

    dense = next(folder for folder in Store(tmp_path / "whole").folders() if folder.path != whole.path)
    for command in (("compare", dense.path, whole.path), ("show", whole.path)):
        done = harness(*command)
        assert done.code == 0, done.err
        assert "no formula counts" in " ".join(done.out.split())
    assert "FLOPs" not in harness("validate", "whole").out
    assert harness("report", "--results", "whole", "-o", "report").code == 0
    assert any(says in path.read_text() for path in Path("report").rglob("*.md"))
