"""The controls: random paths of the share that was asked for, and the static path that misses least."""

import random
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import nn

from harness.contract.decoder import Row
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.study import Question, Study, Workbench
from harness.core.errors import MethodError
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.methods.pruning.layer_drop import LayerDrop
from harness.methods.routing import labels
from harness.methods.routing.dr_llm import DrLLM
from harness.methods.routing.polar import Polar
from harness.methods.routing.random_skip import RandomSkip
from harness.methods.routing.static_path import StaticPath
from harness.methods.routing.trials import Trials
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.model.paths.path_evaluator import PathEvaluator
from harness.testing.tiny import tiny_decoder

IDS = torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(2))


def asked(count=10):
    rng = random.Random(0)
    words = "a keeper of the light saw a ship".split()  # noqa: SIM905
    return Study(
        ("text",),
        "a test",
        tuple(
            Question(f"{rng.choice(words)} {i}", tuple(f" {word}" for word in rng.sample(words, 3)), i % 3, "choice")
            for i in range(count)
        ),
    )


def test_random_paths_have_the_share_on_average_and_whole_ends():
    method = RandomSkip(executed=0.7, first=2, last=1)
    paths = [method.path(12, bytes([i, j])) for i in range(20) for j in range(20)]
    assert sum(map(sum, paths)) / (400 * 12) == pytest.approx(0.7, abs=0.01)
    assert {sum(path) for path in paths} == {8, 9}
    assert all(path[0] and path[1] and path[11] for path in paths)
    assert all(0 < sum(path[layer] for path in paths) < 400 for layer in range(2, 11))
    assert len(set(paths)) > 100


def test_random_paths_are_of_the_seed_and_the_prompt():
    one, other = RandomSkip(seed=1), RandomSkip(seed=2)
    assert one.path(12, b"a") == one.path(12, b"a")
    assert one.path(12, b"a") != other.path(12, b"a") or one.path(12, b"b") != other.path(12, b"b")


def test_fewer_than_the_protected_layers_cannot_run():
    with (
        pytest.raises(MethodError, match=r"2 \+ 1 of 4 layers are protected, so from 0.75 to 1 can run"),
        RandomSkip(executed=0.5, first=2, last=1).attach(tiny_decoder("llama"), Prepared()),
    ):
        pass


@pytest.mark.parametrize("goal", ["answer", "likelihood"])
def test_the_layer_that_is_missed_least_goes_first(goal):
    decoder, calibration = tiny_decoder("llama"), asked()
    found = StaticPath(skip=1, questions=10, goal=goal).prepare(decoder, calibration).facts
    group = labels.questions(decoder, calibration, 10)
    evaluator = PathEvaluator(decoder, [each.texts for each in group])

    def worth(out):
        path = tuple(int(layer not in out) for layer in range(4))
        scores = evaluator.evaluate([(place, path) for place in range(10)])
        rewards = [each.reward(scored, goal, None) for each, scored in zip(group, scores, strict=True)]
        return sum(reward.right for reward in rewards), sum(reward.margin for reward in rewards)

    best = max(combinations(range(4), 1), key=worth)
    assert found["path"] == [int(layer not in best) for layer in range(4)]
    assert found["steps"][0]["right"] == worth(best)[0] / 10


def test_a_killed_choice_of_layers_goes_on_and_says_how_long_it_takes(tmp_path, monkeypatch):
    decoder, method, said = tiny_decoder("llama"), StaticPath(skip=2, questions=10), []
    whole = method.prepare(decoder, asked())
    study = replace(asked(), workbench=Workbench(tmp_path, said.append))
    real, tried = Trials._worth, []

    def killed(*args):
        tried.append(args[-1])
        if len(tried) == 11:  # in the second step; 2 groups, 4 and 3 paths
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(Trials, "_worth", killed)
    with pytest.raises(KeyboardInterrupt):
        method.prepare(decoder, study)
    assert method.prepare(decoder, study).facts == whole.facts
    assert len(tried) == 11 + 6
    assert [line.split(", about")[0] for line in said] == [
        "searching static-path:skip=2,questions=10: 7 paths on 10 questions"
    ]


@pytest.mark.parametrize(
    ("share", "layers", "controls"),
    [
        (0.9, 30, ("static-path:skip=3,questions=64,goal=answer", "random-skip:executed=0.9")),
        (0.99, 30, ("random-skip:executed=0.99",)),
        (0.5, 4, ("static-path:skip=2,questions=64,goal=answer", "random-skip:executed=0.5,first=0,last=0")),
        (0.05, 30, ("static-path:skip=28,questions=64,goal=answer", "random-skip:executed=0.05,first=0,last=0")),
        (1.0, 30, ()),
        (1.4, 30, ()),
    ],
)
@pytest.mark.parametrize("method", [DrLLM, Polar])
def test_what_a_router_must_beat_runs_the_same_share(method, share, layers, controls):
    assert method(questions=64).controls(share, layers) == controls
    for control in controls:
        (part,) = parse(control).parts
        assert not isinstance(part, RandomSkip) or len(part.path(layers, b"a")) == layers


def test_the_static_path_is_layer_drop_of_the_same_layers():
    decoder, method = tiny_decoder("qwen3"), StaticPath(skip=2, questions=6)
    prepared = method.prepare(decoder, asked())
    dropped = [["block", layer] for layer, count in enumerate(prepared.facts["path"]) if not count]
    with torch.no_grad():
        with method.attach(decoder, prepared):
            found = decoder.module(IDS).logits
        with LayerDrop(count=2).attach(decoder, Prepared(facts={"dropped": dropped})):
            expected = decoder.module(IDS).logits
    torch.testing.assert_close(found, expected)
    with pytest.raises(MethodError, match="skip=5 is out of range for this model; from 0 to 4"):
        StaticPath(skip=5).prepare(decoder, asked())


def test_flops_of_a_routed_forward_are_those_of_the_linears_that_ran():
    decoder, macs = tiny_decoder("llama"), []

    def count(module, args, output):
        macs.append(args[0].numel() // module.in_features * module.weight.numel())

    for module in decoder.module.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    rows = tuple(Row("t", i, (0,), 12, 12) for i in range(2))
    paths = FixedPaths(((1, 0, 2, 1), (0, 0, 1, 1)))
    with routed(decoder, paths), Tracer(decoder) as tracer, decoder.serving(rows, "score"), torch.no_grad():
        decoder.module(IDS)
        flops = executed_flops(ModelShape.of(decoder), [segment for row in tracer.collect() for segment in row])
    assert flops.total - flops.attention_scores == 2 * sum(macs)
