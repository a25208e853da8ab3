"""What a recommendation is made of: the runs that are there, and those that are made when they are asked for."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, StoreError, UnknownNameError
from harness.reports.recommend import Advice, Judged, advise, groups
from harness.reports.rows import Record, Row
from harness.results.budgets import Budget, measures
from harness.results.model_names import dense_of
from harness.results.store import RunFolder, Store


@dataclass
class Asked:
    """A question about a model and a task, put to the runs of a folder.

    Attributes:
        unreadable: why runs were left out.
    """

    store: Store
    pretrained: str
    task: str
    budgets: tuple[Budget, ...]
    unreadable: list[str] = field(default_factory=list, init=False)
    _records: list[Record] = field(default_factory=list, init=False)

    def advice(self) -> list[Advice]:
        """What the runs say, group by group; nothing where there are none."""
        from harness.run.renewal import renew_stored

        folders, self._records, self.unreadable = dict[str, RunFolder](), [], []
        for folder in self.store.folders():
            if not folder.finished:
                continue
            try:
                record = folder.record().model_dump(mode="json")
                if self._is_asked(record) and record["evaluation"]["task"] == self.task:
                    renew_stored(self.store, folder)
                    record = folder.record().model_dump(mode="json")
            except StoreError as error:
                self.unreadable.append(str(error))
                continue
            self._records.append(record)
            folders[folder.id] = folder
        of_model = [record for record in self._records if self._is_asked(record)]
        return [advise(folders, group, self.budgets) for group in groups(of_model, self.task)]

    def nothing(self) -> HarnessError:
        """What to say where no run answers, with the command that makes some."""
        make = f"Make runs: {self.command(['layer-drop'])}"
        models = {str(dense_of(record["model"])["name"]) for record in self._records}
        if not self._records:
            return StoreError(f"there are no runs in {self.store.root}. {make}")
        if not any(map(self._is_asked, self._records)):
            return UnknownNameError("model among the runs", self.pretrained, models, see=make)
        tasks = {record["evaluation"]["task"] for record in self._records if self._is_asked(record)}
        if self.task in tasks:
            return HarnessError(f"no run of dense on {self.task}, beside which others are judged. {make}")
        return UnknownNameError(f"task among the runs of {self.pretrained}", self.task, tasks, see=make)

    def command(self, methods: Iterable[str]) -> str:
        """What makes runs of methods that answer."""
        given = [word for method in methods for word in ("--method", method)]
        measure = ",".join(measures(budget.cost for budget in self.budgets))
        is_published = any(folder.packed for folder in self.store.folders())
        where = [] if str(self.store.root) == "runs" or is_published else ["--output_path", str(self.store.root)]
        named = ["--task", self.task, "--pretrained", self.pretrained, "--measure", measure]
        return shlex.join(["harness", "run", *given, *named, *where])

    def reproduction(self, judged: Judged) -> str:
        """The command that makes a run again."""
        record = judged.row.record
        return str(record["command"]) if record["command"] else self.command([record["method"]["label"]])

    def measurement(self, judged: Judged) -> str:
        """The command that measures what a run lacks; all of it again where what was measured is in doubt."""
        is_in_doubt = any(verdict.against is not None for verdict in judged.verdicts if verdict.state == "unknown")
        again = ["--no_resume"] if is_in_doubt else []
        return shlex.join([*self._measuring(self.reproduction(judged)), *again])

    def beside(self, dense: Row, method: str) -> str:
        """The command that makes a method's run as the dense run was asked, to be compared with those of its group."""
        command = dense.record["command"]
        if not command:
            return self.command([method])
        words = self._measuring(command)
        place = words.index("--method") + 1 if "--method" in words else 0
        if place:
            words[place] = method
        else:
            words[2:2] = ["--method", method]
        return shlex.join(words)

    def _measuring(self, command: str) -> list[str]:
        """A command with what the budgets are about among what it measures."""
        words = shlex.split(command)
        place = words.index("--measure") + 1 if "--measure" in words else len(words)
        known = words[place].split(",") if place < len(words) else []
        wanted = dict.fromkeys([*known, *measures(budget.cost for budget in self.budgets)])
        words[place - 1 if known else place : place + 1] = ["--measure", ",".join(wanted)]
        return words

    def _is_asked(self, record: Record) -> bool:
        """Whether a run is of the model, by any name that it has."""
        model = dense_of(record["model"])
        names = {str(model["name"]), str(model["pretrained"]), Path(str(model["pretrained"])).name}
        return self._names & {name.lower() for name in names} != set()

    @cached_property
    def _names(self) -> set[str]:
        """The model's name, and its title where it is a short one."""
        from harness.model.known import KNOWN

        title = {KNOWN[self.pretrained].title} if self.pretrained in KNOWN else set()
        return {name.lower() for name in {self.pretrained, *title}}


def make(asked: Asked, advice: Sequence[Advice], methods: Sequence[str], include_path: str | None) -> None:
    """Make the runs of methods, and measure what those that are there lack, as the largest group was asked.

    Raises:
        HarnessError: nothing is to be made, or a run's settings cannot be had again.
    """
    from harness.cli.sweep_display import Lines
    from harness.sweep.board import Board
    from harness.sweep.grid import Grid
    from harness.sweep.local import Local
    from harness.sweep.request import asked as request_of
    from harness.sweep.sweep import Sweep

    lacking = [
        each.row.record["method"]["label"]
        for each in (advice[0].unknown if advice else [])
        if not each.row.record["method"]["files"] and any(verdict.against is None for verdict in each.verdicts)
    ]
    if not (lacking or methods):
        raise HarnessError(f"nothing is known to be missing: name methods, as in {asked.command(['layer-drop'])}")
    settings = _settings(advice[0].dense.record) if advice else {"pretrained": asked.pretrained, "task": asked.task}
    given = {
        **settings,
        "methods": [*lacking, *methods],
        "measure": measures(budget.cost for budget in asked.budgets),
        **({"include_path": include_path} if include_path else {}),
    }
    screen, launcher = Lines(), Local.here(asked.store.root, None, given.get("device"))
    grid = Grid(request_of(given), asked.store, screen)
    grid.check()
    board = Board(launcher.workers)
    Sweep(grid, asked.store, launcher, screen, board).run()
    for name, reason in screen.failures:
        print(f"{name} failed: {reason}", file=sys.stderr)  # noqa: T201


def _settings(record: Record) -> dict[str, Any]:
    """What a run was asked, from fields of known meaning alone: a record's command is shown and never run.

    Raises:
        HarnessError: its calibration text is none of the task's, nor the bundled one.
    """
    from harness.leaderboard.rerun import asked_text

    evaluation, model = record["evaluation"], record["model"]
    calibration = asked_text(record)
    if calibration is None:
        raise HarnessError(f"{record['id']} has a calibration text of its own: give its command, `harness show` has it")
    flags = ("num_fewshot", "batch_size", "limit", "samples", "gen_kwargs", "apply_chat_template", "score_suffix")
    settings = {
        "task": evaluation["task"],
        "pretrained": model["pretrained"],
        "model_args": model["args"],
        "seeds": [",".join(map(str, evaluation["seeds"]))],
        "system_instruction": evaluation["system_instruction"],
        "score_mode": None if evaluation["score_mode"] == "lm-eval" else evaluation["score_mode"],
        "calibration": calibration,
        "device": record["environment"]["device"],
        **{name: evaluation[name] for name in flags},
    }
    return {name: setting for name, setting in settings.items() if setting not in (None, {})}
