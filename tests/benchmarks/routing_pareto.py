"""Routing against its controls on the bundled model: accuracy at the share of layers executed, for docs/routing.md.

    python -m tests.benchmarks.routing_pareto --task math --train 48 --test 100

Methods are prepared on training documents and judged on test documents. Paths are read off the trace of each test
prompt; an answer is right by the search's own reward: a written answer when greedy decoding along the path writes the
target and ends, a choice when it is the likeliest for its length. Differences to dense are paired over documents, with
95 % intervals; W>C and C>W count documents that the method alone, and dense alone, got right.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.contract.decoder import Decoder
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.contract.study import Question, Study, Workbench
from harness.measure.flops import executed_flops
from harness.measure.routes import path_of
from harness.measure.shape import ModelShape
from harness.methods.dense import Dense
from harness.methods.routing.dr_llm import DrLLM
from harness.methods.routing.labels import Asked, groups, questions
from harness.methods.routing.polar import Polar
from harness.methods.routing.random_skip import RandomSkip
from harness.methods.routing.static_path import StaticPath
from harness.model.layouts import dissect
from harness.model.paths.path_evaluator import PathEvaluator
from harness.model.source import BUNDLED, locate
from harness.results.stats.paired import difference
from harness.tasks.pocket import arithmetic, choice
from harness.tasks.pocket.splits import Document, Split, first
from harness.testing.serve import Text, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("math", "choice"), required=True)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="a folder; the bundled model's unless given")
    parser.add_argument("--work", type=Path, help="keeps finished searches, so that a killed run goes on")
    for name, value in (("train", 48), ("test", 100), ("simulations", 50)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    module = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").eval()
    model = Decoder(
        module, AutoTokenizer.from_pretrained(args.model), dissect(module), locate(str(args.model)).fingerprint
    )
    training = Study(("text",), "pocket", documents(args.task, args.train, Split.TRAIN), Workbench(args.work))
    asked = questions(model, Study((), "pocket", documents(args.task, args.test, Split.TEST)), args.test)
    base, _, dense_flops = judge(model, asked, Dense(), Prepared())
    print(f"pocket_{args.task}: {len(asked)} test documents, {args.train} training questions, dense {base.mean():.3f}")
    print("| method | right | difference to dense [95 %] | W>C | C>W | layers | FLOPs, prompt | paths |")
    print("|---|---|---|---|---|---|---|---|")
    for method, state in contestants(model, training, args):
        right, paths, flops = judge(model, asked, method, state)
        found = difference(base, right)
        layers = np.mean([sum(path) / len(path) for path in paths])
        print(
            f"| {named(method)} | {right.mean():.3f} | {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] | "
            f"{found.gained} | {found.lost} | {layers:.1%} | {flops / dense_flops:.2f} | {len(set(paths))} |",
            flush=True,
        )


def documents(task: str, count: int, split: Split) -> tuple[Question, ...]:
    """The task's first documents of a split, as lm-eval asks them."""
    maker: Any = arithmetic if task == "math" else choice
    return tuple(map(_question, first(count, maker.make, maker.LEVELS, split)))


def _question(document: Document) -> Question:
    if "choices" in document.fields:
        answers = tuple(f" {option}" for option in document.fields["choices"])
        return Question(document.prompt, answers, document.fields["answer"], "choice")
    return Question(document.prompt, (document.target,), 0, "answer", ("\n", "Question:"))


def contestants(model: Decoder, training: Study, args: argparse.Namespace) -> Iterator[tuple[Method, Prepared]]:
    """Both routers at three budgets and their controls; what preparation found is printed."""
    for skip in (1, 2, 3, 4):
        static = StaticPath(skip=skip, questions=args.train)
        yield static, static.prepare(model, training)
    for executed, seed in ((executed, seed) for executed in (0.92, 0.83, 0.75, 0.67) for seed in (0, 1)):
        yield RandomSkip(executed=executed, seed=seed), Prepared()
    search = {"questions": args.train, "simulations": args.simulations, "stop_early": False}
    routers: list[tuple[Method, str, tuple[float, ...]]] = [
        (DrLLM(**search), "control", (-0.3, -0.4, -0.5, -0.55)),
        (Polar(**search), "skip_bias", (-2.0, -1.0, 0.0, 1.0)),
    ]
    for router, knob, values in routers:
        state = router.prepare(model, training)
        print(f"<!-- {router.name}: {json.dumps(state.facts)} -->", flush=True)
        for value in values:
            yield replace(router, **{knob: value}), state


def judge(model: Decoder, asked: list[Asked], method: Method, state: Prepared) -> tuple[Any, list[Any], int]:
    """Whether each answer is right, the path that each took, and the FLOPs of reading the prompts."""
    right, taken, flops = [], [], 0
    for group in groups(asked):
        with method.attach(model, state):
            answers = score(model, [Text(each.texts.prompt) for each in group])
            rows = answers.segments
            flops += sum(executed_flops(ModelShape.of(model), row).total for row in rows)
        paths = [path_of(row) or () for row in rows]
        scores = PathEvaluator(model, [each.texts for each in group]).evaluate(list(enumerate(paths)))
        rewards = [each.reward(scored, "answer", None) for each, scored in zip(group, scores, strict=True)]
        right += [float(reward.right) for reward in rewards]
        taken += paths
    return np.array(right), taken, flops


def named(method: Method) -> str:
    """The method and its knob alone."""
    knobs = {"dr-llm": ("control",), "polar": ("skip_bias",), "static-path": ("skip",)}.get(method.name)
    return f"{method.name} " + ", ".join(f"{knob} {getattr(method, knob)}" for knob in knobs or ("executed", "seed"))


if __name__ == "__main__":
    main()
