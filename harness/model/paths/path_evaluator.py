"""Many layer paths for many questions, fast: what is common to two paths is computed once.

A path's state after its first k layers depends on these layers alone, so evaluation starts after the longest
beginning that some path of the same question has already gone, over kept hidden states in bounded memory. All
states that one layer makes next, of whatever question and path, run through it in one batch. A question is one row:
its prompt, and after it the tree of its answers, each seeing the prompt and itself. Answers are given and read in one
forward: the first token that greedy decoding would write otherwise shows, and decides, without writing the rest.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from harness.contract.decoder import Decoder
from harness.model.paths.layer_path import by_name, replaced, require_supported, rows_of
from harness.model.paths.routed_cache import Path

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
    def row(self) -> tuple[int, ...]:
        """What the model reads: the prompt, then the answers without their last tokens, what they share once."""
        return (*self.prompt, *(token for _, token in self._tree))

    @property
    def positions(self) -> tuple[int, ...]:
        """How far into its text each token of the row is."""
        depths: list[int] = []
        for before, _ in self._tree:
            depths.append(len(self.prompt) if before < 0 else depths[before] + 1)
        return (*range(len(self.prompt)), *depths)

    @property
    def branches(self) -> bool:
        """Whether the row is more than one running text."""
        return len(self.row) > max(self.positions) + 1

    def places(self, answer: tuple[int, ...]) -> list[int]:
        """Where in the row each token of the answer is told: at the token before it."""
        number, told = -1, [len(self.prompt) - 1]
        for token in answer[:-1]:
            number = self._tree[number, token]
            told.append(len(self.prompt) + number)
        return told[: len(answer)]

    @cached_property
    def _tree(self) -> dict[tuple[int, int], int]:
        """Tokens of answers that others follow, numbered: by the number of the one before (-1: none) and the token."""
        tree: dict[tuple[int, int], int] = {}
        for answer in self.answers:
            number = -1
            for token in answer[:-1]:
                number = tree.setdefault((number, token), len(tree))
        return tree


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
        memory: bytes of hidden states kept between calls; masks of packed answers, places squared, come on top.
        layers_run: how many layers have been run on how many questions, summed, for measuring what sharing spares.
    """

    model: Decoder
    questions: Sequence[Texts]
    memory: int = 512 * 2**20
    layers_run: int = 0

    def __post_init__(self) -> None:
        require_supported(self.model)
        self._calls: list[dict[str, Any]] = []
        self._start = self._enter()
        self._kept: OrderedDict[_Key, torch.Tensor] = OrderedDict()

    def evaluate(self, asked: Sequence[tuple[int, Path]]) -> list[list[Scored]]:
        """For each question (by its place in the group) and path, how every answer scores."""
        step = max(self.memory // (self._start[0].nbytes * 2 * len(self._calls)), 1)
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
        found = [self._state((question, gone))[:length] for gone in inputs]
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
    def _enter(self) -> torch.Tensor:
        """Run what comes before the layers, and note what each layer of each question is called with."""
        ids = self._padded([question.row for question in self.questions])
        if not any(question.branches for question in self.questions):
            start, self._calls = self._handed(input_ids=ids)
            return start
        positions = self._padded([question.positions for question in self.questions])
        start, self._calls = self._handed(input_ids=ids, position_ids=positions)
        _, running = self._handed(input_ids=ids.new_zeros(1, int(positions.max()) + 1))
        together, masks = self._together(), {}
        for call, text in zip(self._calls, running, strict=True):
            mask = text["attention_mask"]
            if id(mask) not in masks:
                masks[id(mask)] = _tree_mask(mask, positions, together, start.dtype)
            call["attention_mask"] = masks[id(mask)]
        return start

    def _padded(self, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.model.device)

    def _handed(self, **given: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """What the model hands to its layers: the first one's input, and everything else for each."""
        entered: list[torch.Tensor] = []
        calls: list[dict[str, Any]] = []

        def noted(hidden: torch.Tensor, **call: Any) -> torch.Tensor:
            entered.append(hidden)
            calls.append(call)
            return hidden

        with ExitStack() as undo:
            for block in self.model.anatomy.blocks:
                replaced(undo, block.module, by_name(block.module.forward, noted))
            self.model.anatomy.parent(**given, use_cache=False)
        return entered[0], calls

    def _together(self) -> torch.Tensor:
        """Which places of a row are of one text, [questions, places, places]; padding is with itself."""
        width = max(len(question.row) for question in self.questions)
        together = torch.eye(width, dtype=torch.bool).repeat(len(self.questions), 1, 1)
        for same, question in zip(together, self.questions, strict=True):
            for answer in question.answers:
                text = torch.tensor([*range(len(question.prompt)), *question.places(answer)[1:]])
                same[text[:, None], text] = True
        return together.to(self.model.device)

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
        inputs = torch.stack([self._state((question, gone[:-1])) for question, gone in keys])
        index = torch.tensor([question for question, _ in keys], device=inputs.device)
        output = self.model.anatomy.blocks[layer].module(inputs, **rows_of(self._calls[layer], index, len(self._start)))
        self.layers_run += len(keys)
        for key, state in zip(keys, output, strict=True):
            self._kept[key] = state.clone()  # a view would keep the whole batch alive

    def _state(self, key: _Key) -> torch.Tensor:
        question, gone = key
        if not gone:
            return self._start[question]
        self._kept.move_to_end(key)
        return self._kept[key]

    def _forget(self) -> None:
        """Let go of the states that were not used for longest."""
        while len(self._kept) * self._start[0].nbytes > self.memory:
            self._kept.popitem(last=False)

    def _read(self, goals: list[_Key]) -> list[list[Scored]]:
        """Logits at the places of the answers alone, for all goals in one batch."""
        told: list[torch.Tensor] = []
        targets: list[tuple[int, ...]] = []
        for question, gone in goals:
            texts, state = self.questions[question], self._state((question, gone))
            told.append(state[[place for answer in texts.answers for place in texts.places(answer)]])
            targets += texts.answers
        logits = self._logits(torch.cat(told))
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


def _tree_mask(
    mask: torch.Tensor | None, positions: torch.Tensor, together: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """A layer's mask of one running text, for rows that hold several: [rows, 1, to, from], of the same kind.

    Args:
        mask: the running text's, [1, 1, to, from], true or 0 where a place is seen; None where all before it are.
        positions: in its text, of every place, [rows, places].
        together: which places are of one text, [rows, places, places].
    """
    if mask is None:
        seen = positions[:, :, None] >= positions[:, None, :]
    else:
        seen = (mask if mask.dtype == torch.bool else mask == 0)[0, 0][positions[:, :, None], positions[:, None, :]]
    seen = (seen & together)[:, None]
    if mask is None or mask.dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _scored(answer: tuple[int, ...], logprobs: torch.Tensor, written: list[int]) -> Scored:
    same = next((place for place, token in enumerate(answer) if written[place] != token), len(answer))
    return Scored(float(logprobs.sum()), len(answer), same, written[same] if same < len(answer) else None)


def order(path: Path) -> tuple[int, ...]:
    """A path as the layers that run, in order."""
    return tuple(layer for layer, count in enumerate(path) for _ in range(count))
