"""How often the host waits for the device in one forward of a method that decides what runs."""

from collections import Counter

import pytest
import torch

from harness.contract.decoder import Row
from harness.contract.prepared import Prepared
from harness.methods.dense import Dense
from harness.methods.early_exit.calm import Calm
from harness.methods.early_exit.mue import MuE
from harness.methods.early_exit.skip_decode import SkipDecode
from harness.methods.routing.dr_llm import DrLLM
from harness.methods.routing.polar import Polar
from harness.methods.routing.programs import Predictor
from harness.methods.routing.random_skip import RandomSkip
from harness.methods.routing.router import new_router
from harness.methods.routing.static_path import StaticPath
from harness.testing.tiny import tiny_decoder
from tests.on_device import Remote, Waits, remote

LAYERS, WIDTH, PROMPT, TOKENS = 4, 32, 12, 18
CHECKS = list(range(LAYERS - 1))


def routers():
    draw = torch.Generator().manual_seed(3)
    return {
        f"router.{layer}.{name}": tensor * 4
        for layer in range(LAYERS)
        for name, tensor in new_router(WIDTH, 8, draw).state_dict().items()
    }


def predictor():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return dict(Predictor(WIDTH, 8, LAYERS).state_dict())


def classifiers():
    return {"weights": torch.randn(len(CHECKS), WIDTH, generator=torch.Generator().manual_seed(3))} | {
        "biases": torch.zeros(len(CHECKS))
    }


def checked(threshold):
    return {"layers": CHECKS, "threshold": threshold}


# method, prepared state, waits of reading a prompt or a text at the most, waits of a decode step at the most
METHODS = {
    # each router sees what the layer before it gave; and once the prompts' tokens, by which equal prompts are told
    "dr-llm": (DrLLM(), Prepared(routers()), LAYERS + 1, 0),
    "polar": (Polar(width=8), Prepared(predictor()), 2, 0),
    "random-skip": (RandomSkip(executed=0.5, first=0, last=0), Prepared(), 1, 0),
    "static-path": (StaticPath(skip=1), Prepared(facts={"path": [1, 0, 1, 1]}), 0, 0),
    "calm softmax": (Calm(), Prepared(facts=checked(0.3)), len(CHECKS), len(CHECKS)),
    "calm saturation": (Calm(confidence="saturation"), Prepared(facts=checked(0.5)), len(CHECKS), len(CHECKS)),
    "calm classifier": (
        Calm(confidence="classifier"),
        Prepared(classifiers(), checked(0.6)),
        len(CHECKS),
        len(CHECKS),
    ),
    "mue": (MuE(threshold=0.4), Prepared(facts={"thresholds": [[c, 0.4] for c in CHECKS]}), len(CHECKS), len(CHECKS)),
    # which tokens skip follows from their places, which the host knows
    "skip-decode": (SkipDecode(least=0.25, length=20), Prepared(), 0, 0),
}


def rows_of(count, length, prompt):
    return [Row("t", row, (0,), prompt - row, length) for row in range(count)]


@torch.no_grad()
def waits(model, rows):
    """Of scoring, of a prefill, and of each decode step."""
    ids = remote(torch.randint(3, 259, (rows, TOKENS), generator=torch.Generator().manual_seed(11)))
    with model.serving(rows_of(rows, TOKENS, PROMPT), "score"), Waits() as score:
        model.module(input_ids=ids, use_cache=False)
    steps = []
    with model.serving([Row("t", row, (0,), PROMPT, PROMPT) for row in range(rows)], "generate"):
        with Waits() as prefill:
            cache = model.module(input_ids=ids[:, :PROMPT], use_cache=True).past_key_values
        for place in range(PROMPT, TOKENS):
            with Waits() as step:
                model.module(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            steps.append(step.calls)
    return score.calls, prefill.calls, steps


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_a_decision_is_waited_for_once(name, rows):
    method, prepared, reading, writing = METHODS[name]
    model = tiny_decoder("llama")
    with Dense().attach(model, Prepared()):
        dense, *_ = waits(model, rows)
    with method.attach(model, prepared):
        score, prefill, steps = waits(model, rows)
    assert (score - dense).total() <= reading, score
    assert prefill.total() <= reading, prefill
    assert max(step.total() for step in steps) <= writing, steps


def test_what_a_host_waits_in_is_seen():
    values = remote(torch.tensor([1, 0, 2]))
    with Waits() as seen:
        (values + 1).tolist()
        values.sum().item()
        assert bool((values > 5).any()) is False
        values[values > 0], values[[0, 1]]
        values.nonzero()
        torch.tensor([1], device=values.device)
        torch.ones(1).to(values.device)
        assert type(values.cpu()) is torch.Tensor
        assert type(torch.zeros(2, device=values.device) + 1) is Remote
    assert seen.calls == Counter(
        {"tolist": 1, "item": 1, "__bool__": 1, "__getitem__": 2, "nonzero": 1, "torch.tensor": 1, "to": 1, "cpu": 1}
    )
    with Waits() as unseen:
        torch.tensor([1, 2]).tolist()
        values[torch.tensor([0, 1])], values.cpu
    assert not unseen.calls
