"""``harness rm RUN...``: remove runs from a results folder."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from harness.core.errors import HarnessError, StoreError
from harness.core.text import printable

if TYPE_CHECKING:
    from harness.results.store import RunFolder, Store


def rm(
    names: Annotated[list[str], Argument(metavar="RUN...", help="Runs: ids, beginnings of ids, names, or folders.")],
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of results.")] = Path("runs"),
) -> None:
    """Remove runs of a results folder, after asking; nothing else, and nothing that a link leads to."""
    from harness.results.store import Store

    store = Store(output_path)
    folders = list({folder.path: folder for folder in (_run(store, name) for name in names)}.values())
    if not yes:
        for folder in folders:
            typer.echo(printable(f"{folder.path}{_compared(store, folders, folder)}"), err=True)
        what = "this run" if len(folders) == 1 else f"these {len(folders)} runs"
        if not typer.confirm(f"Remove {what}?", err=True):
            raise typer.Exit(1)
    for folder in folders:
        _remove(folder)
        typer.echo(printable(f"removed {folder.path}"))


def _run(store: "Store", name: str) -> "RunFolder":
    """A run that may be removed.

    Raises:
        HarnessError: it is a link, lies elsewhere, or is no run.
    """
    from harness.results.store import RunFolder

    if Path(name).is_symlink():
        raise StoreError(f"{name} is a link: give the run itself")
    path = store.find(name).path
    folder = RunFolder(path)
    if path.is_symlink():
        raise StoreError(f"{path} is a link: give the run itself")
    if path.resolve().parent != store.root.resolve():
        raise StoreError(f"{path} does not lie in {store.root}/: give its results folder by --output_path")
    if path.resolve() not in {each.path.resolve() for each in store.folders()} or not folder.is_run:
        raise StoreError(f"{path} is no run: nothing of it is removed")
    return folder


def _compared(store: "Store", folders: "list[RunFolder]", folder: "RunFolder") -> str:
    """How many runs would lose the dense run that they are compared with."""
    gone = {each.path for each in folders}
    count = 0
    for each in store.folders():
        if each.path not in gone and each.finished:
            try:
                baseline = each.record().baseline
            except StoreError:
                continue
            count += baseline is not None and baseline.run_id == folder.id
    return f" ({count} other run{'s are' if count > 1 else ' is'} compared with it)" if count else ""


def _remove(folder: "RunFolder") -> None:
    """Take a run out of its results folder at once, then its files; of a link among them, the link alone."""
    from filelock import FileLock, Timeout

    from harness.core.files import writing

    lock = FileLock(f"{folder.journal(0)}.lock")
    gone = folder.path.with_name(f".{folder.path.name}.removed")
    with writing(folder.path):
        try:
            if folder.busy:  # a part of it, too
                raise Timeout(lock.lock_file)
            with lock.acquire(blocking=False):
                folder.path.rename(gone)
        except Timeout as error:
            raise HarnessError(f"{folder.path} is being computed by another process: stop that first") from error
        shutil.rmtree(gone)
