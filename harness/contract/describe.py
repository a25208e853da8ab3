"""What a method says of itself, as data: read off its class, its parameters' annotations and its docstring.

``harness show METHOD`` and the page of the documentation are two renderings of it, so neither can go stale.

A docstring is a summary, then paragraphs. One that opens with a word and a colon (``How:``, ``Paper:``,
``Limits:``, ``Deviations:``, ``Reference:``, or any other) begins a section of that name, and the paragraphs after
it belong to it; ``Parameters:`` describes each field as ``name: text``.
"""

import inspect
import re
from dataclasses import MISSING, Field, dataclass
from typing import Any, get_type_hints

from harness.contract.facts import FACTS
from harness.contract.method import Method, parameters, written

_HEADING = re.compile(r"([A-Z][\w ]{0,30}):(?:\s+|$)")
_ENTRY = re.compile(r" {1,4}(\w+): (.*)")


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter.

    Attributes:
        type: as a person writes it, such as "whole number" or "one of block, mlp".
        range: the values it may take, such as "from 0"; empty where the type says it all.
        default: as the command line writes it; None where a value must be given.
    """

    name: str
    type: str
    range: str
    default: str | None
    text: str


@dataclass(frozen=True)
class Description:
    """A method's documentation.

    Attributes:
        sections: the docstring's other parts by heading, in its order; "" is what follows the summary.
        facts: what the class attributes declare, by question, each answered by a sentence.
        examples: the settings that ``harness check`` tries on small models, mild to strong, as the command line
            writes them.
        neutral: the setting that leaves the model dense bit for bit, if there is one.
    """

    name: str
    family: str
    summary: str
    paper: str | None
    sections: dict[str, str]
    parameters: tuple[Parameter, ...]
    facts: dict[str, str]
    examples: tuple[str, ...]
    neutral: str | None
    source: str


def describe(method: type[Method]) -> Description:
    """The documentation of a method's class; a parameter that the class does not describe, a base class does."""
    summary, sections = _sections(inspect.getdoc(method) or "")
    sections.pop("Parameters", "")
    texts = _parameter_texts(method)
    return Description(
        name=method.name,
        family=str(method.family),
        summary=summary,
        paper=method.paper,
        sections=sections,
        parameters=tuple(_parameter(method, field, texts.get(field.name, "")) for field in parameters(method)),
        facts=_facts(method),
        examples=tuple(method.from_args(dict(example)).label for example in method.examples),
        neutral=None if method.neutral is None else method.from_args(dict(method.neutral)).label,
        source=f"{method.__module__}:{method.__qualname__}",
    )


def _parameter_texts(method: type[Method]) -> dict[str, str]:
    """What the class, its base classes and its mixins say under ``Parameters:``, the nearest first."""
    texts: dict[str, str] = {}
    for base in reversed(method.__mro__):
        _, sections = _sections(inspect.cleandoc(vars(base).get("__doc__") or ""))
        texts |= _entries(sections.get("Parameters", ""))
    return texts


def paper_url(paper: str) -> str | None:
    """Where a paper that is named as arXiv, DOI or address can be read."""
    if paper.startswith("arXiv:"):
        return f"https://arxiv.org/abs/{paper.removeprefix('arXiv:')}"
    if paper.startswith("doi:"):
        return f"https://doi.org/{paper.removeprefix('doi:')}"
    return paper if paper.startswith("https://") else None


def _facts(method: type[Method]) -> dict[str, str]:
    """What the method declares, and whether it is prepared, as answers to a reader's questions."""
    prepares = method.prepare is not Method.prepare
    answers = {fact.question: fact.answer(getattr(method, name)) for name, fact in FACTS.items()}
    return answers | {"preparation": "yes: once per model and calibration text, cached" if prepares else "none"}


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """A docstring's summary, and its other paragraphs by the heading that they stand under."""
    summary, *paragraphs = re.split(r"\n\s*\n", text)
    sections: dict[str, list[str]] = {}
    heading = ""
    for paragraph in paragraphs:
        if opening := _HEADING.match(paragraph):
            heading, paragraph = opening[1], paragraph[opening.end(1) + 1 :]
        sections.setdefault(heading, []).append(paragraph)
    joined = {name: "\n\n".join(parts) for name, parts in sections.items()}
    return " ".join(summary.split()), {
        name: part if name == "Parameters" else _reflowed(part) for name, part in joined.items()
    }


def _reflowed(text: str) -> str:
    """Paragraphs without the line breaks of the source; what stood after a colon now opens a section."""
    joined = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip())
    return joined[:1].upper() + joined[1:]


def _entries(text: str) -> dict[str, str]:
    """``name: text`` entries, continued by lines that are indented further."""
    entries: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if opening := _ENTRY.match(line):
            name, line = opening[1], opening[2]
        if name:
            entries.setdefault(name, []).append(line.strip())
    return {name: " ".join(lines).strip() for name, lines in entries.items()}


def _parameter(method: type[Method], field: "Field[Any]", text: str) -> Parameter:
    kind, allowed = _type(_schema(method, field.name))
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Parameter(field.name, kind, allowed, None if default is MISSING else written(default), text)


def _schema(method: type[Method], name: str) -> dict[str, Any]:
    """A parameter's JSON Schema; empty where its annotation has none."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        schema = TypeAdapter(get_type_hints(method, include_extras=True)[name]).json_schema()
    except PydanticUserError:
        return {}
    resolved: dict[str, Any] = _resolved(schema, schema.pop("$defs", {}))
    return resolved


def _resolved(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with every reference replaced by what it refers to."""
    if isinstance(schema, list):
        return [_resolved(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    referenced = definitions.get(str(schema.get("$ref", "")).rpartition("/")[2], {})
    return {key: _resolved(value, definitions) for key, value in (referenced | schema).items() if key != "$ref"}


_NAMES = {"integer": "whole number", "number": "number", "boolean": "True or False", "string": "text"}
_BOUNDS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}


def _type(schema: dict[str, Any]) -> tuple[str, str]:
    """A JSON Schema as a person would say it: what kind of value, and which of them."""
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"])), ""
    if "const" in schema:
        return f"only {schema['const']}", ""
    if "anyOf" in schema:
        kinds = [_type(part) for part in schema["anyOf"] if part.get("type") != "null"]
        names = [kind for kind, _ in kinds] + ["None"] * (len(kinds) < len(schema["anyOf"]))
        return " or ".join(names), "; ".join(allowed for _, allowed in kinds if allowed)
    if schema.get("type") == "array":
        kind, allowed = _type(schema.get("items", {}))
        return f"{kind}, several written a/b/c", f"each {allowed}" if allowed else ""
    bounds = " ".join(words.format(schema[key]) for key, words in _BOUNDS.items() if key in schema)
    if "multipleOf" in schema:
        bounds = f"{bounds} in steps of {schema['multipleOf']}".strip()
    return _NAMES.get(str(schema.get("type")), "value"), bounds
