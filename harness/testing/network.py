"""No network for the length of a ``with`` block, and a record of who tried."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# every connection and every name look-up of Python code passes through these
_WAYS = (
    (socket.socket, "connect"),
    (socket.socket, "connect_ex"),
    (socket, "getaddrinfo"),
    (socket, "gethostbyname"),
)


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Refuse every connection to a host, and list the attempts; sockets within the machine (AF_UNIX) still work."""
    attempts: list[str] = []
    originals = [getattr(owner, name) for owner, name in _WAYS]
    for (owner, name), original in zip(_WAYS, originals, strict=True):
        setattr(owner, name, _refusal(attempts, original))
    try:
        yield attempts
    finally:
        for (owner, name), original in zip(_WAYS, originals, strict=True):
            setattr(owner, name, original)


def _refusal(attempts: list[str], original: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        inside = isinstance(args[0], socket.socket) and args[0].family not in (socket.AF_INET, socket.AF_INET6)
        if inside:
            return original(*args, **kwargs)
        target = args[1] if isinstance(args[0], socket.socket) else args[0]
        attempts.append(str(target))
        raise OSError(f"no network during the checks: {target}")

    return refuse
