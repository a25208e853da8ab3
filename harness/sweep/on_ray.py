"""Workers of a Ray cluster: each an actor, which keeps the process of a local worker on its machine.

Nothing of a worker runs in Ray's own processes, so that nothing global is changed there. The results go to a folder
that all machines share.
"""

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

from harness.core.errors import HarnessError, LostWorkerError, SpecError
from harness.core.files import writing
from harness.run.spec import Job
from harness.sweep import machines
from harness.sweep.items import Item, Outcome
from harness.sweep.local import Process

_THREADS: Final = "OMP_NUM_THREADS"
"""Ray limits it to an actor's processors; but plans are made with all threads (``harness.sweep.threads``)."""
_HANDED_ON: Final = ("HARNESS_", "HF_", "TRANSFORMERS_", "TQDM_", "TOKENIZERS_", _THREADS)
"""Beginnings of the environment variables that a worker has from the sweep's own process."""
_CONNECT_S: Final = 5.0
"""Seconds that a cluster's head has to answer."""
_PLACING_S: Final = 10.0
"""How often it is looked whether a machine is left where a worker can be."""


@dataclass(frozen=True)
class Ray:
    """Workers of a cluster that runs already.

    Attributes:
        results: the folder of results, on all machines.
        workers: how many work on scores at once.
        resources: what each asks for, by Ray's names.
        measuring: how many measure costs at once, each alone on one.
        threads: that each computes scores with: as many as the processors that it asks for, unless the user says.
        kind: of the machines that they are on: runs on others have other ids, and are not compared with these.
        notes: what a user must know, in sentences.
    """

    results: Path
    workers: int
    measuring: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None
    kind: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def joined(cls, address: str, results: Path, workers: int | None, resources: Mapping[str, Any]) -> Self:
        """Join the cluster at an address.

        Args:
            workers: else as many as the GPUs of the cluster take, or one for each machine.

        Raises:
            HarnessError: no Ray here, no cluster there, or too little of the resources on its machines.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise HarnessError(
                "--launcher ray needs Ray, which is not installed: pip install 'efficiency-harness[ray]'"
            ) from error
        for name, amount in resources.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
                raise SpecError(f"resources: {name}={amount!r} is not valid: expected a number from 0")
        try:
            host = _reached(address)
            # a cluster on one machine has several nodes here: the sweep joins the head's, which no worker ends with
            own = {"_node_ip_address": host} if host.startswith("127.") else {}
            ray.init(address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True, **own)
        except Exception as error:  # Ray raises of many kinds
            raise HarnessError(
                f"no Ray cluster can be joined at {address} ({' '.join(str(error).split())[:200]}): start one with "
                "`ray start --head`, or give its --address"
            ) from error
        every = machines.machines()
        has_gpus = any(has.get("GPU") for has in every.values())
        asked = dict(resources) or {"num_cpus": 1, **({"num_gpus": 1} if has_gpus else {})}
        able = machines.able(every, asked)
        kinds = machines.kinds(able, asked)
        kind = machines.most(kinds)
        alike = {node: able[node] for node in kinds if kinds[node] == kind}
        room = machines.room(alike, asked)
        if workers is not None and workers > room:  # the others would be waited for without end
            raise HarnessError(
                f"the Ray cluster has room for {room} workers with {machines.written(asked)}: give --workers {room}"
            )
        notes = []
        if left_out := len(able) - len(alike):
            notes.append(
                f"{len(alike)} machines have {kind.partition(',')[0]}; {left_out} with something else are left out, as "
                "runs there could not be compared with these: --resources can ask for them"
            )
        shared = "num_cpus" in asked and _THREADS not in os.environ
        threads = max(int(asked["num_cpus"]), 1) if shared else None
        workers = workers or (room if asked.get("num_gpus") else len(alike))
        return cls(results.resolve(), workers, len(alike), asked, threads, kind, tuple(notes))

    @contextmanager
    def worker(self, number: int, *, alone: bool = False) -> Iterator["Actor"]:
        """An actor for the length of a ``with`` block; ``alone`` it asks for all processors and GPUs of a machine.

        Raises:
            HarnessError: no machine is left where it can be.
        """
        import ray

        options, nodes = _options(self.resources), self._nodes()
        if alone:
            node, has = list(nodes.items())[number % len(nodes)]
            nodes = {node: has}
            options |= {name: has.get(named, 0) for name, named in machines.NAMED.items()}
        if alone or self.notes:
            options["label_selector"] = {"ray.io/node-id": f"in({','.join(nodes)})"}
        environment = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)}
        threads = None if alone else self.threads
        handle = ray.remote(Host).options(max_restarts=0, **options).remote(str(self.results), environment, threads)
        actor = Actor(handle, self.results, self._nodes)
        try:
            yield actor
        finally:
            actor.stop()

    def _nodes(self) -> dict[str, Mapping[str, float]]:
        """The machines that a worker can be on.

        Raises:
            HarnessError: none is left.
        """
        able = machines.able(machines.machines(), self.resources)
        kinds = machines.kinds(able, self.resources)
        alike = {node: able[node] for node, kind in kinds.items() if kind == self.kind}
        if not alike:
            raise HarnessError(f"no machine of the Ray cluster with {self.kind.partition(',')[0]} is left")
        return alike


@dataclass(eq=False)
class Actor:
    """The sweep's end of a worker on the cluster."""

    handle: Any
    results: Path
    nodes: Callable[[], object]
    _is_checked: bool = field(default=False, init=False)
    _job: Job | None = field(default=None, init=False)

    def carry_out(self, item: Item) -> Outcome:
        """What came of an item, made on the actor's machine; its job is sent once."""
        if not self._is_checked:
            self._check()
        plain = item.model_dump_json(exclude={"job"} if item.job == self._job else None)
        answer, log = self._answer(self.handle.carry_out.remote(plain))
        if log is not None:
            raise LostWorkerError(answer, log)
        self._job = item.job
        return Outcome.model_validate_json(answer)

    def stop(self) -> None:
        """End it; its process ends with it."""
        import ray

        with suppress(Exception):  # it is gone, or Ray is
            ray.kill(self.handle)

    def _check(self) -> None:
        """Wait until it is on a machine, and refuse one that does not see the folder of results."""
        import ray

        marker = self.results / f".seen-{secrets.token_hex(4)}"
        with writing(marker):
            marker.touch()
        try:
            reference = self.handle.sees.remote(str(marker))
            while not ray.wait([reference], timeout=_PLACING_S)[0]:
                self.nodes()  # refused once none is left
            machine, sees = self._answer(reference)
        finally:
            marker.unlink(missing_ok=True)
        if not sees:
            raise HarnessError(
                f"the machine {machine} does not see {self.results}: give an --output_path that all machines share"
            )
        self._is_checked = True

    def _answer(self, reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            what = lines[0].partition(": ")[0] if lines else type(error).__name__
            raise LostWorkerError(f"the worker was lost ({what})") from error


class Host:
    """What runs in an actor: it hands items to the process of a local worker on its machine."""

    def __init__(self, results: str, environment: dict[str, str], threads: int | None) -> None:
        self._folder = TemporaryDirectory(prefix="harness-sweep-")
        own = {name: value for name, value in os.environ.items() if name != _THREADS}
        self._process = Process(Path(results), Path(self._folder.name) / "log", {**own, **environment}, threads)
        self._job: Job | None = None

    def sees(self, marker: str) -> tuple[str, bool]:
        """The machine's name, and whether it has a file."""
        return os.uname().nodename, Path(marker).exists()

    def carry_out(self, plain: str) -> tuple[str, bytes | None]:
        """The outcome of an item, both as JSON; or how the process ended, with its log."""
        item = Item.model_validate({"job": self._job, **json.loads(plain)})
        self._job = item.job
        try:
            return self._process.carry_out(item).model_dump_json(), None
        except LostWorkerError as lost:
            return str(lost), lost.log


def _reached(address: str) -> str:
    """The host of an address; where nobody listens there, which Ray would wait for, that is found out at once.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    return host


def _options(asked: Mapping[str, float]) -> dict[str, Any]:
    """What a worker asks for, as an actor's options."""
    named = {name: amount for name, amount in asked.items() if name in {*machines.NAMED, "memory"}}
    own = {name: amount for name, amount in asked.items() if name not in named}
    return {**named, **({"resources": own} if own else {})}
