"""A server for looking at a site; the site itself needs none."""

from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness.core.errors import SiteError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


def server(site: Path, port: int) -> ThreadingHTTPServer:
    """A server of the folder on this machine's own address.

    Raises:
        SiteError: no site there, or the port is taken.
    """
    if not (site / "index.html").is_file():
        raise SiteError(f"no site in {site}; `harness site build -o {site}` makes one")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(site)))
    except OSError as error:
        raise SiteError(f"port {port} cannot be used ({error.strerror}); --port 0 takes a free one") from error


def serve(site: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted."""
    with server(site, port) as running:
        say(f"http://127.0.0.1:{running.server_port}/ (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            say("")
