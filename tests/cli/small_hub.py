"""A hub of a few files on this machine's own address: enough of its protocol for real downloads without a network."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    root: Path

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        folder = self._folder(unquote(urlsplit(self.path).path).removeprefix("/api/"))
        found = [self._listed(folder, folder / path) for path in body["paths"] if (folder / path).is_file()]
        self._send(json.dumps(found).encode())

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/"):
            folder = self._folder(path.removeprefix("api/"))
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            if not files:
                self._send(b"{}", status=404, code="RepoNotFound")
            elif "/tree/" in path:
                inside = folder / path.partition(f"/tree/{COMMIT}")[2].strip("/")
                recursive = "recursive=true" in self.path.lower()
                listed = sorted(inside.rglob("*") if recursive else inside.iterdir())
                self._send(json.dumps([self._listed(folder, each) for each in listed]).encode())
            else:
                names = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
                info = {"id": folder.name, "sha": COMMIT, "siblings": names, "private": False, "tags": []}
                self._send(json.dumps(info).encode())
            return
        repo, _, file = path.partition("/resolve/")
        target = self._folder(repo) / file.partition("/")[2]
        if target.is_file():
            self._send(target.read_bytes())
        else:
            self._send(b"", status=404, code="EntryNotFound")

    def _folder(self, path: str) -> Path:
        kind, *rest = path.split("/")
        if kind not in ("models", "datasets"):
            kind, rest = "models", [kind, *rest]
        return self.root / kind / "/".join(rest[:2])

    def _listed(self, folder: Path, file: Path) -> dict[str, object]:
        path = file.relative_to(folder).as_posix()
        if file.is_dir():
            return {"type": "directory", "path": path, "oid": COMMIT}
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        return {"type": "file", "path": path, "size": file.stat().st_size, "oid": oid}

    def _send(self, body: bytes, *, status: int = 200, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def small_hub(root: Path) -> Iterator[str]:
    """Serve ``root/models/ORG/NAME`` and ``root/datasets/ORG/NAME`` for the length of a ``with`` block; the address."""
    handler = type("Handler", (_Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
