"""Flags as lm-eval's users write them: those that one option here cannot take, and those that are not offered."""

from harness.core.errors import HarnessError


def spread(argv: list[str]) -> list[str]:
    """Rewrite lm-eval's spellings that a flag of one value cannot take.

    ``--tasks a b`` becomes ``--tasks a --tasks b``; a bare ``--apply_chat_template`` gets its value.
    """
    if argv[:1] not in (["run"], ["sweep"], ["tune"], ["prepare"]):
        return argv
    rewritten: list[str] = []
    flag = ""
    for index, word in enumerate(argv):
        following = argv[index + 1] if index + 1 < len(argv) else "-"
        _refuse(word)
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            flag = word.replace("-", "_").lstrip("_")
            rewritten.append(word)
            if flag in _OPTIONAL_VALUE and following.startswith("-"):
                rewritten.append("true")
        elif flag in _SEVERAL_VALUES and not rewritten[-1].startswith("-"):
            rewritten += [f"--{_SEVERAL_VALUES[flag]}", word]
        else:
            rewritten.append(word)
    return rewritten


def _refuse(word: str) -> None:
    """Say why a flag of lm-eval's is not one of ours."""
    flag = word.partition("=")[0].replace("-", "_").removeprefix("__")
    if word.startswith("-") and flag in _ABSENT:
        raise HarnessError(f"{word}: {_ABSENT[flag]}")


_ABSENT = {
    "use_cache": "not needed: every run keeps its answers under its own id, see --resume",
    "cache_requests": "not offered: lm-eval keeps that cache pickled",
    "max_batch_size": "only --batch_size auto needs it, which is not offered",
    "check_integrity": "not offered: run lm-eval's own tests",
    **dict.fromkeys(
        ("wandb_args", "wandb_config_args", "trackio_args", "hf_hub_log_args"),
        "not offered: results are plain files, to be uploaded as they are",
    ),
}
_SEVERAL_VALUES = {name: name for name in ("tasks", "task", "model_args", "gen_kwargs", "method_args", "metadata")}
_SEVERAL_VALUES |= {"t": "tasks", "a": "model_args"}
_OPTIONAL_VALUE = ("apply_chat_template", "fewshot_as_multiturn")
