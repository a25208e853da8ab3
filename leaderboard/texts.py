"""One rule for every text of a submission: what is read is what is written.

Letters of one script in a word, no control and no direction mark, nothing that takes no space, few marks on a letter, a
bounded length. A command is only ever shown: one line, the program's own name first, nothing that a shell acts on.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import groupby
from typing import Any, Final

from harness.leaderboard.strict_json import KEY, Path, leaves

LONGEST_NAME, LONGEST, LONGEST_CONFIGURATION = 300, 4_000, 100_000  # characters
PROGRAM: Final = "harness"
_MOST_MARKS: Final = 3  # on one letter
_NAMES: Final = {
    "label",
    "name",
    "family",
    "pretrained",
    "device_name",
    "cpu_model",
    "task",
    "metric",
    "filter",
    "license",
}
"""Fields of a record that are shown as names, in which nothing may look like markup or like another script."""
_CONFIGURATION: Final = {"tasks", "system_instruction", "gen_kwargs", "score_suffix"}
"""Sections that hold prompts, in several lines."""
_FREE: Final = {"target", "answer", "responses", "filtered"}
"""Fields of a document that hold texts of data sets and of models."""
_BLANK: Final = set("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_EAST_ASIAN: Final = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO", "HANGUL", "IDEOGRAPHIC"}
_LATIN_ALIKE: Final = set(
    "аеорсухіјѕԁһԛԝьвкмнтАВЕКМНОРСТУХІЈЅԌԚԜ" + "οανρυτκιχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧ" + "օոսցհԼՕ" + "ᎠᎡᎢᎥᎦᎪᎫᎬᎳᎵᎷᎻᏀᏃᏒᏙᏚᏟᏴ"
)
"""Letters of Cyrillic, Greek, Armenian and Cherokee that read as Latin ones."""
_QUOTED: Final = re.compile(r"'[^']*'|\"'\"")
_LONG: Final = re.compile(rf'[^"]{{{LONGEST_NAME + 1}}}')  # between two quotes
_UNQUOTED: Final = re.compile(r"[\w@%+=:,./ -]*", re.ASCII)


def problems(value: Any, *, free: bool = False) -> Iterator[str]:
    """What is wrong with the texts and keys of a JSON value, each with its place.

    Args:
        free: the value is a document, whose texts may be those of a data set or of a model.
    """
    if free and _is_plain_line(value):
        return
    for path, text in leaves(value):
        if isinstance(text, str) and not _is_plain(path, text) and (problem := _problem(path, text, free=free)):
            yield f"{_place(path)}: {problem}"


def cleaned(value: Any) -> Any:
    """The value with U+FFFD in the place of every character that the rule refuses: texts of models and data sets."""
    if isinstance(value, str):
        if value.isascii() and value.isprintable():
            return value
        return "".join(_clean_word(word) for word in _words(value))
    if isinstance(value, list | tuple):
        return [cleaned(each) for each in value]
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(each) for key, each in value.items()}
    return value


def command_problem(text: str) -> str | None:
    """Why a text cannot stand for a command of this program."""
    if text.partition(" ")[0] != PROGRAM:
        return f"a command begins with {PROGRAM!r}, not with {text[:40]!r}"
    if not _UNQUOTED.fullmatch(_QUOTED.sub("", text)):
        return "a command has something that a shell acts on outside of quotes"
    return None


def _is_plain_line(line: Any) -> bool:
    """Whether every text of a document is beyond doubt: printable ASCII, and none of them long."""
    text = json.dumps(line)
    return (
        "\\" not in text
        and "<" not in text
        and text.isprintable()
        and not _LONG.search(text)
        and '"command"' not in text
    )


def _is_plain(path: Path, text: str) -> bool:
    """Whether a text is beyond doubt in any field: most are, and there are many."""
    is_short = len(text) <= LONGEST_NAME and text.isascii() and text.isprintable()
    return is_short and "<" not in text and ">" not in text and path[-1] != "command"


def _problem(path: Path, text: str, *, free: bool) -> str | None:
    parts = set(path)
    field = path[-1] if path else ""
    is_configuration = bool(parts & _CONFIGURATION) or (free and bool(parts & _FREE))
    is_name = not free and field in _NAMES and not is_configuration
    most = LONGEST_CONFIGURATION if is_configuration else LONGEST_NAME if is_name or field == KEY else LONGEST
    if field == "command":
        most = LONGEST_CONFIGURATION
    if len(text) > most:
        return f"a text of {len(text):,} characters; at most {most:,} are read"
    if field == "command" and not is_configuration and (problem := command_problem(text)):
        return problem
    if is_name and any(char in text for char in "<>"):
        return f"the name contains markup: {text!r:.80}"
    shown = text.replace("\n", "").replace("\t", "") if is_configuration else text
    if text.isascii() and shown.isprintable():
        return None
    for word in _words(text):
        if problem := _word_problem(word, lines=is_configuration, name=is_name):
            return f"{problem} in {text!a:.80}"
    return None


def _words(text: str) -> Iterator[str]:
    """The text in pieces: runs of letters with their marks, and runs of everything else."""
    for _, chars in groupby(text, key=lambda char: unicodedata.category(char)[0] in "LM"):
        yield "".join(chars)


def _word_problem(word: str, *, lines: bool, name: bool) -> str | None:
    marks = 0
    for char in word:
        if problem := _char_problem(char, lines=lines):
            return problem
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        if marks > _MOST_MARKS:
            return f"more than {_MOST_MARKS} marks on a letter"
    scripts = {script for char in word if (script := _script(char))}
    if len(scripts) > 1:
        return f"letters of {' and '.join(sorted(scripts)).title()} in one word"
    if name and scripts and all(char in _LATIN_ALIKE for char in word):
        return "a name of letters that look like Latin ones"
    return None


def _clean_word(word: str) -> str:
    plain, marks = "", 0
    for char in word:
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        plain += "\N{REPLACEMENT CHARACTER}" if _char_problem(char, lines=True) or marks > _MOST_MARKS else char
    if len({script for char in plain if (script := _script(char))}) > 1:
        return "".join(char if char.isascii() else "\N{REPLACEMENT CHARACTER}" for char in plain)
    return plain


@cache
def _char_problem(char: str, *, lines: bool) -> str | None:
    if char in "\n\t" and lines:
        return None
    category = unicodedata.category(char)
    if category == "Cf":
        return f"an invisible or direction mark (U+{ord(char):04X})"
    if category[0] == "C" or category in ("Zl", "Zp"):
        return f"a control or unassigned character (U+{ord(char):04X})"
    is_selector = 0xFE00 <= ord(char) <= 0xFE0F or 0xE0100 <= ord(char) <= 0xE01EF or 0x180B <= ord(char) <= 0x180F
    if char in _BLANK or is_selector or (category == "Zs" and char != " " and not lines):
        return f"a character that shows as nothing (U+{ord(char):04X})"
    if category[0] == "L" and unicodedata.decomposition(char).startswith(("<font>", "<wide>", "<narrow>", "<circle>")):
        return f"a letter in another guise (U+{ord(char):04X})"
    return None


@cache
def _script(char: str) -> str | None:
    """The script of a letter by its name; None of what is no letter, or of any script."""
    if unicodedata.category(char)[0] != "L":
        return None
    plain = unicodedata.normalize("NFKC", char)[:1] or char
    script = unicodedata.name(plain, "UNKNOWN").split()[0]
    if script in ("MODIFIER", "FEMININE", "MASCULINE"):
        return None
    return "EAST ASIAN" if script in _EAST_ASIAN else script


def _place(path: Path) -> str:
    shown = ".".join(ascii(part)[1:-1][:40] for part in path if part != KEY)
    return f"a key of {shown or 'the file'}" if path and path[-1] == KEY else shown
