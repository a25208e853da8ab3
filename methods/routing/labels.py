"""From a task's training questions to labels: for each question the shortest path that answers it.

Questions are searched in lockstep, so that the next path of every search is evaluated in one batch. A finished group is
written to the workbench at once: a killed preparation resumes after it, and all methods with the same search share it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.contract.identity import model_identity
from harness.contract.study import Question, Study
from harness.core.errors import MethodError
from harness.core.files import parse_json, write_atomic
from harness.methods.routing.mcts import Reward, Search, SearchResult, Settings, search

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.model.paths.path_evaluator import PathEvaluator, Scored
    from harness.model.paths.routed_cache import LayerPath
    from harness.model.paths.texts import Texts

Goal = Literal["answer", "likelihood"]
"""What a path must do: give the right answer, or make the right one as likely as the full path does."""

GROUP = 32
SLACK = 0.01
"""Nats per token that a path may lose and still count as no less likely."""


@dataclass(frozen=True)
class Asked:
    """A question in tokens.

    Attributes:
        texts: its prompt and answers; a written answer ends with one of ``ends``.
        ends: token ids that end a written answer; any of them will do.
    """

    question: Question
    texts: "Texts"
    ends: frozenset[int]

    def reward(self, scores: "Sequence[Scored]", goal: Goal, dense: float | None) -> Reward:
        """The reward of a path with these scores; ``dense`` is the full path's margin where it is known."""
        right = scores[self.question.right]
        per_token = right.logprob / right.tokens
        if goal == "likelihood" or self.question.kind == "text":
            return Reward(dense is None or per_token >= dense - SLACK, per_token)
        if self.question.kind == "answer":
            ended = right.greedy == right.tokens - 1 and right.departs in self.ends
            return Reward(ended or right.greedy == right.tokens, per_token)
        lengths = [max(len(answer), 1) for answer in self.question.answers]
        normalised = [score.logprob / length for score, length in zip(scores, lengths, strict=True)]
        wrong = [value for index, value in enumerate(normalised) if index != self.question.right]
        margin = normalised[self.question.right] - max(wrong)
        return Reward(margin > 0, margin)


def ask(model: "Decoder", question: Question) -> Asked | None:
    """A question as lm-eval would tokenise it; None where nothing is left of the prompt or of an answer."""
    from harness.model.paths.texts import Texts

    context = question.prompt.rstrip()
    spaces = question.prompt[len(context) :]
    prompt = _tokens(model, context)
    answers = [_tokens(model, context + spaces + answer)[len(prompt) :] for answer in question.answers]
    ends: frozenset[int] = frozenset()
    if question.kind == "answer" and answers[0]:
        whole = (*prompt, *answers[0])
        ends = _end_tokens(
            model, [_tokens(model, context + spaces + question.answers[0] + end) for end in question.ends], whole
        )
        answers = [(*answers[0], min(ends))] if ends else answers
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and answers:  # cut from the left, as lm-eval cuts
        prompt = prompt[-max(longest - max(map(len, answers)), 1) :]
    if not prompt or not all(answers):
        return None
    return Asked(question, Texts(prompt, tuple(answers)), ends)


def _tokens(model: "Decoder", text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer(text)["input_ids"])


def _end_tokens(model: "Decoder", ended: list[tuple[int, ...]], whole: tuple[int, ...]) -> frozenset[int]:
    """The model's end tokens, and the first token of each string that ends an answer, where it is one of its own."""
    own = model.module.generation_config.eos_token_id
    ids = {*(own if isinstance(own, list) else [own]), model.tokenizer.eos_token_id} - {None}
    return frozenset(
        ids | {more[len(whole)] for more in ended if more[: len(whole)] == whole and len(more) > len(whole)}
    )


@dataclass(frozen=True)
class Label:
    """A question with the result of its search."""

    asked: Asked
    result: SearchResult

    @property
    def path(self) -> "LayerPath":
        """The shortest right path, of a question that has one."""
        assert self.result.path is not None
        return self.result.path


@dataclass(frozen=True)
class Labels:
    """The searched questions.

    Attributes:
        searched: all of them.
        goal: what paths had to do.
    """

    searched: tuple[Label, ...]
    goal: Goal

    @property
    def kept(self) -> list[Label]:
        """The questions with a right path."""
        return [label for label in self.searched if label.result.path is not None]

    def facts(self, layers: int) -> dict[str, Any]:
        """What a reader of the prepared state must know about the search."""
        kept = self.kept
        lengths = [sum(label.result.path or ()) for label in kept]
        corrected = sum(not label.result.dense_right for label in kept)
        return {
            "goal": self.goal,
            "questions": len(self.searched),
            "kept": len(kept),
            "evaluations": sum(label.result.evaluations for label in self.searched),
            "dense right": sum(label.result.dense_right for label in self.searched),
            "wrong to right": corrected,
            "layers saved per kept question": sum(layers - length for length in lengths) / len(kept) if kept else None,
            # with the right answers in view: an upper bound for any router, never a method's score
            "oracle": {
                "accuracy": len(kept) / len(self.searched),
                "executed": sum(lengths) / (layers * len(kept)) if kept else None,
            },
        }


def find(model: "Decoder", study: Study, count: int, goal: Goal, settings: Settings) -> Labels:
    """Search a path for each of the calibration's questions, or of questions made of its text.

    Raises:
        MethodError: no path is right on any question, so there is nothing to learn.
    """
    asked = questions(model, study, count)
    journal = _Journal(study.workbench.folder, model, asked, goal, settings)
    labels: dict[str, SearchResult] = journal.read()
    with study.workbench.bar("searching paths") as bar:
        if bar is not None:
            bar.expect(len(asked))
        for group in groups(asked):
            if any(question.question.digest not in labels for question in group):
                # the whole group, so that a resumed search computes what an uninterrupted one does
                results = _search(model, group, goal, settings)
                labels |= {question.question.digest: result for question, result in zip(group, results, strict=True)}
                journal.write(labels)
            if bar is not None:
                bar.advance(len(group))
    searched = Labels(tuple(Label(question, labels[question.question.digest]) for question in asked), goal)
    if not searched.kept:
        raise MethodError(
            f"on none of {len(asked)} training questions does any path give the right answer, so there is nothing to "
            "learn; goal=likelihood asks only that the right answer stays as likely as it is for the full model"
        )
    return searched


def questions(model: "Decoder", study: Study, count: int) -> list[Asked]:
    """At most ``count`` questions in tokens, each once; running text gives questions where the task has none."""
    given = study.questions or tuple(_from_text(study.texts))
    unique = {question.digest: question for question in given}
    tokenised = (ask(model, question) for question in unique.values())
    asked = [question for question in tokenised if question is not None][:count]
    if not asked:
        raise MethodError(f"the calibration text from {study.source} gives no question to search paths for")
    return asked


def groups(asked: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Questions of similar length together."""
    by_length = sorted(asked, key=lambda question: (len(question.texts.row), question.question.digest))
    for begin in range(0, len(by_length), GROUP):
        yield by_length[begin : begin + GROUP]


def _search(model: "Decoder", group: list[Asked], goal: Goal, settings: Settings) -> list[SearchResult]:
    """Search a group in lockstep."""
    from harness.model.paths.path_evaluator import PathEvaluator

    layers = len(model.anatomy.blocks)
    evaluator = PathEvaluator(model, [question.texts for question in group])
    return lockstep(group, evaluator, goal, lambda question: search(layers, settings, question.question.digest))


def lockstep(
    group: list[Asked], evaluator: "PathEvaluator", goal: Goal, start: Callable[[Asked], Search]
) -> list[SearchResult]:
    """Run searches together: one batch for the next path of each."""
    searches = [start(question) for question in group]
    wanted: dict[int, LayerPath] = {place: next(running) for place, running in enumerate(searches)}
    results: dict[int, SearchResult] = {}
    dense: dict[int, float] = {}
    while wanted:
        scores = evaluator.evaluate(list(wanted.items()))
        for (place, _), scored in zip(list(wanted.items()), scores, strict=True):
            reward = group[place].reward(scored, goal, dense.get(place))
            dense.setdefault(place, reward.margin)  # the full path comes first
            try:
                wanted[place] = searches[place].send(reward)
            except StopIteration as finished:
                results[place] = finished.value
                del wanted[place]
    return [results[place] for place in range(len(group))]


def _from_text(texts: Sequence[str]) -> Iterator[Question]:
    """Running text as questions: each part's second half continues the first."""
    for text in texts:
        words = text.split(" ")
        for begin in range(0, len(words), 48):
            part = words[begin : begin + 48]
            if len(part) >= 8:
                half = len(part) // 2
                yield Question(" ".join(part[:half]), (" " + " ".join(part[half:]),), 0, "text")


class _Journal:
    """Search results by question, in a file whose name says what they depend on."""

    def __init__(
        self, folder: Path | None, model: "Decoder", asked: Sequence[Asked], goal: Goal, settings: Settings
    ) -> None:
        depends = [model_identity(model), goal, asdict(settings), [question.question.digest for question in asked]]
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        self._file = None if folder is None else folder / f"paths-{digest[:16]}.json"

    def read(self) -> dict[str, SearchResult]:
        """The stored results; none where they cannot be read."""
        if self._file is None or not self._file.is_file():
            return {}
        try:
            stored = parse_json(self._file.read_bytes())
            return {
                digest: SearchResult(None if path is None else tuple(path), bool(dense), int(evaluations))
                for digest, (path, dense, evaluations) in stored.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def write(self, labels: dict[str, SearchResult]) -> None:
        """Store all results so far."""
        if self._file is not None:
            plain = {key: [result.path, result.dense_right, result.evaluations] for key, result in labels.items()}
            write_atomic(self._file, json.dumps(plain))
