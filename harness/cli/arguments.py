"""Values as lm-eval writes them on the command line, and YAML files in place of flags."""

import ast
import json
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any

import typer

from harness.core.errors import HarnessError, UnknownNameError
from harness.core.files import parse_json

_DIGITS = 10
"""Digits from which a number is no batch size."""


def key_values(option: str, given: Iterable[str], *, read: bool = True) -> dict[str, Any]:
    """``k=v,k=v``, several of them, or a JSON object; values are read as Python or JSON would, or left as text.

    Raises:
        HarnessError: something that is not key=value.
    """
    parsed: dict[str, Any] = {}
    for text in given:
        if text.lstrip().startswith("{"):
            parsed |= _json(option, text)
            continue
        for item in _split(text):
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                raise HarnessError(f"{option}: expected key=value, got {item!r}")
            parsed[key.strip()] = _value(value.strip()) if read else value.strip()
    return parsed


def names(given: Iterable[str]) -> tuple[str, ...]:
    """Comma- or space-separated names."""
    return tuple(name for text in given for name in text.replace(",", " ").split())


def samples(text: str | None) -> dict[str, list[int]] | None:
    """``--samples``: a JSON object of task names to document indices, or a file that holds one.

    Raises:
        HarnessError: not such an object.
    """
    if not text:
        return None
    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HarnessError(f"--samples: neither a JSON object nor a file that can be read: {error}") from error
    parsed = _json("--samples", text)
    for task, indices in parsed.items():
        if not isinstance(indices, list) or not all(type(index) is int and index >= 0 for index in indices):
            raise HarnessError(f"--samples: {task} needs a list of document indices, got {indices!r}")
    return parsed


def batch_sizes(given: Iterable[str]) -> tuple[int, ...]:
    """``--throughput``: batch sizes, each once, in any order.

    Raises:
        HarnessError: none, something that is no whole number from 1, or a size that is given twice.
    """
    expected = "expected batch sizes, whole numbers from 1 such as 1,8,64"
    if not (written := names(given)):
        raise HarnessError(f"--throughput: {expected}, got none")
    for text in written:
        if not (text.isascii() and text.isdecimal() and len(text) < _DIGITS and int(text)):
            raise HarnessError(f"--throughput {text:.30}: {expected}")
    sizes = tuple(map(int, written))
    for size in sizes:
        if sizes.count(size) > 1:
            raise HarnessError(f"--throughput: batch size {size} is given more than once: give each once")
    return sizes


def above_zero(option: str, given: float | None, what: str) -> float | None:
    """A number, if one was given.

    Raises:
        HarnessError: not a finite number above 0.
    """
    if given is not None and not (isfinite(given) and given > 0):
        raise HarnessError(f"{option} {given:g}: expected {what} above 0")
    return given


def finite(option: str, given: float | None) -> float | None:
    """A number, if one was given.

    Raises:
        HarnessError: infinity, or no number.
    """
    if given is not None and not isfinite(given):
        raise HarnessError(f"{option} {given:g}: expected a finite number")
    return given


def seeds(text: str) -> tuple[int | None, int | None, int | None, int | None]:
    """``--seed``: one number for all, or four for Python, numpy, torch and few-shot sampling; None leaves one unset.

    Raises:
        HarnessError: neither one nor four numbers.
    """
    parts = [part.strip() for part in str(text).split(",")]
    try:
        values = [None if part == "None" else int(part) for part in parts]
    except ValueError as error:
        raise HarnessError(f"--seed {text}: expected one whole number or four separated by commas") from error
    if len(values) == 1:
        values *= 4
    if len(values) != 4:
        raise HarnessError(f"--seed {text}: expected one number or four, got {len(values)}")
    return values[0], values[1], values[2], values[3]


def from_yaml(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of a command from a YAML file whose keys are the flags' names; flags given win.

    Raises:
        HarnessError: unreadable, or not a mapping.
        UnknownNameError: a key that is no flag.
    """
    if path is None:
        return None
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise HarnessError(f"--config {path}: cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise HarnessError(f"--config {path}: expected a mapping of flags to values")
    flags = {
        option.lstrip("-"): parameter
        for parameter in context.command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }
    defaults: dict[str, Any] = {}
    for key, value in given.items():
        flag = str(key).replace("-", "_")
        if flag not in flags:
            raise UnknownNameError(f"key in {path}", str(key), flags, see="Keys are the names of flags.")
        parameter = flags[flag]
        if f"--{flag}" in parameter.secondary_opts and value is not None:  # no_baseline: true is baseline: false
            if not isinstance(value, bool):
                raise HarnessError(f"--config {path}: {key}: expected true or false, got {value!r}")
            value = not value
        if value is not None and parameter.name:
            defaults[parameter.name] = _written(value, many=parameter.multiple)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _written(value: Any, *, many: bool) -> Any:
    """A YAML value as the flag would have been given it."""
    if isinstance(value, dict):
        text = json.dumps(value, default=str)  # YAML has dates
        return [text] if many else text
    if isinstance(value, list) and not many:
        return ",".join(str(item) for item in value)
    if many:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return value


def _json(option: str, text: str) -> dict[str, Any]:
    try:
        parsed = parse_json(text)
    except ValueError as error:
        raise HarnessError(f"{option}: not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise HarnessError(f"{option}: expected a JSON object")
    return parsed


def _split(text: str) -> list[str]:
    """Split at commas that are outside brackets and quotes: ``stop=["a","b"],temperature=0``."""
    items, depth, quote, start = [], 0, "", 0
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            items.append(text[start:index])
            start = index + 1
    return [item for item in [*items, text[start:]] if item.strip()]


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two for what is nested too deeply
        return text
