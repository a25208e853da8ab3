"""lm-eval's own evaluation of a task, with lm-eval's own defaults."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM
    from harness.evaluate.tasks import LoadedTask


class Settings(Protocol):
    """The settings of an evaluation, by lm-eval's own names; a job has them."""

    @property
    def pretrained(self) -> str: ...  # noqa: D102 - lm-eval documents them
    @property
    def model_args(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def num_fewshot(self) -> int | None: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def limit(self) -> float | None: ...  # noqa: D102
    @property
    def samples(self) -> dict[str, list[int]] | None: ...  # noqa: D102
    @property
    def system_instruction(self) -> str | None: ...  # noqa: D102
    @property
    def apply_chat_template(self) -> bool | str: ...  # noqa: D102
    @property
    def fewshot_as_multiturn(self) -> bool: ...  # noqa: D102
    @property
    def gen_kwargs(self) -> dict[str, Any] | None: ...  # noqa: D102
    @property
    def seeds(self) -> tuple[int | None, int | None, int | None, int | None]: ...  # noqa: D102
    @property
    def confirm_run_unsafe_code(self) -> bool: ...  # noqa: D102
    @property
    def predict_only(self) -> bool: ...  # noqa: D102
    @property
    def write_out(self) -> bool: ...  # noqa: D102


def kinds(task: "LoadedTask") -> int:
    """How many kinds of requests an evaluation of the task asks, once it has built them all."""
    return len({instance.request_type for leaf in task.tasks.values() for instance in leaf.instances})


def simple_evaluate(
    lm: "HarnessLM", task: "LoadedTask", settings: Settings, samples: dict[str, list[int]] | None = None
) -> dict[str, Any] | None:
    """lm-eval's evaluation of the task; None on the processes of a launch that do not hold its results.

    Args:
        samples: evaluate these documents instead of those that the settings choose.
    """
    from lm_eval import evaluator

    with _without_surveys(evaluator):
        results: dict[str, Any] | None = evaluator.simple_evaluate(
            model=lm,
            model_args={"pretrained": settings.pretrained, **settings.model_args},
            tasks=task.objects,
            task_manager=task.manager,
            num_fewshot=settings.num_fewshot,
            batch_size=settings.batch_size,
            device=str(lm.decoder.device),
            limit=settings.limit if samples is None else None,
            samples=settings.samples if samples is None else samples,
            system_instruction=settings.system_instruction,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.fewshot_as_multiturn and bool(settings.apply_chat_template),
            gen_kwargs=settings.gen_kwargs,
            random_seed=settings.seeds[0],
            numpy_random_seed=settings.seeds[1],
            torch_random_seed=settings.seeds[2],
            fewshot_random_seed=settings.seeds[3],
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            predict_only=settings.predict_only,
            write_out=settings.write_out,
        )
    return results


@contextmanager
def _without_surveys(evaluator: Any) -> Iterator[None]:
    """Skip lm-eval's survey of the machine (pip list, lscpu, ...), which takes seconds after every evaluation.

    The record describes the environment itself.
    """
    surveys = evaluator.get_git_commit_hash, evaluator.add_env_info
    evaluator.get_git_commit_hash, evaluator.add_env_info = (lambda: None), (lambda results: None)
    try:
        yield
    finally:
        evaluator.get_git_commit_hash, evaluator.add_env_info = surveys
