"""Many layer paths for many questions, fast: what two paths share is computed once.

The hidden states after a path's first k layers depend on these layers alone, so evaluation resumes after the longest
prefix that some path of the same question has already run, from hidden states kept in bounded memory. All states that
one layer computes next, of whatever question and path, run through it in one batch. Answers are not generated: one
forward over prompt and answers shows the first token that greedy decoding would write differently, which decides
whether the answer is right.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from harness.contract.decoder import Decoder
from harness.model.forwards import by_name, replace_forward, returns_tuple, rows_of, states_of
from harness.model.head import FinalHead
from harness.model.paths.layer_path import require_routable
from harness.model.paths.routed_cache import LayerPath
from harness.model.paths.texts import Texts, padded, same_text, tree_mask

_Prefix = tuple[int, tuple[int, ...]]
"""A question, by its index in the group, and the layers run on it so far, in order."""


@dataclass(frozen=True)
class Scored:
    """How a model answers along one path.

    Attributes:
        logprob: log-probability of the whole answer after the prompt, in nats.
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
        questions: the group; all are padded to the longest row, so let them be of similar length.
        memory: bytes of hidden states kept between calls; attention masks of branching rows come in addition.
        layers_run: layers run so far, summed over questions; what sharing saves is measured by it.
    """

    model: Decoder
    questions: Sequence[Texts]
    memory: int = 512 * 2**20
    layers_run: int = 0

    def __post_init__(self) -> None:
        require_routable(self.model)
        self._head = FinalHead(self.model)
        self._arguments: list[dict[str, Any]] = []  # of each layer: masks and rotations, [questions or 1, ...]
        self._embedded = self._embed()  # [questions, tokens, width]
        self._states: OrderedDict[_Prefix, torch.Tensor] = OrderedDict()  # [tokens, width], least recently used first

    def evaluate(self, pairs: Sequence[tuple[int, LayerPath]]) -> list[list[Scored]]:
        """Score every answer, for each pair of a question's index and a path."""
        # a path of L layers makes at most 2 L states of its own
        step = max(self.memory // (self._embedded[0].nbytes * 2 * len(self._arguments)), 1)
        scores: list[list[Scored]] = []
        for begin in range(0, len(pairs), step):
            scores += self._evaluate(pairs[begin : begin + step])
        return scores

    @torch.no_grad()
    def states(self, question: int, path: LayerPath) -> list[torch.Tensor]:
        """What each layer's router sees when the question takes the path: the layer's input on the prompt.

        Returns:
            One tensor [prompt, width] for each layer of the path, skipped or not, and one for the path's output.
        """
        self._compute([(question, unrolled(path))])
        length = len(self.questions[question].prompt)
        prefixes = [unrolled(path[:layer]) for layer in range(len(path) + 1)]
        states = [self._state((question, prefix))[:length] for prefix in prefixes]
        self._evict()
        return states

    @torch.no_grad()
    def _evaluate(self, pairs: Sequence[tuple[int, LayerPath]]) -> list[list[Scored]]:
        goals = [(question, unrolled(path)) for question, path in pairs]
        self._compute(goals)
        scores = self._score(goals)
        self._evict()
        return scores

    @torch.no_grad()
    def _embed(self) -> torch.Tensor:
        """Run what precedes the layers: their input, and the other arguments that each layer is called with."""
        device = self.model.device
        ids = padded([question.row for question in self.questions]).to(device)  # [questions, tokens]
        if not any(question.branching for question in self.questions):
            embedded, self._arguments = self._layer_inputs(input_ids=ids)
            return embedded
        positions = padded([question.positions for question in self.questions]).to(device)  # [questions, tokens]
        embedded, self._arguments = self._layer_inputs(input_ids=ids, position_ids=positions)
        # masks of one plain text, as long as the deepest position, show each layer's kind of attention
        _, plain = self._layer_inputs(input_ids=ids.new_zeros(1, int(positions.max()) + 1))
        same, masks = same_text(self.questions).to(device), {}
        for arguments, plain_arguments in zip(self._arguments, plain, strict=True):
            mask = plain_arguments["attention_mask"]  # [1, 1, positions, positions] or None
            if id(mask) not in masks:  # layers of one kind share a mask
                masks[id(mask)] = tree_mask(mask, positions, same, embedded.dtype)
            arguments["attention_mask"] = masks[id(mask)]  # [questions, 1, tokens, tokens]
        return embedded

    def _layer_inputs(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """What the model calls its layers with: the first one's hidden states, and the other arguments of each."""
        entering: list[torch.Tensor] = []
        calls: list[dict[str, Any]] = []

        in_tuple = returns_tuple(self.model.anatomy.blocks[0].module)

        def note(hidden: torch.Tensor, **arguments: Any) -> Any:
            entering.append(hidden)
            calls.append(arguments)
            return (hidden, None) if in_tuple else hidden

        with ExitStack() as undo:
            for block in self.model.anatomy.blocks:
                replace_forward(undo, block.module, by_name(block.module.forward, note))
            self.model.anatomy.parent(**inputs, use_cache=False)
        return entering[0], calls

    def _compute(self, goals: Iterable[_Prefix]) -> None:
        """Compute the states of all goals, layer by layer, each from its longest prefix that is known."""
        missing: dict[tuple[int, int], dict[_Prefix, None]] = {}  # by (layer, 0 or 1 for its second run)
        for question, layers in dict.fromkeys(goals):
            end = len(layers)
            while end and (question, layers[:end]) not in self._states:
                layer = layers[end - 1]
                second = int(end > 1 and layers[end - 2] == layer)
                missing.setdefault((layer, second), {})[question, layers[:end]] = None
                end -= 1
        for (layer, _), prefixes in sorted(missing.items()):
            self._run(layer, list(prefixes))

    def _run(self, layer: int, prefixes: list[_Prefix]) -> None:
        """Run a layer, the last of each prefix, on the states before it."""
        inputs = torch.stack([self._state((question, layers[:-1])) for question, layers in prefixes])
        index = torch.tensor([question for question, _ in prefixes], device=inputs.device)  # [prefixes]
        arguments = rows_of(self._arguments[layer], index, len(self.questions))
        output = states_of(self.model.anatomy.blocks[layer].module(inputs, **arguments))  # [prefixes, tokens, width]
        self.layers_run += len(prefixes)
        for prefix, state in zip(prefixes, output, strict=True):
            self._states[prefix] = state.clone()  # a view would keep the whole batch alive

    def _state(self, prefix: _Prefix) -> torch.Tensor:
        """Hidden states [tokens, width] after a prefix whose states are known."""
        question, layers = prefix
        if not layers:
            return self._embedded[question]
        self._states.move_to_end(prefix)
        return self._states[prefix]

    def _evict(self) -> None:
        """Drop the least recently used states beyond the memory."""
        while len(self._states) * self._embedded[0].nbytes > self.memory:
            self._states.popitem(last=False)

    def _score(self, goals: list[_Prefix]) -> list[list[Scored]]:
        """Score the answers from the states of whole paths; the head runs on logit positions alone, in one batch."""
        states: list[torch.Tensor] = []
        answers: list[tuple[int, ...]] = []
        for question, layers in goals:
            texts, state = self.questions[question], self._state((question, layers))
            states.append(state[[index for answer in texts.answers for index in texts.logit_indices(answer)]])
            answers += texts.answers
        logits = self._head(torch.cat(states))  # [tokens of all answers, vocabulary]
        targets = torch.tensor([token for answer in answers for token in answer], device=logits.device)
        logprobs = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]  # [tokens of all answers]
        lengths = [len(answer) for answer in answers]
        greedy = (tokens.tolist() for tokens in torch.split(logits.argmax(-1).cpu(), lengths))
        scored = map(_scored, answers, torch.split(logprobs.cpu(), lengths), greedy)
        return [[next(scored) for _ in self.questions[question].answers] for question, _ in goals]


def _scored(answer: tuple[int, ...], logprobs: torch.Tensor, greedy: list[int]) -> Scored:
    """Score one answer from its tokens' log-probabilities [tokens] and the tokens that greedy decoding writes."""
    equal = next((index for index, token in enumerate(answer) if greedy[index] != token), len(answer))
    return Scored(float(logprobs.sum()), len(answer), equal, greedy[equal] if equal < len(answer) else None)


def unrolled(path: LayerPath) -> tuple[int, ...]:
    """A path as the layers that run, in order."""
    return tuple(layer for layer, count in enumerate(path) for _ in range(count))
