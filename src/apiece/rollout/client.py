"""Requests to an OpenAI-compatible server: retried where that can help, told clearly where it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from apiece.errors import UserError

KEY_VARIABLE = "APIECE_SERVER_KEY"
"""Environment variable with the key that the server asks for, if it asks for one."""

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses that may be gone at the next attempt."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Which server answers, and how it is asked.

    Attributes:
        url: With or without `/v1`.
        model: Name of the model there; `None` for the only one that it lists.
        concurrency: Requests under way at once, at most.
        timeout_s: How long one answer may take.
        retries: Attempts after the first one.
    """

    url: str
    model: str | None = None
    concurrency: int = 8
    timeout_s: float = 300.0
    retries: int = 5


@dataclass
class Client:
    """Talks to one server.

    Attributes:
        settings: Address, limits.
        optional: Fields that make answers more exact and that not every server knows; one that a server refuses by name
            is not sent again.
        served: Names that the server lists, as far as it was asked.
    """

    settings: ServerSettings
    optional: dict[str, Any] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = base_url(self.settings.url)
        key = os.environ.get(KEY_VARIABLE)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = httpx2.Timeout(self.settings.timeout_s, connect=min(CONNECT_S, self.settings.timeout_s))

    def connections(self) -> httpx2.AsyncClient:
        """Connections for `chat`, as many as requests may be under way."""
        limit = self.settings.concurrency
        limits = httpx2.Limits(max_connections=limit, max_keepalive_connections=limit)
        return httpx2.AsyncClient(headers=self._headers, timeout=self._timeout, limits=limits)

    def models(self) -> list[str] | None:
        """Names of the models that the server lists (kept in `served`); `None` where it answers, but not with a list.

        Raises:
            UserError: Nothing answers there, or not an OpenAI-compatible server.
        """
        try:
            reply = httpx2.get(f"{self.base}/models", headers=self._headers, timeout=self._timeout)
        except httpx2.TransportError as error:
            raise UserError(
                f"no server answers: {_said(error, self.settings.timeout_s)}",
                where=self.base,
                fix="start it and wait until it is ready, or check --server (docs/serving.md)",
            ) from error
        _require_entry(reply, self.base)
        if reply.status_code == 404:
            raise UserError(
                "something answers, but it is no OpenAI-compatible server: it knows no /models",
                where=self.base,
                fix="give --server up to and with /v1, such as http://localhost:8000/v1",
            )
        listed = _json(reply)
        rows = listed.get("data") if isinstance(listed, dict) else None
        if reply.status_code != 200 or not isinstance(rows, list):
            return None
        self.served = [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]
        return self.served

    async def chat(self, http: httpx2.AsyncClient, body: Mapping[str, Any], sample_id: str) -> dict[str, Any]:
        """The server's chat completion.

        Args:
            http: From `connections`.
            body: Of the request, without the optional fields.
            sample_id: What it is about: named in messages, and the seed of the waiting times.

        Raises:
            UserError: The server refuses the request, or has not answered it after all attempts.
        """
        waits = random.Random(zlib.crc32(sample_id.encode()))
        attempt, problem = 0, ""
        while attempt <= self.settings.retries:
            sent = dict(self.optional)
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * (0.5 + waits.random())
            try:
                reply = await http.post(f"{self.base}/chat/completions", json={**body, **sent})
            except httpx2.TransportError as error:
                problem = _said(error, self.settings.timeout_s)
            else:
                if reply.status_code == 200:
                    return _completion(reply, self.base)
                if self._drop_refused(reply, sent):
                    continue
                if reply.status_code not in PASSING:
                    raise self._refusal(reply, sample_id)
                problem = f"HTTP {reply.status_code}: {_detail(reply)}"
                wait = max(wait, min(LONGEST_WAIT_S, _retry_after(reply)))
            attempt += 1
            if attempt <= self.settings.retries:
                await asyncio.sleep(wait)
        attempts = "1 attempt" if attempt == 1 else f"{attempt} attempts"
        raise UserError(
            f"sample {sample_id}: no answer in {attempts}; the last time: {problem}. What is done is kept",
            where=self.base,
            fix="see that the server runs (too slow: lower --concurrency, raise --timeout), then the same command "
            "with --resume",
        )

    def _drop_refused(self, reply: httpx2.Response, sent: Mapping[str, Any]) -> bool:
        """Whether optional fields that were sent are refused by name; if so, they are left out from now on."""
        if reply.status_code not in (400, 422):
            return False
        refused = [name for name in sent if f"'{name}'" in reply.text or f'"{name}"' in reply.text]
        for name in refused:
            self.optional.pop(name, None)
        return bool(refused)

    def _refusal(self, reply: httpx2.Response, sample_id: str) -> UserError:
        _require_entry(reply, self.base)
        listed = f"; it lists {', '.join(self.served)}" if self.served else ""
        return UserError(
            f"sample {sample_id}: the server refuses the request (HTTP {reply.status_code}): {_detail(reply)}",
            where=self.base,
            fix=f"is --model (or else the only model listed) the one it serves{listed}? Its own log says more",
        )


def base_url(url: str) -> str:
    """The address that `/models` and `/chat/completions` are under.

    Raises:
        UserError: Not an http address.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(
            f"expected an address such as http://localhost:8000/v1, found {url!r}", where="--server", exit_code=2
        )
    path = parsed.path.rstrip("/").removesuffix("/chat/completions")
    return str(parsed.copy_with(path=path or "/v1", query=None, fragment=None)).rstrip("/")


def _said(error: httpx2.TransportError, timeout_s: float) -> str:
    """A failed request in words."""
    if isinstance(error, httpx2.ConnectTimeout):
        return "the connection cannot be made in time"
    if isinstance(error, httpx2.TimeoutException):
        return f"nothing came within {timeout_s:g} s"
    return str(error) or type(error).__name__


def _require_entry(reply: httpx2.Response, base: str) -> None:
    if reply.status_code in (401, 403):
        raise UserError(
            f"the server wants a key, or another one (HTTP {reply.status_code})",
            where=base,
            fix=f"put it into the environment variable {KEY_VARIABLE}",
        )


def _json(reply: httpx2.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return None


def _completion(reply: httpx2.Response, base: str) -> dict[str, Any]:
    """The body of an answer, which has a first choice with a message."""
    body = _json(reply)
    match body:
        case {"choices": [{"message": {}}, *_]}:
            return dict(body)
    raise UserError(
        f"expected a chat completion, found {reply.text[:120]!r}",
        where=base,
        fix="check --server: is it an OpenAI-compatible server?",
    )


def _detail(reply: httpx2.Response) -> str:
    """What a server says of an error, in whatever form it says it."""
    body = _json(reply)
    match body:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"detail": str(text)} | {"message": str(text)}:
            pass
        case None:
            text = reply.text
        case _:
            text = json.dumps(body)
    return " ".join(text.split())[:300] or "without a word"


def _retry_after(reply: httpx2.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or says it as a date."""
    try:
        return max(0.0, float(reply.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0
