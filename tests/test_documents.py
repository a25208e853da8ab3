"""What the documents tell a reader to do works."""

import re
from pathlib import Path

from harness.contract import registry
from harness.contract.prepared import Prepared
from harness.testing.tiny import tiny_decoder
from tests.conftest import ROOT


def code_blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_example_method_runs_and_restores(tmp_path: Path) -> None:
    (example,) = code_blocks("CONTRIBUTING.md", "python")
    path = tmp_path / "every_other.py"
    path.write_text(example)
    method = registry.from_file(path, "EveryOther").from_args({"start": "0.5"})
    model = tiny_decoder("llama", layers=4)
    before = [block.mlp.modules[0] for block in model.anatomy.blocks]
    with method.attach(model, Prepared()):
        inside = [layer.mlp for layer in model.module.model.layers]
        assert [mlp is module for mlp, module in zip(inside, before, strict=True)] == [True, True, False, True]
    assert [layer.mlp for layer in model.module.model.layers] == before


def test_no_machine_is_named() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert documents
    for path in documents:
        assert not re.search(r"(?<![\w.])/(home|root|work|tmp)/", path.read_text()), path
