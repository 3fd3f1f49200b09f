"""Strategies that spoil what is right: JSON values with something wrong inside, texts with something in between."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

ODD = (
    *(None, True, False, 0, 1, -1, 2, 1000, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, 3.0, -0.0, 1e308, 1e-308),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "x",
        "1",
        "tiny",
        "a" * 300,
        "\0",
        "\ud800",
        "‮é😀",
        "../..",
        "/",
    ),
    *([], {}, [[]], [{}], [None], {"": 0}, [0, 0, 0, 0], [1, 2, 3], [float("nan")] * 4, {"a": {"b": {"c": []}}}),
)
"""Values that are seldom what is expected."""

JUNK = (
    *(
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\xe2\x80\xa8",
        b"\t",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(
        b",",
        b":",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"[" * 2000,
        b"//",
        b"\\u0000",
        b"\\ud800",
        b"null",
        b"01",
    ),
)
"""Bytes that are seldom where they belong."""

Path = tuple[str | int, ...]


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


@st.composite
def spoilt(draw: st.DrawFn, good: Any, most: int = 3) -> Any:
    """A JSON value with up to `most` places replaced, taken out, doubled, renamed or swapped for another of its own."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, most))):
        paths = list(places(value))
        path = draw(st.sampled_from(paths))
        if not path:
            if draw(st.integers(0, 9)) == 0:  # the whole is another thing: once in a while is enough
                return draw(st.sampled_from(ODD))
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        how, last = draw(st.sampled_from(["replace", "replace", "drop", "add", "swap"])), path[-1]
        if how == "replace":
            holder[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif how == "drop":
            del holder[last]
        elif how == "swap":
            other = value
            for key in draw(st.sampled_from(paths)):
                other = other[key]
            holder[last] = copy.deepcopy(other)
        elif isinstance(holder, list):
            holder.insert(int(last), copy.deepcopy(holder[last]))
        else:
            holder[f"{last}_"] = copy.deepcopy(holder[last])
    return value


def encode(value: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(value).encode()


@st.composite
def torn(draw: st.DrawFn, content: bytes, most: int = 3) -> bytes:
    """Bytes with some cut out, doubled, or junk put in."""
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 0, 1, 3, 50, 10_000])))
        part = draw(st.sampled_from([b"", *JUNK, content[start:end] * 2]))
        content = content[:start] + part + content[end:]
    return content


@st.composite
def spoilt_lines(draw: st.DrawFn, good: Sequence[Any]) -> bytes:
    """A JSONL file of which some lines are spoilt and the whole may be torn."""
    lines = [encode(draw(spoilt(one)) if draw(st.booleans()) else one) for one in good]
    text = b"\n".join(lines) + draw(st.sampled_from([b"\n", b"", b"\n\n", b"\r\n"]))
    return draw(torn(text, 1))
