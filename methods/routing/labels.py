"""From a task's training questions to labels: for each question the shortest path that answers it.

Questions are searched in lockstep, so that the next path of every search is evaluated in one batch. A finished group is
written to the workbench at once: a killed preparation goes on after it, and all settings of a method that search alike
share it.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.contract.study import Question, Study, Workbench
from harness.core.errors import MethodError
from harness.core.text import duration
from harness.methods.routing.journal import Journal
from harness.methods.routing.mcts import Reward, Search, SearchResult, Settings, search

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.core.progress import Bar
    from harness.model.paths.path_evaluator import PathEvaluator, Scored
    from harness.model.paths.routed_cache import LayerPath
    from harness.model.paths.texts import Texts

Goal = Literal["answer", "likelihood"]
"""What a path must do: give the right answer, or make the right one as likely as the full path does."""

GROUP = 8
"""Questions searched together: what a killed search loses. More are padded further, and no faster on a real model."""
LEAST = 0.1
"""Share of the questions that must have a right path to learn from."""
PROBE = 16
"""Questions after which a search ends that has come across no right answer."""
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
        corrected: the least share, among those kept, of questions that the full path answers wrong.
    """

    searched: tuple[Label, ...]
    goal: Goal
    corrected: float = 0.0

    @property
    def answered(self) -> list[Label]:
        """The questions with a right path."""
        return [label for label in self.searched if label.result.path is not None]

    @property
    def kept(self) -> list[Label]:
        """The questions to learn from: the first that dense answers leave until enough of the others are corrected."""
        if self.corrected:
            right = [label for label in self.answered if label.result.dense_right]
            wrong = len(self.answered) - len(right)
            allowed = int(wrong * (1 - self.corrected) / self.corrected + 1e-9)
            leaving = {label.asked.question.digest for label in right[: max(len(right) - allowed, 0)]}
            return [label for label in self.answered if label.asked.question.digest not in leaving]
        return self.answered

    def facts(self, layers: int) -> dict[str, Any]:
        """What a reader of the prepared state must know about the search."""
        kept, answered = self.kept, self.answered
        lengths = [sum(label.path) for label in kept]
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
                "accuracy": len(answered) / len(self.searched),
                "executed": sum(sum(label.path) for label in answered) / (layers * len(answered)) if answered else None,
            },
        }


def find(model: "Decoder", study: Study, count: int, goal: Goal, settings: Settings, corrected: float = 0.0) -> Labels:
    """Search a path for each of the calibration's questions, or of questions made of its text.

    Raises:
        MethodError: too few questions have a right path to learn from.
    """
    asked = questions(model, study, count)
    digests = [each.question.digest for each in asked]
    journal = Journal(study.workbench.folder, "paths", model, digests, [goal, asdict(settings)])
    results = _restored(journal.read())
    pending = [group for group in groups(asked) if any(each.question.digest not in results for each in group)]
    _announce(study.workbench, model, pending, len(asked), settings)
    # lengths mixed, so that the time left can be told from the pace so far
    pending.sort(key=lambda group: group[0].question.digest)
    with study.workbench.bar("searching paths") as bar:
        if bar is not None:
            bar.expect(sum(map(len, pending)) * (settings.simulations + 1))
        for group in pending:
            _require_enough(results.values(), len(asked))
            # the whole group, so that a resumed search computes what an uninterrupted one does
            searched = _search(model, group, goal, settings, bar)
            results |= {question.question.digest: result for question, result in zip(group, searched, strict=True)}
            journal.write({key: [each.path, each.dense_right, each.evaluations] for key, each in results.items()})
    _require_enough(results.values(), len(asked))
    labels = Labels(tuple(Label(question, results[question.question.digest]) for question in asked), goal, corrected)
    if len(labels.kept) < _least(len(asked)):
        raise MethodError(
            f"corrected={corrected} leaves {len(labels.kept)} of {len(asked)} training questions, as a path corrects "
            f"{sum(not label.result.dense_right for label in labels.answered)} that the whole model answers wrong: too "
            "few to learn from, so no router is trained"
        )
    return labels


def _restored(stored: dict[str, Any]) -> dict[str, SearchResult]:
    """Results as they were stored; none where they are not what was written."""
    try:
        return {
            digest: SearchResult(None if path is None else tuple(path), bool(dense), int(evaluations))
            for digest, (path, dense, evaluations) in stored.items()
        }
    except (ValueError, TypeError):
        return {}


def _announce(
    workbench: Workbench, model: "Decoder", pending: Sequence[list[Asked]], total: int, settings: Settings
) -> None:
    """Say how long the search will take."""
    if not pending:
        return
    from harness.methods.routing.pace import Pace

    count = sum(map(len, pending))
    texts = [[each.texts for each in group] for group in pending]
    pace = Pace.of(model, texts[len(texts) // 2])
    most = pace.seconds(texts, settings.simulations)
    least = pace.seconds(texts, 1) if settings.stop_early else most
    known = f", {total - count} are known from before" if count < total else ""
    takes = f"about {duration(most)}"
    if least < most:
        takes = f"{duration(least)} to {duration(most)}, by when their searches end"
    workbench.say(
        f"searching paths for {count} questions{known}, at most {settings.simulations} each: {takes}, "
        "estimated from three paths; finished questions are kept when it is stopped"
    )


def _least(total: int) -> int:
    """How many questions must have a right path; of a handful, which only tries things out, one."""
    return 1 if total < 8 else max(2, math.ceil(LEAST * total))


def _require_enough(results: Collection[SearchResult], total: int) -> None:
    """End a search in which too few answers are right.

    Raises:
        MethodError: enough cannot come any more, or none has come.
    """
    answered = sum(result.path is not None for result in results)
    left = total - len(results)
    if answered + left >= _least(total) and (answered or len(results) < PROBE):
        return
    dense = sum(result.dense_right for result in results)
    raise MethodError(
        f"on {f'only {answered}' if answered else 'none'} of {len(results)} training questions"
        f"{f' (of {total})' if left else ''} does the whole model ({dense or 'none'}) or any path that was tried give "
        "the right answer: too few to learn from, so no router is trained; goal=likelihood asks only that the right "
        "answer stays as likely as it is for the full model"
    )


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


def _search(
    model: "Decoder", group: list[Asked], goal: Goal, settings: Settings, bar: "Bar | None"
) -> list[SearchResult]:
    """Search a group in lockstep."""
    from harness.model.paths.path_evaluator import PathEvaluator

    layers = len(model.anatomy.blocks)
    evaluator = PathEvaluator(model, [question.texts for question in group])

    def start(question: Asked) -> Search:
        return search(layers, settings, question.question.digest)

    def advance(evaluated: int, ended: Sequence[SearchResult]) -> None:
        if bar is not None:  # a search that ends early will not ask for the rest of its paths
            bar.advance(evaluated + sum(settings.simulations + 1 - result.evaluations for result in ended))

    return lockstep(group, evaluator, goal, start, advance)


def lockstep(
    group: list[Asked],
    evaluator: "PathEvaluator",
    goal: Goal,
    start: Callable[[Asked], Search],
    advance: Callable[[int, Sequence[SearchResult]], None] = lambda evaluated, ended: None,
) -> list[SearchResult]:
    """Run searches together: one batch for the next path of each.

    Args:
        advance: told after each batch how many paths were in it, and the results of searches that it ended.
    """
    searches = [start(question) for question in group]
    wanted: dict[int, LayerPath] = {place: next(running) for place, running in enumerate(searches)}
    results: dict[int, SearchResult] = {}
    dense: dict[int, float] = {}
    while wanted:
        scores, ended = evaluator.evaluate(list(wanted.items())), list[SearchResult]()
        for (place, _), scored in zip(list(wanted.items()), scores, strict=True):
            reward = group[place].reward(scored, goal, dense.get(place))
            dense.setdefault(place, reward.margin)  # the full path comes first
            try:
                wanted[place] = searches[place].send(reward)
            except StopIteration as finished:
                results[place] = finished.value
                ended.append(finished.value)
                del wanted[place]
        advance(len(scores), ended)
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
