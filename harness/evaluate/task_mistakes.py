"""What is wrong with a task's YAML or its data, in sentences that name the file, and the line where there is one."""

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from harness.core.errors import TaskError
from harness.core.strangers import causes, message_of, stranger_of, text_of
from harness.evaluate.advice import advice_on, missing_metric
from harness.evaluate.availability import FILE_FORMATS

_CHOICES: Final = "output_type: multiple_choice needs doc_to_choice, the answers to choose from"
ON_NO_HUB: Final = "offline/"
"""How data sets are called that caches alone have."""
_LONGEST: Final = 80  # characters of a value of a YAML file


def refuse_settings(name: str, task: Any) -> None:
    """Refuse settings of a loaded task that lm-eval takes and stumbles over later, or only logs.

    Raises:
        TaskError: with what would be right.
    """
    from lm_eval.api.task import ALL_OUTPUT_TYPES, ConfigurableTask

    config = task.config
    for key, least in (("num_fewshot", 0), ("repeats", 1)):
        value = getattr(config, key, None)
        if value is not None and (type(value) is not int or value < least):
            raise TaskError(f"task {name!r}: {key}={value!r} is not valid: expected a whole number from {least}")
    if type(task) is ConfigurableTask and config.output_type is None:
        raise TaskError(f"task {name!r} has no output_type: one of {', '.join(ALL_OUTPUT_TYPES)}")
    if type(task) is ConfigurableTask and task.prompt is None and _lacks_choices(vars(config)):
        raise TaskError(f"task {name!r}: {_CHOICES}")
    for metric, better in (getattr(task, "_higher_is_better", None) or {}).items():
        if not isinstance(better, bool | None):
            raise TaskError(f"task {name!r}: higher_is_better={better!r} of {metric}: expected true or false")
    if getattr(config, "process_results", None) is not None:  # the task's own code computes its metrics
        return
    for metric, function in getattr(task, "_metric_fn_list", {}).items():
        if function is None:
            raise TaskError(f"task {name!r}: {missing_metric(str(metric))}")


def unloadable(name: str, error: BaseException) -> str:
    """Why a task would not load; for missing data, where it was looked for and what fetches it."""
    if advice := advice_on(error):
        return f"task {name!r} cannot be loaded: {advice}"
    if place := stranger_of(error):
        return f"task {name!r} cannot be loaded: {message_of(error)} at {place}"
    path, config = _definition(error)
    source, kwargs = _data_of(error)
    if source and not _is_here(source, kwargs) and any(map(_is_absence, causes(error))):
        return _absent(name, source, error)
    root = list(causes(error))[-1] if source else error
    where = f", in {path}" if path else ""
    if source:
        files = kwargs.get("data_files") if isinstance(kwargs, dict) else None
        given = f"dataset_path: {source[0]}" + (f", data_files: {files}" if files else f", dataset_kwargs: {kwargs}")
        return f"task {name!r}: its data cannot be read ({given}{where}): {message_of(root)}"
    if _lacks_choices(config):
        return f"task {name!r}: {_CHOICES}{where}"
    settings = "; ".join(_settings(error, config))
    about = f"; see {settings}" if settings else ""
    return f"task {name!r} cannot be loaded: {message_of(error)}{about}{where}"


def _lacks_choices(config: dict[str, Any]) -> bool:
    return config.get("output_type") == "multiple_choice" and config.get("doc_to_choice") is None


def _absent(name: str, source: list[str], error: BaseException) -> str:
    import datasets
    from huggingface_hub import constants

    if source[0].startswith(ON_NO_HUB):
        return (
            f"task {name!r}: its data set {', '.join(source)} is not in the cache {datasets.config.HF_DATASETS_CACHE}, "
            "and on no hub. On a machine whose cache has it:\n"
            f"  harness fetch {name} --offline --pack data.tar.gz\nand then here:\n  harness fetch --unpack data.tar.gz"
        )
    reason = text_of(error).strip().split("\n")[0]
    where = "the network is switched off" if constants.HF_HUB_OFFLINE else "it could not be fetched"
    return (
        f"task {name!r}: its data set {', '.join(source)} is not in the cache {datasets.config.HF_DATASETS_CACHE} "
        f"and {where} ({reason}). Fetch it on a machine with a network:\n"
        f"  harness fetch {name} --pack data.tar.gz\nand then here:\n  harness fetch --unpack data.tar.gz"
    )


def _is_absence(error: BaseException) -> bool:
    """Whether a data set was not found, or could not be asked for."""
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in ("httpx", "requests") or "in the cache" in text_of(error)


def _is_here(source: list[str], kwargs: Any) -> bool:
    """Whether the data is files of the user's own, which nothing fetches."""
    files = str(kwargs.get("data_files", "")) if isinstance(kwargs, dict) else ""
    return (source[0] in FILE_FORMATS and "://" not in files) or Path(source[0]).exists()


def _data_of(error: BaseException) -> tuple[list[str], Any]:
    """The data set (path, configuration) that a task was loading when the error came, and its other arguments."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        task: Any = frame.f_locals.get("self")
        if frame.f_code.co_name == "download" and getattr(task, "DATASET_PATH", None):
            source = [str(part) for part in (task.DATASET_PATH, task.DATASET_NAME) if part]
            return source, getattr(getattr(task, "config", None), "dataset_kwargs", None) or {}
    return [], {}


def _definition(error: BaseException) -> tuple[Path | None, dict[str, Any]]:
    """The YAML file that was being read, or whose task was being built, and what it says."""
    path: Path | None = None
    config: dict[str, Any] = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        place, names = (frame.f_globals.get("__name__"), frame.f_code.co_name), frame.f_locals
        if place == ("lm_eval.tasks._factory", "_build_task"):
            path, config = names["entry"].yaml_path, names.get("cfg") or {}
        elif place == ("lm_eval.tasks._yaml_loader", "load_yaml"):
            path = Path(names["path"])
    return path, config


def _settings(error: BaseException, config: dict[str, Any]) -> list[str]:
    """The settings that an error is about: those whose value it quotes, else those that the code read."""
    text = text_of(error)
    quoted = [key for key, value in _flat(config) if isinstance(value, str) and repr(value) in text]
    if not quoted:
        lines = [entry.line or "" for entry in reversed(traceback.extract_tb(error.__traceback__))]
        read = (re.findall(r"\.(\w+)", line) for line in lines)
        quoted = next((known for keys in read if (known := [key for key in keys if key in config])), [])
    values = dict(_flat(config))
    return [f"{key}: {str(values[key])[:_LONGEST]}" for key in dict.fromkeys(quoted)]


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting by its key; those inside of another as ``outer.inner``."""
    for key, value in config.items():
        yield str(key), value
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", item) for inner, item in _flat(value))
