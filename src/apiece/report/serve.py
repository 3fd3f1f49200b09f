"""Serving a report's folder on loopback: files in it and nothing else."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from apiece.errors import UserError

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Files below one folder, after links are followed; no listings, no caching, a quiet log."""

    def send_head(self) -> Any:
        root, path = Path(self.directory).resolve(), Path(self.translate_path(self.path)).resolve()
        named_here = self.headers.get("Host", "").split(":")[0] in (HOST, "localhost")
        # A page elsewhere may point its own name at this machine: only loopback's names are answered.
        if not named_here or not path.is_relative_to(root):
            self.send_error(403)
            return None
        if path.is_dir() and not (path / "index.html").is_file():
            self.send_error(404)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # a report may be replaced under the same name
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: every photo is a request."""


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a report on loopback, not yet started; port 0 takes any that is free.

    Raises:
        UserError: The folder holds no page, or the port is taken.
    """
    if not (folder / "index.html").is_file():
        raise UserError(
            "expected the folder of a report, with index.html",
            where=folder,
            fix="write one: apiece report RUN --out DIR",
        )
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder.resolve())))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        fix = "leave --port out to take a free one"
        raise UserError(f"port {port} cannot be used: {error.strerror}", fix=fix, exit_code=2) from error


def serve(folder: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve a report until Ctrl-C; `ready` is called with the address once it answers."""
    with make_server(folder, port) as server:
        ready(f"http://{HOST}:{server.server_address[1]}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
