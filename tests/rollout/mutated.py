"""Answers of a made-up model: labels, records that are off in every way, and tokens broken at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apiece.codec import Renderer
from apiece.codec.render import DescBins
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.types import FinishReason, Instance, Rollout, Sample

NAMES = ("book", "person", "traffic light")
SIZE = (640, 480)


def scene(rng: np.random.Generator) -> Sample:
    """Up to eight labels, some side by side, some too thin for a bin, some crowd regions."""
    objects = []
    for _ in range(rng.integers(0, 9)):
        x, y = float(rng.uniform(0, 500)), float(rng.uniform(0, 400))
        w, h = rng.uniform(10, 140), rng.uniform(10, 80)
        if rng.random() < 0.05:
            w = 0.1
        desc = NAMES[rng.integers(len(NAMES))]
        objects.append(Instance(desc, (x, y, float(x + w), float(y + h)), iscrowd=bool(rng.random() < 0.1)))
        if rng.random() < 0.4:
            objects.append(Instance(desc, (float(x + w), y, float(x + 2 * w), float(y + h))))
    return Sample("s", Path("s.png"), SIZE, tuple(objects))


def rollout(ids: list[int], tokenizer: Any) -> Rollout:
    return Rollout(
        "s",
        np.array(ids, dtype=np.int64),
        np.zeros(len(ids), dtype=np.float32),
        decode_exact(tokenizer, ids),
        FinishReason.EOS if ids and ids[-1] == tokenizer.eos_token_id else FinishReason.LENGTH,
    )


def seen(sample: Sample, rng: np.random.Generator) -> list[DescBins]:
    """What a model might say of it: labels moved about, left out, said twice, joined, and inventions."""
    out: list[DescBins] = []
    for item in sample.objects:
        bins = np.rint(np.array(item.bbox_xyxy) / np.array(SIZE * 2) * 999)
        if rng.random() < 0.6:
            out.append(_record(item.desc, bins + rng.normal(0, 6, 4)))
        if rng.random() < 0.2:
            out.append(_record(item.desc, bins + rng.normal(0, 3, 4)))
        if rng.random() < 0.15:
            out.append(_record(item.desc, bins + np.array([0, 0, bins[2] - bins[0], 0])))
        if rng.random() < 0.15:
            out.append(_record(NAMES[rng.integers(len(NAMES))], rng.uniform(0, 999, 4)))
    return out


def _record(desc: str, bins: np.ndarray) -> DescBins:
    x1, y1 = np.clip(np.minimum(bins[:2], bins[2:]), 0, 990).astype(int).tolist()
    x2, y2 = np.clip(np.maximum(bins[:2], bins[2:]), 0, 999).astype(int).tolist()
    return desc, (x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))


def broken(ids: list[int], renderer: Renderer, rng: np.random.Generator) -> list[int]:
    """Up to three changes: tokens lost, doubled, swapped, drawn anew; cuts; other spellings; foreign text; loops."""
    tokenizer, vocab = renderer.tokenizer, renderer.vocab
    for _ in range(rng.integers(0, 4)):
        at = int(rng.integers(0, len(ids) + 1))
        end = min(len(ids), at + int(rng.integers(1, 12)))
        coords = [i for i, token in enumerate(ids) if vocab.bin_of(token) is not None]
        match int(rng.integers(0, 10)):
            case 0:
                ids = ids[:at]
            case 1:
                ids = ids[:at] + ids[end:]
            case 2:
                ids = ids[:end] + ids[at:end] * int(rng.integers(1, 4)) + ids[end:]
            case 3:
                ids = [*ids[:at], int(rng.integers(0, vocab.end_id)), *ids[at + 1 :]]
            case 4 if len(coords) > 1:  # two coordinates change places: boxes turn inside out
                i, j = rng.choice(coords, 2)
                ids[i], ids[j] = ids[j], ids[i]
            case 5 if coords:  # one coordinate becomes another: boxes of no area, too
                i = int(rng.choice(coords))
                ids[i] = int(rng.choice([ids[rng.choice(coords)], vocab.token_id(int(rng.integers(0, 1000)))]))
            case 6:  # the same text in other tokens
                text = decode_exact(tokenizer, ids[at:end])
                ids = ids[:at] + [t for c in text for t in encode_plain(tokenizer, c)] + ids[end:]
            case 7:
                text = str(rng.choice([" ", "]}", ", ", '{"desc": "', '"', "x", "]}]}", "<|im_end|>", "é", "[", "\n"]))
                ids = ids[:at] + encode_plain(tokenizer, text) + ids[at:]
            case 8 if len(coords) > 7:  # a record again and again
                i = 4 * int(rng.integers(0, len(coords) // 4 - 1)) + 3
                start, stop = coords[i] + 1, coords[min(i + 4, len(coords) - 1)] + 1
                ids = ids[:stop] + ids[start:stop] * int(rng.integers(1, 20)) + ids[stop:]
            case 9:
                ids = [*ids, renderer.eos_id]
            case _:
                pass
    return ids
