"""Paths evaluated per second: sharing and batching against one full forward for every path and question.

    python -m tests.benchmarks.path_search --layers 12 --width 128 --questions 128 --simulations 50

A random Llama and random questions of two kinds, a written answer and a choice of four, searched in groups of like
length as methods do it. Some of the searches run in slow ways too: "forward" scores each path and question by a forward
of its own through the layer-path engine, a row for each answer, as lm-eval does; "writing", for written answers, lets
the engine write the answer and compares. Rewards must be the same. Seconds are of this thread, so that other work on
the machine counts little.
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from harness.contract.decoder import Decoder
from harness.contract.study import Question
from harness.methods.routing.labels import Asked, groups, lockstep
from harness.methods.routing.mcts import SearchResult, Settings, search
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import Engine, routed
from harness.model.paths.path_evaluator import PathEvaluator, Scored
from harness.model.paths.texts import Texts
from harness.testing.tiny import tiny_decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 12, "width": 128, "prompt": 60, "answer": 24, "questions": 128, "slow": 8, "simulations": 50}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = {"hidden_size": args.width, "intermediate_size": 3 * args.width, "max_position_embeddings": 512}
    model = tiny_decoder("llama", layers=args.layers, **config)
    model.module.generation_config.eos_token_id = None
    settings = Settings(simulations=args.simulations, stop_early=False)
    print(
        f"{args.layers} layers of width {args.width}, {args.questions} questions, {args.simulations} simulations each; "
        f"{args.slow} in the slow ways"
    )
    for kind in ("answer", "choice"):
        asked = questions(model, kind, args)
        report(model, asked, settings, kind, args.slow)


def questions(model: Decoder, kind: str, args: argparse.Namespace) -> list[Asked]:
    """Random prompts; a written answer is what some path writes, so that some paths are right."""
    rng, made = random.Random(0), []
    for number in range(args.questions):
        prompt = tuple(rng.randrange(3, 259) for _ in range(rng.randint(args.prompt * 2 // 3, args.prompt)))
        if kind == "choice":
            answers = tuple(tuple(rng.randrange(3, 259) for _ in range(rng.randint(1, 3))) for _ in range(4))
            question = Question(f"{number}", ("a",) * 4, rng.randrange(4), "choice")
        else:
            path = tuple(rng.choice((0, 1, 1, 1, 1, 1)) for _ in range(args.layers))
            with routed(model, FixedPaths((path,))):
                answers = (written(model, prompt, args.answer),)
            question = Question(f"{number}", ("a",), 0, "answer")
        made.append(Asked(question, Texts(prompt, answers), frozenset()))
    return made


def report(model: Decoder, asked: list[Asked], settings: Settings, kind: str, slow: int) -> None:
    """The same searches in every way: seconds, and whether the paths that they find are the same."""
    layers = len(model.anatomy.blocks)
    ways: dict[str, list[Asked]] = {"shared": asked, "forward": asked[:slow]}
    if kind == "answer":
        ways["writing"] = asked[:slow]
    rates, found = {}, {}
    for name, some in ways.items():
        with routed(model, FixedPaths(((1,) * layers,))) if name != "shared" else torch.no_grad() as engine:
            started = time.thread_time()
            found[name] = run(model, engine, name, some, settings)
            seconds = time.thread_time() - started
        paths = sum(each.evaluations for each in found[name].values())
        rates[name] = paths / seconds
        print(f"{kind:>7} {name:>8}: {paths} paths, {seconds:7.2f} s, {rates[name]:7.1f} paths/s")
    for name in list(ways)[1:]:
        same = all(each.path == found["shared"][digest].path for digest, each in found[name].items())
        print(f"{kind:>7} shared is {rates['shared'] / rates[name]:5.1f} times {name}; same paths found: {same}")
    right = sum(each.path is not None for each in found["shared"].values())
    print(f"{kind:>7} {right} of {len(asked)} questions have a right path")


def run(model: Decoder, engine: Any, name: str, asked: list[Asked], settings: Settings) -> dict[str, SearchResult]:
    """What the searches find, by question, with paths evaluated in the named way."""
    slow = {"forward": forward, "writing": writing}
    found = {}
    for group in groups(asked):
        texts = [each.texts for each in group]
        evaluator: Any = PathEvaluator(model, texts) if name == "shared" else Slow(model, engine, texts, slow[name])
        searched = lockstep(
            group, evaluator, "answer", lambda each: search(len(model.anatomy.blocks), settings, each.question.digest)
        )
        found |= {each.question.digest: result for each, result in zip(group, searched, strict=True)}
    return found


@dataclass
class Slow:
    """One path and question at a time."""

    model: Decoder
    engine: Engine
    texts: list[Texts]
    score: Callable[[Engine, Decoder, Texts, tuple[int, ...]], list[Scored]]

    def evaluate(self, pairs: list[tuple[int, tuple[int, ...]]]) -> list[list[Scored]]:
        return [self.score(self.engine, self.model, self.texts[place], path) for place, path in pairs]


@torch.no_grad()
def forward(engine: Engine, model: Decoder, texts: Texts, path: tuple[int, ...]) -> list[Scored]:
    """One batched forward over all answers of one question along one path."""
    steer(engine, path)
    width = max(map(len, texts.answers)) + len(texts.prompt)
    rows = [(*texts.prompt, *answer) for answer in texts.answers]
    logits = model.module(torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]), use_cache=False).logits
    scores = []
    for row, answer in zip(logits, texts.answers, strict=True):
        places = row[len(texts.prompt) - 1 :][: len(answer)]
        target = torch.tensor(answer)
        logprob = float(places.log_softmax(-1).gather(-1, target[:, None]).sum())
        same = int((places.argmax(-1) == target).long().cumprod(0).sum())
        scores.append(Scored(logprob, len(answer), same, None))
    return scores


def writing(engine: Engine, model: Decoder, texts: Texts, path: tuple[int, ...]) -> list[Scored]:
    """The answer really written along the path; its probability is not needed."""
    steer(engine, path)
    [answer] = texts.answers
    told = written(model, texts.prompt, len(answer))
    same = next((i for i, token in enumerate(answer) if told[i] != token), len(answer))
    return [Scored(0.0, len(answer), same, None)]


def steer(engine: Engine, path: tuple[int, ...]) -> None:
    """Another fixed path in the attached engine, without the paths it remembers."""
    engine._controller = FixedPaths((path,))
    engine._remembered.clear()


@torch.no_grad()
def written(model: Decoder, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    made = model.module.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return tuple(made[0, len(prompt) :].tolist())


if __name__ == "__main__":
    main()
