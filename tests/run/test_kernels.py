"""The kernel that ran is a part of a run's id, of its record and of its command; it may be asked for."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.paths import cache_folder
from harness.model.weights import choice, int8
from harness.model.weights.int8 import DENSE_PRODUCT
from harness.model.weights.linear import sites
from harness.reports.notes import notes
from harness.reports.numbers import TERMINAL
from harness.reports.rows import rows
from harness.run.launch import Order
from harness.run.loading import device_of, load, outline, source_of
from harness.run.spec import Job, ModelSettings
from harness.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer
from tests.conftest import Harness
from tests.kernels_here import EXACT, require_compiled, timed
from tests.silent import Silent

pytestmark = pytest.mark.cpu("the kernels of these tests multiply on a CPU")
SLOW = {EXACT.name: (3.0, 3.0)}


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every machine int8-dynamic has one kernel."""
    monkeypatch.setattr(int8, "PRODUCTS", (EXACT,))


@pytest.fixture
def run(harness: Harness, tiny: list[object]) -> Any:
    """Records of int8-dynamic, or the plan of it."""

    def run(*flags: object, method: str = "int8-dynamic") -> Any:
        done = harness("run", *tiny, "-m", method, "--no_baseline", "-t", "tiny_letters", "-L", 2, "--json", *flags)
        return done.json()[0]

    return run


def test_a_plan_says_what_will_run_and_is_probed_once(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with timed(tmp_path / "times"):
        planned = run("--dry_run")
        monkeypatch.setattr(choice, "probe", lambda *_: pytest.fail("probed again"))
        record = run()
    assert record["id"] == planned["id"]
    asked = run("--dry_run", "--kernel", EXACT.name)
    assert asked["id"] != record["id"]  # its record says what was asked for
    assert asked["identity"]["kernels"] == planned["identity"]["kernels"]
    (by_layer,) = planned["identity"]["kernels"]
    assert by_layer["48x32 float32"] == EXACT.name
    assert set(by_layer.values()) == {EXACT.name} == set(record["method"]["kernels"])
    assert record["method"]["savings"] == "real"
    assert [line for line in record["warnings"] if "bit-operations" not in line] == []
    assert "--kernel" not in record["command"]


def test_where_dense_is_faster_the_row_says_so(run: Any, harness: Harness, tmp_path: Path) -> None:
    with timed(tmp_path / "times", **SLOW):
        record = run()
        asked = run("--kernel", "dense")
        forced = run("--kernel", EXACT.name)
    assert record["method"]["kernels"] == {DENSE_PRODUCT: 28}
    assert record["method"]["savings"] == "simulated"
    assert any("28 of 28 linear layers densely, as no kernel is 10% faster" in line for line in record["warnings"])
    assert len({record["id"], asked["id"], forced["id"]}) == 3
    assert [each["method"]["kernel_asked"] for each in (record, asked, forced)] == [None, "dense", EXACT.name]
    assert asked["method"]["kernels"] == record["method"]["kernels"]
    assert forced["method"]["kernels"] == {EXACT.name: 28}
    assert forced["method"]["savings"] == "none"  # less work, in more time
    assert forced["method"]["kernel_slower"]
    says = [" | ".join(notes(row, TERMINAL)) for row in rows([record, asked, forced])]
    assert says[0].startswith("no faster kernel on this machine: dense products")
    assert says[1].startswith("dense products, asked for by --kernel dense")
    assert "faster kernel" not in says[1]
    assert says[2].startswith("none here: the kernel that was asked for is slower than dense on this machine")
    assert "simulated" not in says[2]
    assert any("was asked for and is not 10% faster than dense here" in line for line in forced["warnings"])
    words = shlex.split(forced["command"])
    assert words[words.index("--kernel") + 1] == EXACT.name
    for name in (DENSE_PRODUCT, EXACT.name):
        assert name in " ".join(harness("show", (record if name == DENSE_PRODUCT else forced)["id"]).out.split())


def test_scores_do_not_depend_on_what_is_faster(run: Any, tmp_path: Path) -> None:
    with timed(tmp_path / "times"):
        fast, dense = run("--kernel", EXACT.name), run("--kernel", "dense")
    scores = [[score["value"] for score in record["scores"]] for record in (fast, dense)]
    assert scores[0] == pytest.approx(scores[1])
    assert fast["flops"]["total"] == dense["flops"]["total"]


def test_a_state_is_prepared_once_for_all_kernels(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    require_compiled()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    method = "block-sparse:sparsity=0.5,samples=1,length=16"
    with timed(tmp_path / "times"):
        ids = {run("--kernel", name, method=method)["id"] for name in ("block-sparse int8 16x1, plain C", "dense")}
    assert len(ids) == 2
    assert len(list((cache_folder() / "prepared").glob("[!.]*"))) == 1


def test_the_command_of_dense_asks_for_no_kernel(harness: Harness, tiny: list[object], tmp_path: Path) -> None:
    with timed(tmp_path / "times"):
        flags = ["-m", "int8-dynamic", "--kernel", "dense", "-t", "tiny_letters", "-L", 1, "--json"]
        dense, method = harness("run", *tiny, *flags).json()
    assert "--kernel" not in dense["command"]
    assert "--kernel dense" in method["command"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["-m", "int8-dynamic", "--kernel", "exact int"], "unknown kernel 'exact int'. Did you mean 'exact int8'?"),
        (["-m", "int8-dynamic", "--kernel", "densse"], "Did you mean 'dense'?"),
        (["-m", "magnitude", "--kernel", "dense"], "--kernel dense: none of the methods has kernels to choose from"),
    ],
)
def test_a_wrong_kernel_is_a_sentence(flags: list[str], says: str, harness: Harness, tiny: list[object]) -> None:
    assert says in harness("run", *tiny, "-t", "tiny_letters", *flags).sentence


def test_a_process_of_its_own_is_told_the_kernel() -> None:
    job = Job(methods=("int8-dynamic",), tasks=({"task": "t"},), pretrained="m", kernel="dense")
    order = Order(job=job, results=Path("runs"), units=())
    assert Order.model_validate_json(order.model_dump_json()).job.kernel == "dense"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_has_the_models_linear_layers(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    settings = ModelSettings(pretrained=str(tmp_path), device="cpu", model_args={"dtype": "bfloat16"})
    source = source_of(settings)
    loaded = load(settings, source, device_of(settings), Silent()).decoder
    drawn = outline(settings, source)
    described = [
        [(site.place, tuple(site.weight.shape), site.weight.dtype) for site in sites(decoder, head=True)]
        for decoder in (loaded, drawn)
    ]
    assert described[0] == described[1]
    assert drawn.device.type == "meta"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stated", [True, False])
def test_an_outline_has_the_type_that_is_loaded(dtype: str, stated: bool, tmp_path: Path) -> None:
    tiny_model("llama").to(getattr(torch, dtype)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if not stated:
        config.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = ModelSettings(pretrained=str(tmp_path), device="cpu", model_args={"num_hidden_layers": 2})
    source = source_of(settings)
    drawn = outline(settings, source)
    assert {str(site.weight.dtype) for site in sites(drawn)} == {f"torch.{dtype}"}
    assert load(settings, source, "cpu", Silent()).decoder.module.dtype == drawn.module.dtype
    assert len(drawn.anatomy.blocks) == 2
