"""An engine that asks an OpenAI-compatible server (vLLM, SGLang, `transformers serve`), many images at once.

The server gets each image as a PNG that is resized already, and the prompt as text; the chat template is its own.
Answers are greedy and not held to the format. What it does not tell (log-probabilities, with most servers) stays NaN.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import re
import threading
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from apiece.codec.vocab import decode_exact, encode_plain
from apiece.config.schema import GenerateSection
from apiece.data.collate import EncodedSample
from apiece.errors import UserError
from apiece.model.encode import SampleEncoder
from apiece.model.load import TextSide
from apiece.rollout.rows import Row, Rules
from apiece.types import FinishReason, Rollout, Sample

# Requests to an OpenAI-compatible server: retried where that can help, told clearly where it cannot.


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
            f"sample {sample_id}: no answer in {attempts}; the last time: {problem}. Finished answers are kept",
            where=self.base,
            fix="check that the server runs (if it is too slow: lower --concurrency, raise --timeout), then repeat the "
            "command with --resume",
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


AHEAD = 2
"""Questions that are open at once, times the concurrency: a slow answer does not stop the others for long, and memory
stays bounded."""

OPTIONAL = {
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "repetition_penalty": 1.0,
    "logprobs": True,
}
"""Coordinate tokens must stay in the text, and the model's `generation_config.json` must not change greedy answers. A
server that does not know these fields says so, and is asked without them."""

_NUMBERS = re.compile(r"\[\s*-?\d")
_EMPTIED = re.compile(r"\[\s*,|\"bbox_2d\"\s*:\s*\[\s*\]")


@dataclass(frozen=True, slots=True)
class PhotoQuestion(EncodedSample):
    """A question with its image as such; it has no patches.

    Attributes:
        image: At the size in which the model reads it.
    """

    image: Image.Image | None = None


@dataclass(frozen=True)
class PhotoEncoder(SampleEncoder):
    """Makes questions for a server: the image resized as in training, the prompt's tokens only to know their number."""

    def _prefix(self, sample: Sample, image: Image.Image) -> EncodedSample:
        images = self.side.images
        target = images.size_for(image.size)
        if image.size != target:
            image = image.resize(target, Image.Resampling.BICUBIC)
        ids = self.prompt.prefix_ids(images.num_tokens(target), self.side.image_token_id)
        patch = images.processor.patch_size
        grid = (1, target[1] // patch, target[0] // patch)
        return PhotoQuestion(sample.id, ids, np.zeros((0, 0), dtype=np.float32), grid, image=image)


@dataclass
class ServerEngine:
    """The model behind a server.

    Attributes:
        side: Tokenizer and vocabulary of the checkpoint that the server is to serve.
        instruction: The prompt, as text.
        settings: Caps; the rest of it is the server's affair.
        server: Which server, and how it is asked.
        max_length: Longest prompt plus answer that the model takes.
        warn: Told once if the server reads prompts of another length.
    """

    side: TextSide
    instruction: str
    settings: GenerateSection
    server: ServerSettings
    max_length: int
    warn: Callable[[str], None]

    def __post_init__(self) -> None:
        self.client = Client(self.server, optional=dict(OPTIONAL))
        self.model = served_model(self.client)
        self._writes_coordinates = False
        self._warned = False

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        """One rollout per question, in order."""
        return list(self.stream(questions))

    def stream(self, questions: Iterable[EncodedSample]) -> Generator[Rollout, None, None]:
        """One rollout per question, in order, each as soon as it and those before it are there.

        `questions` is read as far ahead as `AHEAD` says, and no further. The first one is answered alone: a server that
        cannot answer it is not asked anything else.

        Raises:
            UserError: A question got no answer; those after it that are under way are given up.
        """
        with closing(_Background(self.client.connections())) as background:
            places = asyncio.Semaphore(self.server.concurrency)
            waiting: deque[Future[Rollout]] = deque()
            most = 1
            for question in questions:
                waiting.append(background.start(self._ask(background.http, places, question)))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
                    most = AHEAD * self.server.concurrency
            while waiting:
                yield waiting.popleft().result()

    async def _ask(self, http: httpx2.AsyncClient, places: asyncio.Semaphore, question: EncodedSample) -> Rollout:
        """Ask one question, once there is a place, and read the answer."""
        assert isinstance(question, PhotoQuestion), "made by PhotoEncoder"
        room = self.max_length - len(question.prefix_ids)
        if room < 1:
            raise UserError(
                f"sample {question.sample_id}: image and prompt take {len(question.prefix_ids)} tokens, "
                f"the model takes {self.max_length}",
                fix="shorten the prompt",
            )
        limit = min(room, self.settings.max_new_tokens)
        async with places:
            url = await asyncio.to_thread(_data_url, question.image)
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.instruction}]
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": limit,
            }
            reply = await self.client.chat(http, body, question.sample_id)
        choice = reply["choices"][0]
        text = str(choice["message"].get("content") or "")
        self._require_coordinates(text)
        self._compare_length(reply, len(question.prefix_ids))
        return self.read(question.sample_id, text, choice, limit)

    def read(self, sample_id: str, text: str, choice: Mapping[str, Any], limit: int) -> Rollout:
        """A server's choice as a rollout: cut off and named as the engine in this process would do it."""
        tokenizer, eos = self.side.tokenizer, self.side.renderer.eos_id
        text = text.removesuffix(decode_exact(tokenizer, [eos]))
        ids = encode_plain(tokenizer, text)
        logprobs = self._logprobs(ids, choice)
        if choice.get("finish_reason") == "stop":
            ids.append(eos)
        logprobs = [*logprobs, np.nan][: len(ids)]
        rules = Rules(None, self.side, self.settings.model_copy(update={"max_new_tokens": limit}))
        row = Row(rules, sample_id, 0, np.random.default_rng(0), last=eos)
        row.replay(ids, logprobs)
        row.finish = row.finish or FinishReason.LENGTH
        return replace(row.rollout(), near_mass=None, logprobs_masked=None)

    def _logprobs(self, ids: Sequence[int], choice: Mapping[str, Any]) -> list[float]:
        """The log-probability of each id, and of the end token if listed; NaN unless the server's tokens are ours."""
        rows = (choice.get("logprobs") or {}).get("content") or []
        given = [(row.get("token"), row.get("logprob")) for row in rows if isinstance(row, dict)]
        pieces = [decode_exact(self.side.tokenizer, [i]) for i in ids] if given else []
        if not given or [token for token, _ in given[: len(ids)]] != pieces or len(given) > len(ids) + 1:
            return [np.nan] * len(ids)
        return [float(logprob) if isinstance(logprob, int | float) else np.nan for _, logprob in given]

    def _require_coordinates(self, text: str) -> None:
        """Refuse a model that writes boxes without coordinate tokens, until the first one is seen.

        After that a number where a coordinate belongs is a mistake of the model, counted like any other.
        """
        if self._writes_coordinates:
            return
        if "<|coord_" in text:
            self._writes_coordinates = True
        elif _EMPTIED.search(text):
            raise UserError(
                f"the server leaves the coordinate tokens out of its text: {text[:120]!r}",
                where=self.client.base,
                fix="it must keep special tokens (skip_special_tokens: false), as vLLM and SGLang do: docs/serving.md",
            )
        elif _NUMBERS.search(text):
            raise UserError(
                f"the served model {self.model} lacks the coordinate tokens, it writes plain numbers: {text[:120]!r}",
                where=self.client.base,
                fix=f"serve the checkpoint itself ({self.side.path}), or name another model with --model",
            )

    def _compare_length(self, reply: Mapping[str, Any], expected: int) -> None:
        """Prompts of another length mean another template or another image size, and so other answers."""
        read = (reply.get("usage") or {}).get("prompt_tokens")
        if not isinstance(read, int) or read in (0, expected):
            return
        if not self._warned:
            self._warned = True
            self.warn(
                f"the server reads {read} tokens for an image and prompt that are {expected} here: it resizes images, "
                "or has another chat template, and its answers may differ (docs/serving.md)"
            )


def served_model(client: Client) -> str:
    """The name of the model to ask: the one asked for, or the only one that is listed.

    Raises:
        UserError: No server answers, or which model is meant cannot be known.
    """
    listed = client.models()
    if client.settings.model is not None:
        # A name that is not listed may be right (`transformers serve` lists its cache); the first answer decides.
        return client.settings.model
    if listed is not None and len(listed) == 1:
        return listed[0]
    found = (
        f"the server lists {len(listed)} models: {', '.join(listed[:10])}" if listed else "the server lists no model"
    )
    raise UserError(found, where=client.base, fix="say which one with --model", exit_code=2)


class _Background:
    """A thread in which requests go on while this one does something else; it never keeps the process alive.

    Attributes:
        http: The connections of all requests.
    """

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, Rollout]) -> Future[Rollout]:
        """Begin something there."""
        return asyncio.run_coroutine_threadsafe(self._noted(work), self._loop)

    def close(self) -> None:
        """Give up what is under way, so that the server stops working on it, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _noted(self, work: Coroutine[Any, Any, Rollout]) -> Rollout:
        task = asyncio.current_task()
        assert task is not None, "runs as a task"
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.discard(task)

    async def _end(self) -> None:
        # What these have begun themselves (connecting, say) they end themselves: cancelled from here it would be lost.
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.http.aclose()
        await self._loop.shutdown_default_executor()


def _data_url(image: Image.Image | None) -> str:
    """A PNG, as the model is to see exactly these pixels."""
    assert image is not None, "made by PhotoEncoder"
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
