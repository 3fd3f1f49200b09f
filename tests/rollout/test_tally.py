"""Figures of Channel-B's answers, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from test_targets import BOOK, CAR, DUPLICATE, NEAR_BOOK, ZEBRA, answer, build, image

from apiece.rollout.targets import KEYS, figures, tally


def test_figures_of_two_answers(tiny_side: Any) -> None:
    renderer = tiny_side.renderer
    right = build(renderer, answer(renderer, NEAR_BOOK), image(BOOK))
    wrong = build(renderer, answer(renderer, NEAR_BOOK, DUPLICATE, ZEBRA, cut=-1), image(BOOK, CAR))
    found = figures(tally([right, wrong], 3.0) | {"update_s": 1.0, "steps": 1.0})
    expected = {
        "objects_per_answer": 2.0,
        "labels_per_image": 1.5,
        "precision": 2 / 4,
        "recall": 2 / 3,
        "f1": 4 / 7,
        "truncated": 0.5,
        "appended_share": 1 / 5,
        "kept_share": 1.0,
        "redundant_per_answer": 0.5,
        "generate_s": 3.0,
        "update_s": 1.0,
        "generate_time_share": 0.75,
        "outcome/tp": 2 / 4,
        "outcome/duplicate": 1 / 4,
        "outcome/background": 1 / 4,
        "finish/eos": 0.5,
        "finish/length": 0.5,
        "dropped/truncated": 0.0,
    }
    assert {name: found[f"b/{name}"] for name in expected} == pytest.approx(expected)


def test_nothing_written_gives_zeros(tiny_side: Any) -> None:
    nothing = tally([], 0.0)
    assert tuple(nothing) == KEYS
    assert not any(nothing.values())
    assert not any(figures(nothing).values())


def test_counts_add_up(tiny_side: Any) -> None:
    renderer = tiny_side.renderer
    one = build(renderer, answer(renderer, NEAR_BOOK, ZEBRA), image(BOOK, CAR))
    two = build(renderer, answer(renderer, DUPLICATE, DUPLICATE), image(BOOK))
    together, parts = tally([one, two], 2.0), (tally([one], 1.5), tally([two], 0.5))
    assert together == pytest.approx({key: parts[0][key] + parts[1][key] for key in KEYS})
