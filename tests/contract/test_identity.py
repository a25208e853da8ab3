"""What moves a run's id: what can change an answer, and nothing else; from a wheel and a checkout alike."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contract import registry
from harness.contract.identity import model_identity, tokenizer_digest
from harness.contract.preparation import Preparation
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.source import of_modules
from harness.run.spec import OBSERVES
from harness.testing.tiny import tiny_decoder, tiny_tokenizer
from tests.conftest import ROOT
from tests.toys import Toy, write_method

TOLD = """
import json, sys
from harness.contract import registry
from harness.core.source import of_modules
from harness.run.spec import OBSERVES
methods = ("dense", "layer-drop", "magnitude", "wanda", "int8-dynamic", "block-sparse", "dr-llm", "random-skip", "calm")
print("ready", flush=True)
for line in sys.stdin:
    ids = {name: registry.get(name)().fingerprint for name in methods}
    print(json.dumps(ids | {"observation": of_modules(*OBSERVES).digest}), flush=True)
"""


class Copy:
    """The packages as an installed wheel lays them, and a process that tells their identities again and again."""

    def __init__(self, site: Path) -> None:
        self.package = site / "harness"
        skip = shutil.ignore_patterns("__pycache__", "model", "data")
        shutil.copytree(ROOT / "harness", self.package, ignore=shutil.ignore_patterns("__pycache__"))
        for folder in ("methods", "tasks", "reports", "leaderboard"):
            shutil.copytree(ROOT / folder, self.package / folder, ignore=skip)
        self._process = subprocess.Popen(
            [sys.executable, "-c", TOLD],
            cwd=site,
            env=os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"
        self.before = self.told()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def told(self) -> dict[str, str]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return dict(json.loads(self._line()))

    def moved_by(self, name: str) -> set[str]:
        """Whose identity moves when a comment is added to a file, or the file is made; it is put back."""
        path = self.package / name
        content = path.read_bytes() if path.exists() else None
        path.write_bytes((content or b"") + (b"\n/* touched */\n" if path.suffix in (".c", ".h") else b"\n# touched\n"))
        after = self.told()
        path.unlink() if content is None else path.write_bytes(content)
        return {name for name in after if self.before[name] != after[name]}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    copy = Copy(tmp_path_factory.mktemp("site"))
    yield copy
    copy.close()


def test_a_wheel_and_a_checkout_have_one_identity(copy: Copy) -> None:
    methods = copy.before.keys() - {"observation"}
    here = {name: registry.get(name)().fingerprint for name in methods}
    assert copy.before == here | {"observation": of_modules(*OBSERVES).digest}


@pytest.mark.parametrize(
    "name",
    [
        "__init__.py",
        "cli/summary.py",
        "cli/run.py",
        "core/errors.py",
        "core/source.py",
        "run/session.py",
        "run/quality.py",
        "results/compare.py",
        "results/record.py",
        "results/stats/paired.py",
        "testing/check.py",
        "reports/rows.py",
        "leaderboard/rules.py",
        "contract/registry.py",
        "contract/describe.py",
        "contract/facts.py",
        "contract/families.py",
        "methods/pruning/new_method.py",
        "methods/new_method.py",
        "model/new_engine.py",
        "model/weights/kernels/new.txt",
    ],
)
def test_what_cannot_change_an_answer_moves_nothing(name: str, copy: Copy) -> None:
    assert copy.moved_by(name) == set()


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("methods/pruning/wanda.py", {"wanda"}),
        ("methods/routing/random_skip.py", {"random-skip"}),
        ("methods/routing/router.py", {"dr-llm"}),
        ("model/weights/int8.py", {"int8-dynamic", "block-sparse"}),
        ("model/weights/choice.py", {"int8-dynamic", "block-sparse"}),
        ("model/weights/kernels/int8.c", {"int8-dynamic", "block-sparse"}),
        ("model/weights/kernels/product.h", {"int8-dynamic", "block-sparse"}),
        ("model/tokens/token_depth.py", {"calm"}),
        ("model/surgery.py", {"layer-drop"}),
        ("evaluate/lm.py", {"observation"}),
        ("evaluate/evaluation.py", {"observation"}),
        ("measure/trace.py", {"observation"}),
    ],
)
def test_what_can_moves_the_methods_that_it_acts_for_and_no_others(name: str, moved: set[str], copy: Copy) -> None:
    assert copy.moved_by(name) == moved


def test_the_contract_moves_every_method(copy: Copy) -> None:
    assert copy.moved_by("contract/method.py") >= set(copy.before) - {"observation"}


def test_a_loose_method_is_known_by_its_file_and_its_helper_wherever_they_lie(tmp_path: Path) -> None:
    def loose(folder: str, factor: float) -> str:
        path = write_method(tmp_path / folder / "mine.py", before="from identity_helper import FACTOR\n")
        (path.parent / "identity_helper.py").write_text(f"FACTOR = {factor}\n")
        sys.path.insert(0, str(path.parent))
        try:
            return registry.from_file(path, "Loose")().fingerprint
        finally:
            sys.path.remove(str(path.parent))
            sys.modules.pop("identity_helper", None)

    first = loose("here", 1.0)
    assert loose("there", 1.0) == first
    assert loose("here", 0.1) != first


def test_a_path_parameter_counts_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.json").write_text("1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = Toy(folder=tmp_path / "a").fingerprint
    assert Toy(folder=tmp_path / "b").fingerprint == first
    (tmp_path / "a" / "x.json").write_text("2")
    assert Toy(folder=tmp_path / "a").fingerprint != first


def test_a_tokenizer_is_known_by_all_that_it_makes_of_text() -> None:
    from tokenizers.normalizers import Lowercase

    plain, other = tiny_tokenizer(), tiny_tokenizer()
    other.backend_tokenizer.normalizer = Lowercase()
    assert plain.get_vocab() == other.get_vocab()
    assert tokenizer_digest(plain) == tokenizer_digest(tiny_tokenizer()) != tokenizer_digest(other)
    plain(["a", "longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(plain) == tokenizer_digest(tiny_tokenizer())


def changed(**changes: Any) -> Any:
    """A tiny decoder, and what is set on it."""
    decoder = tiny_decoder("llama", attention=changes.get("attention", "sdpa"))
    decoder.module.to(changes.get("dtype", torch.float32))
    decoder.module.config.rope_theta = changes.get("rope_theta", 10_000.0)
    return decoder


@pytest.mark.parametrize("change", [{"dtype": torch.bfloat16}, {"attention": "eager"}, {"rope_theta": 5.0}])
def test_a_state_belongs_to_the_model_as_it_is_loaded(change: dict[str, Any], tmp_path: Path) -> None:
    preparation = Preparation(States(tmp_path), Study(("text",), "a text"))
    assert preparation.key(Toy(), changed()) == preparation.key(Toy(), changed())
    assert preparation.key(Toy(), changed(**change)) != preparation.key(Toy(), changed())
    assert model_identity(changed(**change)) != model_identity(changed())
