"""The trainer: the same again, from where it was stopped, by the right numbers, and the model stays as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from harness.contract.decoder import Decoder
from harness.contract.study import Study, Workbench
from harness.core.errors import MethodError
from harness.model import training
from harness.model.surgery import without_blocks
from harness.model.training import Tuned, dense_loss, text_loss, tune
from harness.testing.snapshot import changes as differences
from harness.testing.snapshot import global_snapshot, kept_random_state, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.toys import Toy

STUDY = Study(("The keeper of the light wrote down every ship that passed, and its flag. " * 6,), "a sentence")
WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def decoder() -> Decoder:
    return tiny_decoder("llama", layers=2)


def fit(decoder: Decoder, *, steps: int = 4, workbench: Workbench | None = None, **changes: Any) -> Tuned:
    options: dict[str, Any] = {
        "parameters": {WEIGHT: decoder.module.get_parameter(WEIGHT)},
        "batches": STUDY.batches(decoder, rows=2, length=16, steps=steps, seed=0),
        "loss": text_loss,
        "method": Toy(),
        "rate": 0.01,
        "seed": 0,
        "workbench": workbench or Workbench(),
        **changes,
    }
    return tune(decoder, **options)


def same(first: Tuned, second: Tuned) -> bool:
    pairs = zip(first.tensors.values(), second.tensors.values(), strict=True)
    return first.losses == second.losses and all(torch.equal(*pair) for pair in pairs)


def test_it_is_adam_on_the_loss_at_a_rate_that_falls(decoder: Decoder) -> None:
    tuned = fit(decoder)
    reference = tiny_decoder("llama", layers=2)
    weight = reference.module.requires_grad_(False).get_parameter(WEIGHT).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for step, ids in enumerate(STUDY.batches(reference, rows=2, length=16, steps=4, seed=0)):
        loss = cross_entropy(reference.module(ids).logits[:, :-1].reshape(-1, 259), ids[:, 1:].reshape(-1))
        assert tuned.losses[step] == pytest.approx(loss.item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert torch.allclose(tuned.tensors[WEIGHT], weight, atol=1e-4)


def test_it_gives_the_same_again_and_changes_nothing_else(decoder: Decoder) -> None:
    noisy = {"loss": lambda logits, ids: text_loss(logits, ids) * (1 + torch.rand(()))}
    decoder.module.requires_grad_(True)
    before = model_snapshot(decoder)
    runs = []
    for seed in (3, 4):
        with kept_random_state(seed):
            state = global_snapshot()
            runs.append(fit(decoder, **noisy))
            assert not differences(state, global_snapshot())
    assert same(*runs)
    assert not differences(before, model_snapshot(decoder))
    assert not same(runs[0], fit(decoder, seed=1, **noisy))


class Killed(BaseException):
    """Ends a training from outside."""


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_killed_training_goes_on_to_the_same_end(
    steps: int, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "EVERY", 2)
    calls = []

    def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        calls.append(ids)
        if len(calls) == steps + 1 and killing:
            raise Killed
        return text_loss(logits, ids) * (1 + torch.rand(()))

    killing = False
    whole = fit(decoder, steps=6, loss=loss)
    calls.clear()
    killing = True
    with pytest.raises(Killed):
        fit(decoder, steps=6, loss=loss, workbench=Workbench(tmp_path))
    calls.clear()
    killing = False
    assert same(fit(decoder, steps=6, loss=loss, workbench=Workbench(tmp_path)), whole)
    assert len(calls) == 6 - steps // 2 * 2
    calls.clear()
    assert same(fit(decoder, steps=6, loss=loss, workbench=Workbench(tmp_path)), whole)
    assert not calls  # what is finished is not done again
    (file,) = tmp_path.iterdir()
    assert load_file(file).keys() == {f"{WEIGHT}/value"}


def test_a_state_that_cannot_be_read_is_made_again(decoder: Decoder, tmp_path: Path) -> None:
    first = fit(decoder, steps=2, workbench=Workbench(tmp_path))
    (file,) = tmp_path.iterdir()
    for content in (b"", b"nonsense", file.read_bytes()[:-9]):
        file.write_bytes(content)
        assert same(fit(decoder, steps=2, workbench=Workbench(tmp_path)), first)


def test_another_training_has_another_state(decoder: Decoder, tmp_path: Path) -> None:
    there = Workbench(tmp_path)
    parameters = {WEIGHT: decoder.module.get_parameter(WEIGHT) + 1}
    batches = STUDY.batches(decoder, rows=2, length=16, steps=4, seed=1)
    fit(decoder, workbench=there)
    for changes in ({"rate": 0.02}, {"seed": 1}, {"method": Toy(count=3)}, {"parameters": parameters}, {"steps": 3}):
        fit(decoder, workbench=there, **changes)
    fit(decoder, workbench=there, batches=batches)
    assert len(list(tmp_path.iterdir())) == 7


def test_trainings_of_one_preparation_that_no_state_tells_apart_have_names(decoder: Decoder, tmp_path: Path) -> None:
    away = {"loss": lambda logits, ids: -text_loss(logits, ids)}
    expected = fit(decoder), fit(decoder, **away)
    for _ in range(2):  # the second preparation finds the states of the first
        there = Workbench(tmp_path)
        assert same(fit(decoder, workbench=there), expected[0])
        with pytest.raises(MethodError, match=r"^toy: a second training .* tell them apart by tune\(..., name=...\)"):
            fit(decoder, workbench=there, **away)
        assert same(fit(decoder, workbench=there, name="away", **away), expected[1])
        assert replace(there).trained == set()


def test_new_parameters_act_as_they_are_said_to(decoder: Decoder) -> None:
    start = decoder.module.get_parameter(WEIGHT).detach().clone()
    scale = {"scale": torch.ones(())}
    batches = STUDY.batches(decoder, rows=2, length=16, steps=1, seed=0) * 4
    tuned = fit(decoder, parameters=scale, batches=batches, acting=lambda trained: {WEIGHT: start * trained["scale"]})
    assert tuned.tensors["scale"] != 1
    assert tuned.losses[-1] < tuned.losses[0]
    assert torch.equal(decoder.module.get_parameter(WEIGHT), start)


def test_a_layer_is_named_as_in_the_dense_model_when_others_are_gone() -> None:
    decoder = tiny_decoder("llama", layers=3)
    name = "model.layers.2.mlp.down_proj.weight"
    study = STUDY.beside(decoder)
    with without_blocks(decoder, [0]):
        before = model_snapshot(decoder)
        tuned = fit(decoder, parameters={name: decoder.anatomy.blocks[2].module.mlp.down_proj.weight}, steps=6)
        assert not torch.equal(tuned.tensors[name], decoder.anatomy.blocks[2].module.mlp.down_proj.weight)
        assert not differences(before, model_snapshot(decoder))
        with pytest.raises(MethodError, match=r"model.layers.0.* cannot be trained: the model has no such parameter"):
            fit(decoder, parameters={"model.layers.0.mlp.down_proj.weight": tuned.tensors[name]})
        assert not torch.equal(decoder.module(torch.arange(3, 9)[None]).logits, study.teacher(torch.arange(3, 9)[None]))


def test_the_loss_to_dense_is_a_divergence() -> None:
    decoder = tiny_decoder("llama", layers=2)
    study, ids = STUDY.beside(decoder), torch.arange(3, 11).view(2, 4)
    logits = study.teacher(ids)
    assert dense_loss(study)(logits, ids) == pytest.approx(0, abs=1e-6)
    other = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 2.0):
        dense, model = (each.double().div(temperature).softmax(-1) for each in (logits, other))
        expected = temperature**2 * (dense * (dense / model).log()).sum(-1).mean()
        assert dense_loss(study, temperature)(other, ids) == pytest.approx(expected.item(), rel=1e-4)


NAN = torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": lambda logits, _: logits.sum() * NAN}, "^toy: at step 1 of 4 of its training, the loss is nan: try"),
        ({"loss": lambda _, ids: ids.sum().float()}, "^toy: at step 1 .* the loss depends on nothing that is trained"),
        ({"loss": lambda logits, _: logits}, "^toy: at step 1 of 4 .* the loss is no single number"),
        ({"loss": lambda logits, _: (logits.sum() - logits.sum().detach()).abs().sqrt()}, "^toy: step 1 .* not finite"),
        ({"parameters": {"nowhere": torch.ones(2)}}, "^toy: nowhere cannot be trained"),
        (
            {"loss": lambda *_: torch.ones((), requires_grad=True)},
            "^toy: at step 1 .* depends on nothing",
        ),
        (
            {"loss": lambda logits, _: logits.sum().to(torch.complex64)},
            "^toy: at step 1 .* the loss is no single number",
        ),
        ({"loss": lambda logits, _: logits.sum().to("meta")}, "^toy: at step 1 .* a dense tensor of one real number"),
        ({"loss": lambda *_: 1.0}, "^toy: at step 1 .* the loss is no single number.* but a float"),
        ({"rate": float("nan")}, "^toy: its rate of training is a number above 0, at most 1000, not nan"),
        ({"rate": -0.1}, "not -0.1"),
        ({"rate": 0}, "not 0"),
        ({"rate": 1e38}, "not 1e\\+38"),
        ({"rate": "0.1"}, "not '0.1'"),
        ({"parameters": {}}, "^toy: a training has tensors to train, by name, and was given none"),
        ({"parameters": None}, "was given none"),
        (
            {"parameters": {WEIGHT: 3.0}},
            "^toy: .*down_proj.weight cannot be trained: its start is a float",
        ),
        ({"parameters": {WEIGHT: torch.ones(32, 48, dtype=torch.long)}}, "its start is of torch.int64"),
        ({"parameters": {WEIGHT: torch.ones(32, 48, device="meta")}}, "its start is a tensor without values"),
        ({"parameters": {WEIGHT: torch.ones(32)}}, r"^toy: .*weight has the shape \[32, 48\], and .* place \[32\]"),
        ({"acting": lambda trained: None}, "^toy: acting gives the model's parameters by name, not a NoneType"),
        ({"acting": lambda trained: {WEIGHT: 3.0}}, "^toy: acting gives a dense tensor in place of .*, not 3.0"),
        ({"batches": [[1, 2]]}, "^toy: batch 1 of its training is a list; a batch is token ids"),
        ({"batches": 3}, "^toy: the batches of a training are a list of tensors, not a int"),
        (
            {"batches": [torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8)]},
            "batch 2 .* a tensor of torch.float32",
        ),
        ({"batches": [torch.ones(8, dtype=torch.long)]}, r"of the shape \[8\]"),
        ({"batches": [torch.full((2, 8), 10**6)]}, "is of ids from 1000000 to 1000000, beyond 0 to 258"),
        ({"batches": [torch.full((2, 8), -1)]}, "is of ids from -1 to -1"),
    ],
)
def test_what_cannot_be_trained_is_said_with_the_methods_name(changes: Any, says: str, decoder: Decoder) -> None:
    before = model_snapshot(decoder)
    with pytest.raises(MethodError, match=says):
        fit(decoder, **changes)
    assert not differences(before, model_snapshot(decoder))


def test_progress_is_shown(decoder: Decoder) -> None:
    shown: list[Any] = []

    @dataclass
    class Bar:
        def expect(self, total: int) -> None:
            shown.append(total)

        def advance(self, steps: int) -> None:
            shown.append(steps)

    @contextmanager
    def bar(title: str) -> Iterator[Bar]:
        shown.append(title)
        yield Bar()

    fit(decoder, steps=2, workbench=replace(Workbench(), bar=bar))
    assert shown == ["training toy", 2, 0, 1, 1]
