"""NSGA-II on predicted values, by Optuna: candidates that are likely to be on the front, the best first."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from harness.core.errors import HarnessError
from harness.sweep.tuning.front import Point, ranked
from harness.sweep.tuning.predictor import Candidate

if TYPE_CHECKING:
    from optuna.study import Study

GENERATIONS: Final = 12
POPULATION: Final = 30
_EXCESS: Final = "excess"


def require_optuna() -> None:
    """Refuse to begin without Optuna.

    Raises:
        HarnessError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise HarnessError("harness tune needs Optuna: pip install 'efficiency-harness[tune]'") from error


def proposals(
    sizes: Sequence[int],
    predict: Callable[[Candidate], tuple[Point, float]],
    *,
    start: Sequence[Candidate],
    seed: int,
    generations: int = GENERATIONS,
    population: int = POPULATION,
) -> list[Candidate]:
    """All candidates that NSGA-II tried, the best first; those beyond a budget last, by how far they are.

    Args:
        predict: a candidate's predicted objectives, each to be small, and by how much it is beyond the budgets: 0 for
            one within.
        start: candidates of the first generation.
    """
    tried: dict[Candidate, tuple[Point, float]] = {}
    study = _study(len(predict(start[0])[0]), seed, population)
    for candidate in start[:population]:
        study.enqueue_trial({str(place): choice for place, choice in enumerate(candidate)})

    def objective(trial: Any) -> Point:
        candidate = tuple(trial.suggest_int(str(place), 0, size - 1) for place, size in enumerate(sizes))
        tried[candidate] = values, excess = predict(candidate)
        trial.set_user_attr(_EXCESS, excess)
        return values

    study.optimize(objective, n_trials=generations * population)
    within = [candidate for candidate, (_, excess) in tried.items() if excess <= 0]
    beyond = sorted((excess, candidate) for candidate, (_, excess) in tried.items() if excess > 0)
    order = ranked([tried[candidate][0] for candidate in within])
    return [*(within[index] for index in order), *(candidate for _, candidate in beyond)]


def _study(objectives: int, seed: int, population: int) -> "Study":
    """An empty study of so many objectives, in memory."""
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.NSGAIISampler(
            population_size=population, seed=seed, constraints_func=lambda trial: [trial.user_attrs[_EXCESS]]
        )
    return optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
