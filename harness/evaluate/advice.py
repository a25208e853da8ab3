"""What is not on this machine and a task needs: packages of lm-eval's extras, and scripts of the evaluate hub."""

import re
import traceback
from importlib.metadata import requires
from typing import Final

from harness.contract.registry import OWN_DISTRIBUTION
from harness.core.strangers import causes, text_of

EXTRAS: Final = (
    "acpbench",
    "discrim-eval",
    "ifeval",
    "japanese-leaderboard",
    "libra",
    "longbench",
    "math",
    "multilingual",
    "ruler",
    "sentencepiece",
    "unitxt",
)
"""lm-eval's extras that its tasks need, offered under the same names."""

_NAMED = re.compile(r"lm[-_]eval\[\W?([\w-]+)\W?\]")  # as lm-eval's own messages name an extra


def advice_on(error: BaseException) -> str | None:
    """How to bring what was missing when the exception came; None if it came of anything else."""
    for each in causes(error):
        if extra := _extra_of(each):
            missing = f"{each.name} is" if isinstance(each, ImportError) and each.name else "packages are"
            return f'{missing} not installed: pip install "{OWN_DISTRIBUTION}[{extra}]"'
        if metric := _metric_of(each):
            return missing_metric(metric)
    return None


def missing_metric(name: str) -> str:
    """Where a metric's script was looked for, and what fetches it."""
    from evaluate import config

    why = "the network is switched off" if config.HF_EVALUATE_OFFLINE else "it could not be fetched"
    return (
        f"the metric {name!r} is a script of the evaluate hub that is not in the cache {config.HF_MODULES_CACHE} and "
        f"{why}. If there is one of that name, fetch it on a machine with a network:\n"
        f"  python -c 'import evaluate; evaluate.load(\"{name}\")'\n"
        f"and copy the folder evaluate_modules of that machine's {config.HF_MODULES_CACHE.name} here"
    )


def _extra_of(error: BaseException) -> str | None:
    """The extra that lm-eval asks for, or that has the module that could not be imported."""
    if (named := _NAMED.search(text_of(error))) and (extra := named[1].replace("_", "-")) in EXTRAS:
        return extra
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    module = _plain(error.name.partition(".")[0])
    for requirement in requires("lm_eval") or ():
        package, _, marker = requirement.partition(";")
        name = _plain(re.split(r"[^\w.-]", package.strip())[0])
        extra = marker.partition("extra ==")[2].strip(" \"'")
        if extra in EXTRAS and (name == module or name.startswith(f"{module}_")):
            return extra
    return None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _metric_of(error: BaseException) -> str | None:
    """The metric that was being loaded when the exception came, or whose absence lm-eval stumbled over."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        place, names = (frame.f_globals.get("__name__"), frame.f_code.co_name), frame.f_locals
        if place == ("evaluate.loading", "load"):
            return str(names.get("path"))
        if place == ("lm_eval.api.task", "__init__") and isinstance(error, KeyError) and error.args == (None,):
            own = names["self"].config.process_results is not None  # then no script is looked for
            return None if own else str(names.get("metric_name"))
    return None
