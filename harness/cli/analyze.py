"""``harness analyze``: what attention does and costs on a model, and what stored runs say of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer import Argument, Option

from harness.core.errors import HarnessError, SpecError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.run.session import Session

PARTS: Final = ("layers", "split", "length", "kept")
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _analyze() -> None:
    """What attention does and costs, layer by layer and length by length."""


@app.command("attention")
def attention(
    parts: Annotated[
        list[str] | None,
        Argument(
            help="layers: entropy and sinks of every layer. split: a decode step's keys split among threads. length: "
            "the context from which a method costs less than dense. kept: quality against kept cache, of stored runs. "
            "Without any: layers and split."
        ),
    ] = None,
    method: Annotated[
        list[str] | None, Option("--method", "-m", help="length: name, or name:key=value,... Repeatable.")
    ] = None,
    pretrained: Annotated[
        str, Option("--pretrained", help="A folder, a GGUF file, a name of the hub, or one of `harness ls models`.")
    ] = "pocket",
    model_args: Annotated[
        list[str] | None, Option("--model_args", "-a", help="key=value,... as lm-eval takes them.")
    ] = None,
    device: Annotated[str | None, Option("--device", help="cpu, cuda, cuda:0, ...; a GPU where there is one.")] = None,
    task: Annotated[
        str, Option("--task", "-t", help="The task whose training split is read, and methods prepare on.")
    ] = "pocket_recall",
    include_path: Annotated[str | None, Option("--include_path", help="A folder with your own lm-eval tasks.")] = None,
    tokens: Annotated[int | None, Option("--tokens", min=16, help="layers: tokens of a text; 1,024 if it can.")] = None,
    documents: Annotated[int, Option("--documents", min=1, help="layers: texts that are read.")] = 4,
    sinks: Annotated[int, Option("--sinks", min=1, help="layers: first keys whose share is told.")] = 4,
    window: Annotated[int, Option("--window", min=1, help="layers: last keys whose share is told.")] = 64,
    lengths: Annotated[
        str | None, Option("--lengths", help="split, length: such as 256,1024; doubled from 256 if not given.")
    ] = None,
    workers: Annotated[int | None, Option("--workers", min=1, help="split: threads; torch's if not given.")] = None,
    tile: Annotated[int, Option("--tile", min=1, help="split: keys of a tile.")] = 256,
    new_tokens: Annotated[int, Option("--new_tokens", min=2, help="length: tokens written after a context.")] = 17,
    rounds: Annotated[int, Option("--rounds", min=6, help="split, length: rounds in which all take turns.")] = 6,
    results: Annotated[Path, Option("--results", help="kept: folder of results.")] = Path("runs"),
    output_path: Annotated[
        Path | None, Option("--output_path", "-o", help="A folder for the figures (SVG, PNG) and tables (CSV).")
    ] = None,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Say where attention goes, what splitting its keys saves, and from which length a method costs less than dense."""
    from harness.cli import analyze_parts, analyze_tables, arguments

    wanted = _wanted(parts or [])
    if "length" in wanted and not method:
        raise SpecError("length: give --method NAME, whose costs are compared with dense's")
    if output_path is not None:
        from harness.reports.report import require_libraries

        require_libraries()
    given = None if lengths is None else _lengths(lengths)
    analysis: dict[str, list[dict[str, Any]]] = {}
    if "kept" in wanted:
        analysis["kept"] = analyze_parts.kept(results)
    if set(wanted) - {"kept"}:
        session = _session(
            methods=tuple(method or ()) if "length" in wanted else (),
            tasks=(task,),
            pretrained=pretrained,
            model_args=arguments.key_values("--model_args", model_args or []),
            device=device,
            include_path=include_path,
            offline=offline,
        )
        # what can be refused is looked at before anything is measured
        at = analyze_parts.lengths_of(session, given, new_tokens) if {"split", "length"} & set(wanted) else []
        size = analyze_parts.text_size(session, tokens) if "layers" in wanted else 0
        if "layers" in wanted:
            analysis["layers"] = analyze_parts.layers(session, size, documents, sinks, window)
        if "split" in wanted:
            analysis["split"] = analyze_parts.split(session, at, tile, workers, rounds)
        if "length" in wanted:
            analysis["length"] = analyze_parts.length(session, at, new_tokens, rounds)
    ordered = {name: analysis[name] for name in wanted}
    written = [] if output_path is None else _written(ordered, output_path)
    if as_json:
        print(json.dumps(ordered, indent=2))  # noqa: T201
        return
    analyze_tables.show_all(ordered, sinks=sinks, window=window)
    if written:
        typer.echo(f"{len(written)} files in {output_path}/")


def _wanted(parts: "Sequence[str]") -> list[str]:
    for name in parts:
        if name not in PARTS:
            raise UnknownNameError("part", name, PARTS, see=f"There are {', '.join(PARTS)}.")
    return list(dict.fromkeys(parts)) or ["layers", "split"]


def _lengths(text: str) -> list[int]:
    """``--lengths``: whole numbers, each once, in any order.

    Raises:
        SpecError: something else.
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdecimal() and 0 < int(word) < 10**9 for word in words):
        raise SpecError(f"--lengths {text:.40}: expected whole numbers above 0, such as 256,512,1024")
    return sorted({int(word) for word in words})


def _session(*, offline: bool, **settings: Any) -> "Session":
    """A session whose runs are never carried out: it has the model, the methods and the task's text."""
    from harness.cli.display import Reporter
    from harness.cli.run import build_job
    from harness.evaluate import quiet

    quiet.silence(None, offline=offline)
    job = build_job(baseline=True, **settings)
    from harness.results.store import Store
    from harness.run.session import Session

    return Session(job, Store(Path("runs")), Reporter())


def _written(analysis: dict[str, list[dict[str, Any]]], folder: Path) -> list[Path]:
    from harness.core.files import writing
    from harness.reports.attention import plots
    from harness.reports.report import write_plot

    if not any(analysis.values()):
        raise HarnessError(f"--output_path {folder}: nothing was found that could be drawn")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return [path for plot in plots(analysis) for path in write_plot(plot, folder / plot.name)]
