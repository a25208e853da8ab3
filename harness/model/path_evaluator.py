"""Many layer paths for many questions, fast: what is common to two paths is computed once.

A path's state after its first k layers depends on these layers alone, so evaluation starts after the longest
beginning that some path of the same question has already gone, over kept hidden states in bounded memory. All
states that one layer makes next, of whatever question and path, run through it in one batch. Answers are given and
read in one forward over prompt and answer: the first token that greedy decoding would write otherwise shows, and
decides, without writing the rest.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from harness.model.decoder import Decoder
from harness.model.layer_path import by_name, replaced, require_supported, rows_of
from harness.model.routed_cache import Path

_Key = tuple[int, tuple[int, ...]]
"""A question, and the layers gone through, in order."""


@dataclass(frozen=True)
class Texts:
    """The texts of one question: its prompt with each of its answers.

    Attributes:
        prompt: tokens of the prompt.
        answers: tokens of each answer.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """What the model reads; answers that differ in their last token alone share a row."""
        return list(dict.fromkeys(self._row(answer) for answer in self.answers))

    def row_of(self, answer: int) -> int:
        """The row that an answer is read in."""
        return self.rows.index(self._row(self.answers[answer]))

    def _row(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        return (*self.prompt, *answer[:-1])


@dataclass(frozen=True)
class Scored:
    """How a model answers along one path.

    Attributes:
        logprob: log-probability of the whole answer after the prompt.
        tokens: how many tokens the answer has.
        greedy: how many of them, from the first on, greedy decoding writes.
        departs: the token that greedy decoding writes after these; None where it writes the whole answer.
    """

    logprob: float
    tokens: int
    greedy: int
    departs: int | None


@dataclass
class PathEvaluator:
    """Evaluates paths on a group of questions.

    Attributes:
        model: a decoder that the layer-path engine supports, with nothing attached.
        questions: the group; all are padded to the longest, so let them be of like length.
        memory: bytes of hidden states kept between calls.
        layers_run: how many layers have been run on how many rows, summed, for measuring what sharing spares.
    """

    model: Decoder
    questions: Sequence[Texts]
    memory: int = 512 * 2**20
    layers_run: int = 0

    def __post_init__(self) -> None:
        require_supported(self.model)
        self._first = [0]
        for question in self.questions:
            self._first.append(self._first[-1] + len(question.rows))
        rows = [row for question in self.questions for row in question.rows]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.model.device)
        self._calls: list[dict[str, Any]] = []
        self._start = self._enter(ids)
        self._kept: OrderedDict[_Key, torch.Tensor] = OrderedDict()

    def evaluate(self, asked: Sequence[tuple[int, Path]]) -> list[list[Scored]]:
        """For each question (by its place in the group) and path, how every answer scores."""
        state = self._start.element_size() * self._start.shape[1] * self._start.shape[2]
        largest = max(len(question.rows) for question in self.questions) * state * 2 * len(self._calls)
        step = max(self.memory // largest, 1)
        found: list[list[Scored]] = []
        for begin in range(0, len(asked), step):
            found += self._evaluate(asked[begin : begin + step])
        return found

    @torch.no_grad()
    def states(self, question: int, path: Path) -> list[torch.Tensor]:
        """What each layer's router sees when the question takes the path: the layer's input on the prompt.

        Returns:
            One tensor of shape [prompt, width] for each layer of the path, skipped or not, and for what comes after it.
        """
        self._go([(question, order(path))])
        length = len(self.questions[question].prompt)
        inputs = [order(path[:layer]) for layer in range(len(path) + 1)]
        found = [self._state((question, gone))[0, :length] for gone in inputs]
        self._forget()
        return found

    @torch.no_grad()
    def _evaluate(self, asked: Sequence[tuple[int, Path]]) -> list[list[Scored]]:
        goals = [(question, order(path)) for question, path in asked]
        self._go(goals)
        found = self._read(goals)
        self._forget()
        return found

    @torch.no_grad()
    def _enter(self, ids: torch.Tensor) -> torch.Tensor:
        """Run what comes before the layers, and note what the model hands to each of them."""
        entered: list[torch.Tensor] = []

        def noted(hidden: torch.Tensor, **call: Any) -> torch.Tensor:
            entered.append(hidden)
            self._calls.append(call)
            return hidden

        with ExitStack() as undo:
            for block in self.model.anatomy.blocks:
                replaced(undo, block.module, by_name(block.module.forward, noted))
            self.model.anatomy.parent(input_ids=ids, use_cache=False)
        return entered[0]

    def _go(self, goals: Iterable[_Key]) -> None:
        """Make the states of all goals, layer by layer, from where they are not yet made."""
        wanted: dict[tuple[int, int], dict[_Key, None]] = {}
        for question, gone in dict.fromkeys(goals):
            end = len(gone)
            while end and (question, gone[:end]) not in self._kept:
                layer = gone[end - 1]
                again = int(end > 1 and gone[end - 2] == layer)
                wanted.setdefault((layer, again), {})[question, gone[:end]] = None
                end -= 1
        for (layer, _), keys in sorted(wanted.items()):
            self._run(layer, list(keys))

    def _run(self, layer: int, keys: list[_Key]) -> None:
        """Take one layer from the states before ``keys`` to these."""
        inputs = [self._state((question, gone[:-1])) for question, gone in keys]
        rows = [row for question, _ in keys for row in range(self._first[question], self._first[question + 1])]
        index = torch.tensor(rows, device=self._start.device)
        call = rows_of(self._calls[layer], index, len(self._start))
        output = self.model.anatomy.blocks[layer].module(torch.cat(inputs), **call)
        self.layers_run += len(rows)
        for key, state in zip(keys, torch.split(output, [len(given) for given in inputs]), strict=True):
            self._kept[key] = state.clone()  # a view would keep the whole batch alive

    def _state(self, key: _Key) -> torch.Tensor:
        question, gone = key
        if not gone:
            return self._start[self._first[question] : self._first[question + 1]]
        self._kept.move_to_end(key)
        return self._kept[key]

    def _forget(self) -> None:
        """Let go of the states that were not used for longest."""
        held = sum(state.nbytes for state in self._kept.values())
        while held > self.memory:
            _, state = self._kept.popitem(last=False)
            held -= state.nbytes

    def _read(self, goals: list[_Key]) -> list[list[Scored]]:
        """Logits at the places of the answers alone, for all goals in one batch."""
        places, targets = [], []
        for question, gone in goals:
            texts, state = self.questions[question], self._state((question, gone))
            for number, answer in enumerate(texts.answers):
                begin = len(texts.prompt) - 1
                places.append(state[texts.row_of(number), begin : begin + len(answer)])
                targets.append(answer)
        logits = self._logits(torch.cat(places))
        target = torch.tensor([token for answer in targets for token in answer], device=logits.device)
        logprobs = logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]
        lengths = [len(answer) for answer in targets]
        written = (tokens.tolist() for tokens in torch.split(logits.argmax(-1).cpu(), lengths))
        scored = map(_scored, targets, torch.split(logprobs.cpu(), lengths), written)
        return [[next(scored) for _ in self.questions[question].answers] for question, _ in goals]

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        anatomy = self.model.anatomy
        logits: torch.Tensor = anatomy.head(anatomy.final_norm(states)).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap).mul(cap)


def _scored(answer: tuple[int, ...], logprobs: torch.Tensor, written: list[int]) -> Scored:
    same = next((place for place, token in enumerate(answer) if written[place] != token), len(answer))
    return Scored(float(logprobs.sum()), len(answer), same, written[same] if same < len(answer) else None)


def order(path: Path) -> tuple[int, ...]:
    """A path as the layers that run, in order."""
    return tuple(layer for layer, count in enumerate(path) for _ in range(count))
