"""An engine that asks an OpenAI-compatible server (vLLM, SGLang, `transformers serve`), many images at once.

The server gets each image as a PNG at the size the model reads, and the prompt as text; the chat template is its own.
Answers are greedy and not restricted to the format. What the server does not report (mostly log-probabilities) is NaN.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import re
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx2
import msgspec
import numpy as np
from anyio.from_thread import start_blocking_portal
from PIL import Image

from apiece.codec.vocab import decode_exact, encode_plain
from apiece.config.schema import GenerateSection
from apiece.data.collate import EncodedSample
from apiece.errors import UserError
from apiece.model.encode import SampleEncoder
from apiece.model.load import TextSide
from apiece.rollout.rows import Draft
from apiece.types import FinishReason, Rollout, Sample

KEY_VARIABLE = "APIECE_SERVER_KEY"
"""Environment variable with the key that the server wants, if it wants one."""
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # may be gone at the next attempt
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
CONNECT_S = 10.0
# Questions open at once, times the concurrency: a slow answer does not block the others for long; memory is bounded.
AHEAD = 2
# Coordinate tokens must stay in the text, and the model's `generation_config.json` must not change greedy answers. A
# server that refuses a field by name is asked without it.
OPTIONAL = {
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "repetition_penalty": 1.0,
    "logprobs": True,
}

_NUMBERS = re.compile(r"\[\s*-?\d")
_EMPTIED = re.compile(r"\[\s*,|\"bbox_2d\"\s*:\s*\[\s*\]")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Which server answers, and how it is asked."""

    url: str  # with or without `/v1`
    model: str | None = None  # its name there; `None` for the only one listed
    concurrency: int = 8  # most requests under way at once
    timeout_s: float = 300.0  # for one answer
    retries: int = 5


# The parts of a server's replies that are read; a reply of another form is refused.


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Token(msgspec.Struct):
    token: str | None = None
    logprob: float | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    """A server's answer."""

    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[Choice]
    usage: _Usage | None = None


class _ErrorText(msgspec.Struct):
    message: str


class _Error(msgspec.Struct):
    error: _ErrorText | str | None = None
    detail: str | None = None
    message: str | None = None


def _decoded(reply: httpx2.Response, form: type[T]) -> T | None:
    """A reply in the expected form, `None` if it has another."""
    try:
        return msgspec.json.decode(reply.content, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


@dataclass
class Client:
    """Talks to one server."""

    settings: ServerSettings
    optional: dict[str, Any] = field(
        default_factory=lambda: dict(OPTIONAL)
    )  # sent while the server does not refuse them
    served: list[str] | None = None  # models listed; `None` if it answers, but not with a list

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

    def model(self) -> str:
        """The model to ask for: the one named, or the only one listed. Fails if no OpenAI-compatible server answers, or
        it is unclear which model is meant."""
        try:
            reply = httpx2.get(f"{self.base}/models", headers=self._headers, timeout=self._timeout)
        except httpx2.TransportError as error:
            raise UserError(
                f"no server answers: {self._reason(error)}",
                where=self.base,
                fix="start it and wait until it is ready, or check --server",
            ) from error
        self._require_entry(reply)
        if reply.status_code == 404:
            raise UserError(
                "something answers, but it is no OpenAI-compatible server: it knows no /models",
                where=self.base,
                fix="give --server up to and with /v1, such as http://localhost:8000/v1",
            )
        listed = _decoded(reply, _Models) if reply.status_code == 200 else None
        names = self.served = [row.id for row in listed.data] if listed else None
        if self.settings.model is not None:
            # A name that is not listed may be right (`transformers serve` lists its cache); the first answer decides.
            return self.settings.model
        if names is not None and len(names) == 1:
            return names[0]
        found = f"{len(names)} models: {', '.join(names[:10])}" if names else "no model"
        raise UserError(f"the server lists {found}", where=self.base, fix="say which one with --model", exit_code=2)

    async def chat(self, http: httpx2.AsyncClient, body: dict[str, Any], sample_id: str) -> _Completion:
        """The server's chat completion, which has a first choice.

        `body` is without the optional fields; the sample's id goes into messages, and seeds the waiting times. Fails if
        the server refuses the request, or has not answered after all attempts.
        """
        waits = random.Random(zlib.crc32(sample_id.encode()))
        attempt, problem = 0, ""
        while attempt <= self.settings.retries:
            sent = dict(self.optional)
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * (0.5 + waits.random())
            try:
                reply = await http.post(f"{self.base}/chat/completions", json={**body, **sent})
            except httpx2.TransportError as error:
                problem = self._reason(error)
            else:
                if reply.status_code == 200:
                    return self._completion(reply)
                if self._drop_refused(reply, sent):
                    continue
                if reply.status_code not in TRANSIENT:
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
            fix="check that the server runs (if it is too slow: lower server.concurrency, raise server.timeout_s), "
            "then repeat the command with --resume",
        )

    def _completion(self, reply: httpx2.Response) -> _Completion:
        body = _decoded(reply, _Completion)
        if body is None or not body.choices:
            raise UserError(
                f"expected a chat completion, found {reply.text[:120]!r}",
                where=self.base,
                fix="check --server: is it an OpenAI-compatible server?",
            )
        return body

    def _drop_refused(self, reply: httpx2.Response, sent: dict[str, Any]) -> bool:
        """Whether fields that were sent are refused by name; if so, they are left out from now on."""
        if reply.status_code not in (400, 422):
            return False
        refused = [name for name in sent if f"'{name}'" in reply.text or f'"{name}"' in reply.text]
        for name in refused:
            self.optional.pop(name, None)
        return bool(refused)

    def _refusal(self, reply: httpx2.Response, sample_id: str) -> UserError:
        self._require_entry(reply)
        listed = f"; it lists {', '.join(self.served)}" if self.served else ""
        return UserError(
            f"sample {sample_id}: the server refuses the request (HTTP {reply.status_code}): {_detail(reply)}",
            where=self.base,
            fix=f"is --model (or else the only model listed) the one it serves{listed}? Its own log says more",
        )

    def _require_entry(self, reply: httpx2.Response) -> None:
        if reply.status_code in (401, 403):
            raise UserError(
                f"the server wants a key, or another one (HTTP {reply.status_code})",
                where=self.base,
                fix=f"put it into the environment variable {KEY_VARIABLE}",
            )

    def _reason(self, error: httpx2.TransportError) -> str:
        if isinstance(error, httpx2.ConnectTimeout):
            return "the connection cannot be made in time"
        if isinstance(error, httpx2.TimeoutException):
            return f"nothing came within {self.settings.timeout_s:g} s"
        return str(error) or type(error).__name__


def base_url(url: str) -> str:
    """The address of `/models` and `/chat/completions`; a `UserError` for anything but an http address."""
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


def _detail(reply: httpx2.Response) -> str:
    """The server's own words about an error, in whichever of the common forms."""
    body = _decoded(reply, _Error)
    found = body and (body.error or body.detail or body.message)
    text = found.message if isinstance(found, _ErrorText) else found or reply.text
    return " ".join(text.split())[:300] or "(empty reply)"


def _retry_after(reply: httpx2.Response) -> float:
    """Seconds that the server asks to wait; 0 if it does not say, or gives a date."""
    try:
        return max(0.0, float(reply.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0


@dataclass(frozen=True, slots=True)
class PhotoQuestion(EncodedSample):
    """A question with its image instead of patches, at the size in which the model reads it."""

    image: Image.Image | None = None


@dataclass(frozen=True)
class PhotoEncoder(SampleEncoder):
    """Makes questions for a server: the image resized as in training, the prompt's tokens only to know their number."""

    def _prefix(self, sample: Sample, image: Image.Image) -> EncodedSample:
        images = self.side.images
        image, patch = images.resized(image), images.processor.patch_size
        ids = self.prompt.prefix_ids(images.num_tokens(image.size), self.side.image_token_id)
        grid = (1, image.height // patch, image.width // patch)
        return PhotoQuestion(sample.id, ids, np.zeros((0, 0), dtype=np.float32), grid, image=image)


@dataclass
class ServerEngine:
    """The model behind a server."""

    side: TextSide  # of the checkpoint that the server should serve
    instruction: str
    settings: GenerateSection  # its caps; everything else is up to the server
    server: ServerSettings
    max_length: int  # longest prompt plus answer that the model takes
    warn: Callable[[str], None]  # called once if the server reads prompts of another length

    def __post_init__(self) -> None:
        self.client = Client(self.server)
        self.model = self.client.model()
        self._writes_coordinates = False
        self._warned = False

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        return list(self.stream(questions))

    def stream(self, questions: Iterable[EncodedSample]) -> Generator[Rollout, None, None]:
        """One rollout per question, in order, each as soon as it and those before it are there.

        `questions` is read as far ahead as `AHEAD` says, and no further. The first one is answered alone: a server that
        cannot answer it is not asked anything else. If a question gets no answer, those under way are cancelled.
        """
        places = asyncio.Semaphore(self.server.concurrency)
        waiting: deque[Future[Rollout]] = deque()
        most = 1
        # Requests run in a thread of their own while this one does something else.
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self.client.connections()) as http:
            try:
                for question in questions:
                    waiting.append(portal.start_task_soon(self._ask, http, places, question))
                    if len(waiting) >= most:
                        yield waiting.popleft().result()
                        most = AHEAD * self.server.concurrency
                while waiting:
                    yield waiting.popleft().result()
            finally:
                # So that the server stops working on what nobody waits for.
                for asked in waiting:
                    asked.cancel()

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
        choice = reply.choices[0]
        self._require_coordinates(choice.message.content or "")
        self._compare_length(reply.usage, len(question.prefix_ids))
        return self.read(question.sample_id, choice, limit)

    def read(self, sample_id: str, choice: Choice, limit: int) -> Rollout:
        """A server's choice as a rollout, with the caps and finish reasons of the local engine."""
        tokenizer, eos = self.side.tokenizer, self.side.renderer.eos_id
        ids = encode_plain(tokenizer, (choice.message.content or "").removesuffix(decode_exact(tokenizer, [eos])))
        logprobs = self._logprobs(ids, choice)
        if choice.finish_reason == "stop":
            ids.append(eos)
        draft = Draft(sample_id, self.side, self.settings.model_copy(update={"max_new_tokens": limit}))
        for token, logprob in zip(ids, [*logprobs, np.nan], strict=False):
            draft.write(token, logprob, np.nan, np.nan)
            if draft.finish is not None:
                break
        draft.finish = draft.finish or FinishReason.LENGTH
        return replace(draft.rollout(), near_mass=None, logprobs_masked=None)

    def _logprobs(self, ids: Sequence[int], choice: Choice) -> list[float]:
        """The log-probability of each id, and of the end token if listed; NaN unless the server's tokens are ours."""
        given = (choice.logprobs.content if choice.logprobs else None) or []
        pieces = [decode_exact(self.side.tokenizer, [i]) for i in ids] if given else []
        if not given or [row.token for row in given[: len(ids)]] != pieces or len(given) > len(ids) + 1:
            return [np.nan] * len(ids)
        return [np.nan if row.logprob is None else row.logprob for row in given]

    def _require_coordinates(self, text: str) -> None:
        """Refuse a model that writes boxes without coordinate tokens, until the first one is seen.

        After that a number in place of a coordinate is the model's mistake, counted like any other.
        """
        if self._writes_coordinates:
            return
        if "<|coord_" in text:
            self._writes_coordinates = True
        elif _EMPTIED.search(text):
            raise UserError(
                f"the server leaves the coordinate tokens out of its text: {text[:120]!r}",
                where=self.client.base,
                fix="it must keep special tokens (skip_special_tokens: false), as vLLM and SGLang do",
            )
        elif _NUMBERS.search(text):
            raise UserError(
                f"the served model {self.model} lacks the coordinate tokens, it writes plain numbers: {text[:120]!r}",
                where=self.client.base,
                fix=f"serve the checkpoint itself ({self.side.path}), or name another model with --model",
            )

    def _compare_length(self, usage: _Usage | None, expected: int) -> None:
        """Prompts of another length mean another template or image size, and so other answers."""
        read = usage.prompt_tokens if usage else None
        if not self._warned and read and read != expected:
            self._warned = True
            self.warn(
                f"the server reads {read} tokens for an image and prompt that are {expected} here: it resizes images, "
                "or has another chat template, and its answers may differ"
            )


def _data_url(image: Image.Image | None) -> str:
    """A PNG, so that the model sees exactly these pixels."""
    assert image is not None, "made by PhotoEncoder"
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
