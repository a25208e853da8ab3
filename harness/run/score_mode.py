"""Which mode the texts of a task are scored in, and what cannot be scored so."""

from collections.abc import Iterator, Sequence

from harness.contract.facts import Phase
from harness.contract.stack import Stack
from harness.core.errors import HarnessError, MethodError, SpecError
from harness.evaluate.score_mode import ScoreMode, Suffix
from harness.evaluate.tasks import LoadedTask


def score_mode(asked: ScoreMode | None, suffix: Suffix | None, stacks: Sequence[Stack], task: LoadedTask) -> ScoreMode:
    """The mode of all runs on a task, which are compared with each other.

    Args:
        asked: what the user asked for; None takes lm-eval's, unless a method does not show in it or a part of the
            context is to be held back.

    Raises:
        MethodError, SpecError: the task, or a method on it, cannot be scored so.
    """
    kinds = {name: leaf.config.output_type for name, leaf in task.tasks.items()}
    scored = [name for name, kind in kinds.items() if kind != "generate_until"]
    if not scored:
        return "lm-eval"
    decoding = next((stack for stack in stacks if stack.only_decodes), None)
    if asked == "lm-eval" and decoding is not None:
        raise MethodError(
            f"{decoding.label} changes nothing while a text is read, so {scored[0]} would be scored as by dense with "
            "--score_mode lm-eval: leave it out, or give --score_mode context-first"
        )
    if asked == "lm-eval" or (asked is None and suffix is None and decoding is None):
        return "lm-eval"
    whole = next((name for name in scored if kinds[name] == "loglikelihood_rolling"), None)
    if whole is not None:
        raise _without_context(whole, asked, suffix, decoding)
    for reason in _refused(stacks, suffix):
        raise MethodError(reason)
    return "context-first"


def _without_context(task: str, asked: ScoreMode | None, suffix: Suffix | None, decoding: Stack | None) -> HarnessError:
    texts = f"{task} scores whole texts (loglikelihood_rolling), which have no context to be read first"
    if asked is None and suffix is None and decoding is not None:
        return MethodError(
            f"{decoding.label} changes nothing while a text is read, and {texts}: run it on another task"
        )
    given = f"--score_mode {asked}" if asked else f"--score_suffix {suffix}"
    return SpecError(f"{given}: {texts}; leave it out for this task")


def _refused(stacks: Sequence[Stack], suffix: Suffix | None) -> Iterator[str]:
    """Why methods cannot be scored context first."""
    for stack in stacks:
        if not stack.manner.whole:
            continue
        if suffix is not None:
            yield (
                f"{stack.label} decides from all of the context which layers run, so no part of it can be held back: "
                "leave --score_suffix out"
            )
        for part in stack.parts:
            if Phase.PREFILL not in part.phases:
                yield (
                    f"{stack.label}: {part.name} acts after the context was read, and the method beside it reads all "
                    "of it first, so that an answer's first token would not show it: run them apart, or on a task "
                    "that generates"
                )
