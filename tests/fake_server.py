"""An OpenAI-compatible server on loopback whose answers are given, for tests of what asks it."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

EMPTY = '{"objects": []}'


@dataclass
class Reply:
    """What is sent back; `status` 0 closes the connection without a word."""

    text: str = EMPTY
    status: int = 200
    finish: str = "stop"
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)


@dataclass
class FakeServer:
    """Its state, which tests read and change.

    Attributes:
        answer: Makes the reply to a chat completion from its body and the grey value of the image.
        models: What it lists; `None`: HTTP 500.
        asked: Grey values of the images, in the order in which they came.
        bodies: Of all chat completions.
        most: How many were under way at once.
    """

    answer: Callable[[dict[str, Any], int], Reply] = lambda body, grey: Reply()
    models: list[str] | None = field(default_factory=lambda: ["m"])
    url: str = ""
    asked: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def chat(self, body: dict[str, Any]) -> Reply:
        grey = grey_of(body)
        with self._lock:
            self.bodies.append(body)
            self.asked.append(grey)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self.answer(body, grey)
        finally:
            with self._lock:
                self._now -= 1


def image_of(body: dict[str, Any]) -> Image.Image:
    """The image of a chat completion's body."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


def grey_of(body: dict[str, Any]) -> int:
    return int(image_of(body).convert("L").getpixel((0, 0)))  # type: ignore[arg-type]


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Runs it on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            server.keys.append(self.headers.get("Authorization"))
            if self.path != "/v1/models":
                self.send(404, {"detail": "Not Found"})
            elif server.models is None:
                self.send(500, {"detail": "broken"})
            else:
                self.send(200, {"object": "list", "data": [{"id": name} for name in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = server.chat(body)
            if reply.status == 0:
                self.close_connection = True
                return
            message = {"role": "assistant", "content": reply.text}
            choice = {"index": 0, "message": message, "finish_reason": reply.finish, **reply.more}
            completion = {"id": "1", "choices": [choice], "usage": reply.usage}
            self.send(reply.status, completion if reply.body is None else reply.body, reply.headers)

        def send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(value).encode()
            try:
                self.send_response(status)
                for name, text in (headers or {}).items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # whoever asked has gone
                self.close_connection = True

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
