"""Training: it learns, stops and starts again without a trace, and exports what it trained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.tasks.pocket import mixture, probe, tokenizer
from harness.tasks.pocket.export import export
from harness.tasks.pocket.network import Network, Shape
from harness.tasks.pocket.splits import Draw
from harness.tasks.pocket.train import CHECKPOINT, Log, Plan, Trainer, run

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
FAST = {"warmup": 5, "skip_ramp": 2, "matrix_rate": 0.02, "other_rate": 0.02}


@pytest.fixture(scope="module")
def codec():
    return tokenizer.train()


@pytest.fixture(scope="module")
def tiny(codec):
    return Shape(vocab_size=codec.get_vocab_size(), num_key_value_heads=1, **TINY)


@pytest.fixture(scope="module")
def batches(codec):
    end = codec.token_to_id(tokenizer.END)
    return lambda step: mixture.batches(
        step, seed=0, encode=lambda content: codec.encode(content, add_special_tokens=False).ids, end=end
    )


def perturbed(shape: Shape) -> Network:
    """A network whose every weight matters; a new one writes nothing to the residual stream."""
    network, generator = Network(shape), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            parameter.copy_(parameter.bfloat16())
    return network


def test_batches_depend_on_the_step_and_on_nothing_else(batches):
    (one, _), (again, _), (other, _) = batches(3), batches(3), batches(4)
    assert torch.equal(one.inputs, again.inputs)
    assert not torch.equal(one.inputs, other.inputs)


def test_packed_rows_hold_whole_documents_and_little_padding(batches, codec, monkeypatch):
    monkeypatch.setattr(mixture, "ECHOES", 10**6)
    packed, recall = batches(0)
    end = codec.token_to_id(tokenizer.END)
    assert packed.inputs.shape == packed.labels.shape == packed.weights.shape
    assert (packed.owner >= 0).float().mean() > 0.8
    assert (packed.inputs[:, 0] == end).all()
    written = [
        codec.decode(row[row_weights > 0].tolist())
        for row, row_weights in zip(recall.labels, recall.weights, strict=True)
    ]
    assert all(set(answers) <= set("0123456789 ") and any(map(str.isdigit, answers)) for answers in written)


def test_an_echo_says_the_same_twice_and_weighs_the_second_time(codec):
    end = codec.token_to_id(tokenizer.END)
    encode = lambda content: codec.encode(content, add_special_tokens=False).ids  # noqa: E731
    ids, weights = mixture.echo(Draw("echo"), 12, encode, end)
    half = (len(ids) - 2) // 2
    assert ids[1 : 1 + half] == ids[1 + half : -1]
    assert weights == [0.0] * (1 + half) + [1.0] * (half + 1)


def test_attention_stays_inside_a_packed_document(tiny):
    network = perturbed(tiny)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(0, tiny.vocab_size, (1, 20), generator=generator) for _ in range(2))
    owner = torch.tensor([[0] * 20 + [1] * 20])
    with torch.no_grad():
        together, _ = network(torch.cat([left, right], 1), owner=owner)
        alone, _ = network(right)
    assert torch.allclose(together[:, 20:], alone, atol=1e-4)


def test_both_ways_of_computing_attention_agree(tiny, monkeypatch):
    network = perturbed(tiny)
    tokens = torch.randint(0, tiny.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        written_out, _ = network(tokens)
        monkeypatch.setattr("harness.tasks.pocket.network.WRITTEN_OUT", 0)
        fused, _ = network(tokens)
    assert torch.allclose(written_out, fused, atol=1e-4)


def test_an_exit_is_the_network_without_the_layers_after_it(tiny):
    network = perturbed(tiny)
    tokens = torch.randint(0, tiny.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        final, early = network(tokens, exit_at=1)
        shortened, _ = network(tokens, skip=[2])
    assert torch.equal(early, shortened)
    assert not torch.allclose(final, early)


def test_deeper_layers_are_left_out_more_often():
    plan = Plan(skip=0.5, skip_ramp=1)
    counts = [0] * 12
    for index in range(2000):
        for layer in plan.skipped(Draw(index), 10, 12):
            counts[layer] += 1
    assert counts[0] == 0
    assert counts[3] < counts[7] < counts[11]
    assert 420 < counts[11] < 580


def test_the_rate_rises_stays_and_falls_to_zero():
    plan = Plan(steps=1000, warmup=100, decay=300)
    assert plan.rate(0) == pytest.approx(0.01)
    assert plan.rate(100) == plan.rate(699) == 1.0
    assert plan.rate(850) == pytest.approx(0.5)
    assert plan.rate(999) < 0.01


def test_the_exported_model_is_the_trained_network(tiny, codec, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = perturbed(tiny)
    export(network, codec, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == torch.float32
    tokens = AutoTokenizer.from_pretrained(tmp_path)("Mia has 12 shells.", return_tensors="pt").input_ids
    assert tokens[0, 0] == codec.token_to_id(tokenizer.END)
    with torch.no_grad():
        expected = network.lm_head(network(tokens)[0])
        got = model(tokens).logits
    assert torch.allclose(got, expected, atol=1e-4)


@pytest.fixture
def _brief(codec, monkeypatch):
    """A tokenizer that is there already, and probes of few documents."""
    monkeypatch.setattr(tokenizer, "train", lambda: codec)
    monkeypatch.setattr(probe, "KINDS", {name: (kind, 1) for name, (kind, _) in probe.KINDS.items()})


@pytest.mark.slow
@pytest.mark.usefixtures("_brief")
def test_a_few_steps_learn_and_a_resumed_run_ends_with_the_same_weights(tiny, tmp_path):
    plan = Plan(steps=12, decay=4, workers=1, compile=False, **FAST)
    rows, whole = trained(plan, tmp_path / "whole", tiny)
    losses = [row["packed"] for row in rows]
    assert len(losses) == plan.steps
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])

    trained(replace(plan, steps=plan.steps - plan.decay, decay=0), tmp_path / "parts", tiny)
    again, parts = trained(plan, tmp_path / "parts", tiny)
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, parts[name]), name
    for row, row_again in zip(rows, again, strict=True):
        assert row | {"seconds": 0} == row_again | {"seconds": 0}


@pytest.mark.slow
def test_two_workers_go_on_with_the_mean_of_their_gradients(tiny, codec, tmp_path, monkeypatch):
    """Two processes that continue from a checkpoint end as one does that reads what both read."""
    plan = Plan(steps=2, decay=1, workers=2, compile=False, **FAST)
    first, second = (Trainer(plan, tiny, codec, rank) for rank in range(2))
    advance_together(first, second, monkeypatch)
    first.save(tmp_path)
    second.load(tmp_path)
    run(plan, tmp_path, shape=tiny)
    weights = torch.load(tmp_path / CHECKPOINT, weights_only=True)["network"]
    advance_together(first, second, monkeypatch)
    for name, weight in first.network.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-3, msg=name)


def advance_together(first: Trainer, second: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the first, with the mean of the gradients of both."""

    def keep(flat: torch.Tensor) -> None:
        gradients.append(flat)
        raise InterruptedError

    gradients: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", keep)
    with pytest.raises(InterruptedError):
        second.advance()
    second.network.zero_grad(set_to_none=True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(gradients[0]))
    first.advance()


def trained(plan: Plan, folder: Path, shape: Shape) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The log without probes, and the exported weights."""
    run(plan, folder, shape=shape, save_every=20, probe_every=1000)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "packed" in row], load_file(folder / "model" / "model.safetensors")


def test_lines_of_the_log_after_the_checkpoint_are_dropped(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)
    for step in range(1, 6):
        log.write({"step": step})
    Log(tmp_path / "log.jsonl", 3).write({"step": 4, "again": True})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_the_curve_shows_every_loss_of_the_log(tmp_path):
    from xml.etree import ElementTree

    from harness.tasks.pocket import curve

    rows = [{"step": i, "tokens": 100.0, **dict.fromkeys(curve.LINES, 5.0 / i)} for i in range(1, 50)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"step": 49, "probe": {}}]))
    lines = ElementTree.fromstring(curve.draw(log)).findall("{*}polyline")
    points = [line.get("points").split() for line in lines[1:]]
    assert [len(line) for line in points] == [len(rows)] * len(curve.LINES)
    heights = [float(point.split(",")[1]) for point in points[0]]
    assert heights == sorted(heights)
    assert curve.smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
