"""Distributions in a few bytes: what comes back, what does not, and what is refused."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from apiece.dumps.form import LEVELS, MAX_CELLS, TAIL, decode_curve, encode_curve

K = 1000


def gaussian(mean: float, sigma: float) -> np.ndarray:
    mass = np.exp(-0.5 * ((np.arange(K) - mean) / sigma) ** 2)
    return mass / mass.sum()


def values(curve: dict[str, object]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(str(curve["values"])), dtype=np.uint8)


def test_one_certain_bin_is_one_byte() -> None:
    mass = np.zeros(K)
    mass[999] = 1.0
    curve = encode_curve(mass)
    assert curve == {"start": 999, "step": 1, "peak": 1.0, "values": "/w=="}
    assert np.array_equal(decode_curve(curve, K), mass)


@pytest.mark.parametrize("mass", [np.zeros(K), np.full(K, np.nan), np.r_[-1.0, np.ones(K - 1)], [np.inf] * 3])
def test_what_is_no_distribution_has_no_curve(mass: np.ndarray) -> None:
    assert encode_curve(mass) is None


@pytest.mark.parametrize(
    "mass",
    [
        gaussian(500, 2),
        gaussian(0, 8),
        gaussian(999, 30),
        gaussian(400, 500),
        np.full(K, 1 / K),
        0.5 * gaussian(20, 2) + 0.5 * gaussian(980, 2),
        np.random.default_rng(0).dirichlet(np.full(K, 0.01)),
        np.random.default_rng(1).dirichlet(np.ones(7)),
    ],
    ids=["narrow", "left edge", "right edge", "wide", "flat", "two modes", "spikes", "seven bins"],
)
def test_a_curve_holds_every_cell_to_half_a_level(mass: np.ndarray) -> None:
    curve = encode_curve(mass)
    assert curve is not None
    found, step, start = values(curve), curve["step"], curve["start"]
    assert len(found) <= MAX_CELLS
    assert found.max() == LEVELS
    cells = np.add.reduceat(mass, np.arange(0, len(mass), step))
    inside = slice(start // step, start // step + len(found))
    assert np.abs(found / LEVELS - np.sqrt(cells[inside] / cells.max())).max() <= 0.5 / LEVELS + 1e-9
    assert (np.delete(cells, np.r_[inside]) < TAIL * cells.max()).all()
    decoded = decode_curve(curve, len(mass))
    back = np.add.reduceat(decoded, np.arange(0, len(mass), step))
    assert np.abs(back - cells).max() <= cells.max() * 1.01 / LEVELS
    if step == 1:
        assert decoded.argmax() == mass.argmax()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": "&&"}, "not a curve"),
        ({"start": None}, "not a curve"),
        ({"start": -1}, "not a curve: start -1"),
        ({"start": 999}, "not a curve over 1000 bins: start 999, step 1, 2 values"),
        ({"values": base64.b64encode(b"a" * 65).decode()}, "65 values .at most 64"),
        ({"peak": float("nan")}, "peak of a curve must be a finite mass, got nan"),
    ],
)
def test_a_broken_curve_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_curve({"start": 3, "step": 1, "peak": 0.5, "values": "/wE="} | change, K)


def test_a_curve_needs_one_axis() -> None:
    with pytest.raises(ValueError, match=r"shape \[K\], got \[2, 3\]"):
        encode_curve(np.ones((2, 3)))
