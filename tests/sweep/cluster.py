"""A Ray cluster on this machine: a head without processors, and workers that can be killed one by one."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final
from unittest.mock import patch

import psutil

IP: Final = "127.0.0.2"
"""Where the head is, the workers at those that follow; Ray replaces 127.0.0.1 by the machine's own address."""
_MIB: Final = 2**20
_JOINED: Final = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(0.2)
"""
"""Waits, in a process of its own, until so many machines of the cluster at an address have joined."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        address: where drivers join it.
        workers: the processes of ``ray start --block``, one for each worker machine.
    """

    address: str
    workers: list[subprocess.Popen[bytes]]

    def kill(self, worker: int) -> None:
        """Let a worker machine go away: its raylet first, which its processes end with."""
        for raylet in _raylets(self.workers[worker]):
            raylet.kill()


@contextmanager
def cluster(workers: int, cpus: int = 1) -> Iterator[Cluster]:
    """A head and so many workers of so many processors; the environment names the cluster's token meanwhile.

    Raises:
        TimeoutError: one of them does not start within a minute.
    """
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, variables))
        # a short name: the paths of sockets are limited
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
        port = _free_port()
        head = [IP, "--head", f"--port={port}", "--include-dashboard=false", "--num-cpus=0", f"--temp-dir={folder}"]
        stack.enter_context(_node(*head))
        _wait_until(lambda: _listens(port), "the head")
        worker = [f"--address={IP}:{port}", f"--num-cpus={cpus}"]
        nodes: list[subprocess.Popen[bytes]] = []
        for index in range(workers):  # one after the other: two that start at once may choose the same ports
            nodes.append(stack.enter_context(_node(f"127.0.0.{3 + index}", *worker)))
            _wait_until(lambda: all(map(_raylets, nodes)), "a worker")
            machines = [f"{IP}:{port}", str(2 + index)]
            subprocess.run([sys.executable, "-c", _JOINED, *machines], check=True, timeout=60)
        yield Cluster(f"{IP}:{port}", nodes)


@contextmanager
def _node(ip: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={ip}"]
    command += ["--disable-usage-stats", f"--object-store-memory={75 * _MIB}", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        # never `ray stop`, which ends every Ray of the machine
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((IP, 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((IP, port)) == 0


def _raylets(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [each for each in psutil.Process(node.pid).children(recursive=True) if each.name() == "raylet"]


def _wait_until(is_there: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not is_there():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} of the Ray cluster does not start")
        time.sleep(0.2)
    time.sleep(2)  # it is there before it answers
