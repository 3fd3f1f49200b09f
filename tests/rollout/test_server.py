"""The engine behind a server: order, limits, retries, and each way in which a server is the wrong one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apiece.config.schema import GenerateSection
from apiece.data.collate import EncodedSample
from apiece.errors import UserError
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.model.load import TextSide
from apiece.rollout import server as client
from apiece.rollout.generate import LocalEngine, StreamingEngine
from apiece.rollout.server import AHEAD, OPTIONAL, PhotoEncoder, ServerEngine, ServerSettings, base_url
from apiece.types import FinishReason, Sample
from fake_server import EMPTY, FakeServer, Reply, image_of, serving

CUP = '{"desc": "cup", "bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>, <|coord_4|>]}'
CAN = '{"desc": "can", "bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>, <|coord_5|>]}'


def written(*records: str) -> str:
    return '{"objects": [' + ", ".join(records) + "]}"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.001)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", client.KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving(FakeServer()) as server:
        yield server


Make = Callable[..., ServerEngine]


@pytest.fixture
def make(fake: FakeServer, tiny_side: TextSide) -> Make:
    """An engine that asks the fake; gives what it warned of in `warned`."""

    def build(max_length: int = 4096, generate: dict[str, Any] | None = None, **options: Any) -> ServerEngine:
        settings = ServerSettings(**{"url": fake.url, "timeout_s": 5.0, **options})
        warned: list[str] = []
        engine = ServerEngine(
            tiny_side, "Detect.", GenerateSection(**(generate or {})), settings, max_length, warned.append
        )
        engine.warned = warned  # type: ignore[attr-defined]
        return engine

    return build


def questions(side: TextSide, count: int, size_wh: tuple[int, int] = (32, 16)) -> Iterator[EncodedSample]:
    """Image i is of grey value i."""
    encoder = PhotoEncoder(side, PromptTokens.of(side, "Detect."), 4096)
    for i in range(count):
        yield encoder.question(Sample(str(i), Path("none.png"), size_wh), Image.new("RGB", size_wh, (i, i, i)))


def test_answers_come_in_order_and_never_more_than_asked_for_at_once(
    fake: FakeServer, make: Make, tiny_side: TextSide
) -> None:
    def answer(_: dict[str, Any], grey: int) -> Reply:
        time.sleep(0.02 * (grey % 3))
        patience = time.monotonic() + 5  # on a busy machine, too, three are under way at some time
        while grey and fake.most < 3 and time.monotonic() < patience:
            time.sleep(0.01)
        return Reply(written(*[CUP] * (grey % 3)))

    fake.answer = answer
    read: list[str] = []

    def reading() -> Iterator[EncodedSample]:
        for question in questions(tiny_side, 20):
            read.append(question.sample_id)
            yield question

    engine = make(concurrency=3)
    assert isinstance(engine, StreamingEngine)
    rollouts = engine.stream(reading())
    assert next(rollouts).sample_id == "0"
    assert (read, fake.asked) == (["0"], [0])  # the first one alone
    ids = ["0"]
    for done, rollout in enumerate(rollouts, 2):
        assert len(read) <= done + AHEAD * 3 - 1
        assert rollout.text.count("cup") == int(rollout.sample_id) % 3
        ids.append(rollout.sample_id)
    assert ids == [str(i) for i in range(20)]
    assert sorted(fake.asked) == list(range(20))
    assert fake.most == 3


def test_nothing_to_ask(make: Make, fake: FakeServer) -> None:
    assert make().generate([]) == []
    assert fake.asked == []


def test_the_image_is_sent_as_the_model_reads_it(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    size = (500, 270)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    sample, image = Sample("a", Path("none.png"), size), Image.fromarray(pixels)
    small = tiny_side.with_max_pixels(20_000)
    question = PhotoEncoder(small, PromptTokens.of(small, "Detect."), 4096).question(sample, image)
    (rollout,) = make().generate([question])
    body = fake.bodies[0]
    sent = image_of(body)
    assert sent.size == small.images.size_for(size) != size
    np.testing.assert_array_equal(small.images.encode(sent)[0], small.images.encode(image)[0])
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "Detect."}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 4096 - len(question.prefix_ids))
    assert {name: body[name] for name in OPTIONAL} == OPTIONAL
    own = SampleEncoder(small, PromptTokens.of(small, "Detect."), 4096).question(sample, image)
    assert question.prefix_ids.tolist() == own.prefix_ids.tolist()
    assert question.grid_thw == own.grid_thw
    assert np.isnan(rollout.logprobs).all() and rollout.near_mass is None and rollout.logprobs_masked is None


@pytest.mark.parametrize(
    "failure",
    [
        Reply(status=429, headers={"Retry-After": "0"}),
        Reply(status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Reply(status=500, body={"error": "out of luck"}),
        Reply(status=503),
        Reply(status=0),
    ],
)
def test_passing_failures_are_tried_again(fake: FakeServer, make: Make, tiny_side: TextSide, failure: Reply) -> None:
    replies = iter([failure, failure, Reply(written(CUP))])
    fake.answer = lambda body, grey: next(replies)
    (rollout,) = make(retries=2).generate(list(questions(tiny_side, 1)))
    assert rollout.text.startswith(written(CUP))
    assert len(fake.asked) == 3


def test_retry_after_is_waited_for(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    replies = iter([Reply(status=429, headers={"Retry-After": "0.3"}), Reply()])
    fake.answer = lambda body, grey: next(replies)
    start = time.monotonic()
    make(retries=1).generate(list(questions(tiny_side, 1)))
    assert time.monotonic() - start >= 0.3


def test_after_the_last_attempt_it_is_told(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    fake.answer = lambda body, grey: Reply(status=500, body={"error": {"message": "out of\nluck"}}) if grey else Reply()
    engine = make(retries=1)
    problem = r"/v1: sample 1: no answer in 2 attempts; the last time: HTTP 500: out of luck"
    message = problem + r"\. Finished answers are kept\n.*--"
    rollouts = engine.stream(questions(tiny_side, 2))
    assert next(rollouts).sample_id == "0"
    with pytest.raises(UserError, match=message):
        next(rollouts)
    assert fake.asked == [0, 1, 1]


def test_slow_answers_time_out(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    go = threading.Event()

    def answer(_: dict[str, Any], grey: int) -> Reply:
        go.wait(5)
        return Reply()

    fake.answer = answer
    with pytest.raises(UserError, match=r"no answer in 2 attempts; the last time: nothing came within 0\.2 s"):
        make(retries=1, timeout_s=0.2).generate(list(questions(tiny_side, 1)))
    go.set()


def test_giving_up_ends_what_is_under_way(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    go = threading.Event()

    def answer(_: dict[str, Any], grey: int) -> Reply:
        if grey:
            go.wait(20)
        return Reply()

    fake.answer = answer
    rollouts = make(concurrency=2, timeout_s=30).stream(questions(tiny_side, 9))
    next(rollouts)
    threads = threading.active_count()
    start = time.monotonic()
    rollouts.close()
    assert time.monotonic() - start < 2
    assert threading.active_count() <= threads
    go.set()


def test_fields_that_a_server_does_not_know_are_left_out(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    unknown = {"skip_special_tokens", "repetition_penalty"}

    def answer(body: dict[str, Any], _: int) -> Reply:
        if bad := unknown & body.keys():
            return Reply(status=422, body={"detail": f"Unexpected fields in the request: {bad}"})
        return Reply(written(CUP))

    fake.answer = answer
    make(retries=0).generate(list(questions(tiny_side, 3)))
    assert [len(unknown & body.keys()) for body in fake.bodies] == [2, 0, 0, 0]
    assert fake.bodies[-1]["logprobs"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"bbox_2d": [12, 40, 77, 90], "label": "cup"}]',
            r"the served model m lacks the coordinate tokens.*\n.*serve",
        ),
        (
            '{"objects": [{"desc": "cup", "bbox_2d": [, , , ]}]}',
            r"leaves the coordinate tokens out.*\n.*skip_special_tok",
        ),
        ('{"objects": [{"desc": "cup", "bbox_2d": []}]}', "leaves the coordinate tokens out"),
    ],
)
def test_model_without_coordinate_tokens_is_refused_at_once(
    fake: FakeServer, make: Make, tiny_side: TextSide, text: str, message: str
) -> None:
    fake.answer = lambda body, grey: Reply(text)
    with pytest.raises(UserError, match=message):
        make().generate(list(questions(tiny_side, 9)))
    assert fake.asked == [0]


def test_a_later_number_is_a_mistake_like_any_other(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    texts = [EMPTY, written(CUP), '{"objects": [{"desc": "cup", "bbox_2d": [1, 2, 3, 4]}]}']
    fake.answer = lambda body, grey: Reply(texts[grey])
    assert [
        r.text.removesuffix("<|im_end|>") for r in make(concurrency=1).generate(list(questions(tiny_side, 3)))
    ] == texts


@pytest.mark.parametrize(
    ("generate", "text", "finish", "reason", "kept"),
    [
        ({}, written(CUP, CAN), "stop", FinishReason.EOS, written(CUP, CAN) + "<|im_end|>"),
        ({}, written(CUP, CAN) + "<|im_end|>", "stop", FinishReason.EOS, written(CUP, CAN) + "<|im_end|>"),
        ({}, "", "stop", FinishReason.EOS, "<|im_end|>"),
        ({}, written(CUP)[:-3], "length", FinishReason.LENGTH, written(CUP)[:-3]),
        ({"max_objects": 1}, written(CUP), "stop", FinishReason.EOS, written(CUP) + "<|im_end|>"),
        ({"max_objects": 1}, written(CUP, CAN), "stop", FinishReason.OBJECT_CAP, None),
        ({"max_repeats": 2}, written(CUP, *[CAN] * 9), "stop", FinishReason.REPETITION, None),
    ],
)
def test_answers_end_as_in_this_process(
    fake: FakeServer,
    make: Make,
    tiny_side: TextSide,
    generate: dict[str, Any],
    text: str,
    finish: str,
    reason: FinishReason,
    kept: str | None,
) -> None:
    fake.answer = lambda body, grey: Reply(text, finish=finish)
    (rollout,) = make(generate=generate).generate(list(questions(tiny_side, 1)))
    assert rollout.finish_reason == reason
    if kept is not None:
        assert rollout.text == kept
    else:
        assert text.startswith(rollout.text) and len(rollout.text) < len(text)


def test_log_probabilities_are_used_where_tokens_are_ours(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    text = written(CUP)
    ids = tiny_side.tokenizer.encode(text, add_special_tokens=False)
    rows = [{"token": tiny_side.tokenizer.decode([i]), "logprob": -0.01 * k} for k, i in enumerate(ids)]
    end = {"token": "<|im_end|>", "logprob": -7.0}
    lists = [[*rows, end], rows, rows[1:], [{"token": "x"}, *rows[1:]], [*rows, end, end]]
    fake.answer = lambda body, grey: Reply(text, more={"logprobs": {"content": lists[grey]}})
    whole, endless, *others = make().generate(list(questions(tiny_side, 5)))
    expected = [-0.01 * k for k in range(len(ids))]
    np.testing.assert_allclose(whole.logprobs, [*expected, -7.0], atol=1e-6)
    np.testing.assert_allclose(endless.logprobs, [*expected, np.nan], atol=1e-6)
    assert all(np.isnan(rollout.logprobs).all() for rollout in others)


def test_prompts_of_another_length_are_told_once(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    asked = list(questions(tiny_side, 4))
    length = len(asked[0].prefix_ids)
    fake.answer = lambda body, grey: Reply(usage={"prompt_tokens": length + (grey > 1)})
    engine = make()
    engine.generate(asked)
    (warning,) = engine.warned  # type: ignore[attr-defined]
    assert warning.startswith(f"the server reads {length + 1} tokens for an image and prompt that are {length} here")


def test_image_and_prompt_that_fill_the_model_are_refused(make: Make, tiny_side: TextSide) -> None:
    with pytest.raises(UserError, match=r"sample 0: image and prompt take .* tokens, the model takes 5"):
        make(max_length=5).generate(list(questions(tiny_side, 1)))


@pytest.mark.parametrize(
    ("models", "asked", "message"),
    [
        (["a", "b"], None, r"the server lists 2 models: a, b\n  fix: say which one with --model"),
        ([], None, r"the server lists no model\n"),
        (None, None, r"the server lists no model\n"),
    ],
)
def test_which_model_is_meant_must_be_known(
    fake: FakeServer, make: Make, models: list[str] | None, asked: str | None, message: str
) -> None:
    fake.models = models
    with pytest.raises(UserError, match=message):
        make(model=asked)


def test_model_that_is_not_served_is_told_with_those_that_are(
    fake: FakeServer, make: Make, tiny_side: TextSide
) -> None:
    fake.models = ["a", "b"]
    fake.answer = lambda body, grey: Reply(status=404, body={"error": {"message": "The model `c` does not exist."}})
    with pytest.raises(
        UserError, match=r"refuses the request \(HTTP 404\): The model `c` does not exist\.\n.*lists a, b"
    ):
        make(model="c").generate(list(questions(tiny_side, 4)))
    assert len(fake.asked) == 1
    fake.answer = lambda body, grey: Reply()
    fake.models = None  # a list that cannot be made is no hindrance where the name is given
    assert len(make(model="c").generate(list(questions(tiny_side, 1)))) == 1


def test_nobody_at_the_address(make: Make, fake: FakeServer) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held and not listened to: nobody else can take it meanwhile
        with pytest.raises(UserError, match=r"no server answers: .*\n  fix: start it and wait until it is ready"):
            make(url=f"http://127.0.0.1:{held.getsockname()[1]}")
    with pytest.raises(UserError, match=r"no OpenAI-compatible server: it knows no /models\n.*/v1"):
        make(url=f"{fake.url}/elsewhere")


def test_answer_that_is_no_completion(fake: FakeServer, make: Make, tiny_side: TextSide) -> None:
    fake.answer = lambda body, grey: Reply(body={"hello": 1})
    with pytest.raises(UserError, match=r"expected a chat completion, found '\{\"hello\": 1\}'"):
        make().generate(list(questions(tiny_side, 1)))


def test_key(fake: FakeServer, make: Make, tiny_side: TextSide, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setenv(client.KEY_VARIABLE, "secret")
    fake.answer = lambda body, grey: Reply(status=401, body={})
    with pytest.raises(UserError, match=r"the server wants a key, or another one \(HTTP 401\)\n.*APIECE_SERVER_KEY"):
        make().generate(list(questions(tiny_side, 1)))
    assert fake.keys == [None, "Bearer secret"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("http://a:1/", "http://a:1/v1"),
        ("https://a/v1/", "https://a/v1"),
        ("http://a/proxy/v1/chat/completions", "http://a/proxy/v1"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert base_url(url) == expected


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://a", "http://", "http://a:b"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UserError, match="expected an address such as"):
        base_url(url)


def test_the_engine_in_this_process_does_not_stream(tiny_side: TextSide) -> None:
    assert not isinstance(LocalEngine(None, tiny_side, GenerateSection()), StreamingEngine)
