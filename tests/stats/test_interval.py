"""Intervals and verdicts: do they cover, and are the signs right?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apiece.stats.interval import Drawn, Verdict, compare_drawn


def drawn(part: np.ndarray, whole: np.ndarray, weights: np.ndarray) -> Drawn:
    """A ratio of sums for S seeds: part and whole are `[S, I]`."""
    return Drawn(part.sum(1) / whole.sum(1), (part @ weights.T) / (whole @ weights.T), part)


def simulate(
    rng: np.random.Generator, images: int, seeds: int, seed_sd: float, effect: float = 0.0, shared: float = 0.0
):
    """Two arms that answer the same images: a hard image is hard for both, seeds may differ in skill.

    `shared` is the deviation between seeds that both arms have in common, since runs of one seed see the same batches.
    """
    hard, labels = rng.beta(2, 2, images), rng.poisson(6, images) + 1
    weights = rng.multinomial(images, np.full(images, 1 / images), size=300)
    arms = []
    common = rng.normal(0, shared, (seeds, 1)) if shared else 0.0
    for shift in (0.0, effect):
        skill = (
            0.2 + 0.5 * hard + shift + common + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 0.1, (seeds, images))
        )
        skill = np.clip(skill, 0.01, 0.99)
        tp, fp = rng.binomial(labels, skill), rng.poisson(3 * (1 - skill))
        arms.append(drawn(2 * tp, labels + tp + fp, weights))
    return arms


@pytest.mark.parametrize(
    ("images", "seeds", "seed_sd"),
    [(12, 1, 0.0), (60, 1, 0.0), (40, 3, 0.0), (40, 3, 0.05)],
    ids=["few images", "images", "seeds that do not differ", "seeds that differ"],
)
def test_intervals_cover_a_difference_of_zero(images: int, seeds: int, seed_sd: float) -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        found = compare_drawn(*simulate(rng, images, seeds, seed_sd), images, rng, higher_is_better=True)
        assert found.lo is not None
        assert found.hi is not None
        covered += found.lo <= 0 <= found.hi
    assert 0.9 <= covered / 300 <= 0.985  # 95 % nominal; sd of this share is 1.3 %


@pytest.mark.parametrize(("seeds", "seed_sd", "shared"), [(3, 0.0, 0.05), (3, 0.02, 0.05), (5, 0.05, 0.0)])
def test_intervals_of_the_same_seeds_cover(seeds: int, seed_sd: float, shared: float) -> None:
    rng = np.random.default_rng(7)
    covered, widths = 0, []
    for _ in range(300):
        a, b = (replace(arm, seeds=tuple(range(seeds))) for arm in simulate(rng, 60, seeds, seed_sd, shared=shared))
        found = compare_drawn(a, b, 60, rng, higher_is_better=True)
        unpaired = compare_drawn(replace(a, seeds=None), b, 60, rng, higher_is_better=True)
        covered += found.lo <= 0 <= found.hi
        widths.append((found.hi - found.lo, unpaired.hi - unpaired.lo))
    assert 0.9 <= covered / 300 <= 0.99
    if shared:
        own, of_unpaired = np.mean(widths, axis=0)
        assert own < 0.75 * of_unpaired  # what seeds have in common is no doubt about their difference


def test_seeds_are_paired_by_what_they_are_not_by_their_place() -> None:
    a, b = (replace(arm, seeds=(0, 1, 2)) for arm in simulate(np.random.default_rng(0), 60, 3, 0.0, shared=0.1))
    turned = Drawn(*(np.roll(x, 1, axis=0) for x in (b.point, b.draws, b.part)), (2, 0, 1))
    one, other = (compare_drawn(a, x, 60, np.random.default_rng(1), higher_is_better=True) for x in (b, turned))
    assert (one.lo, one.hi) == pytest.approx((other.lo, other.hi), rel=1e-9)
    wrong = compare_drawn(a, replace(turned, seeds=(0, 1, 2)), 60, np.random.default_rng(1), higher_is_better=True)
    assert wrong.hi - wrong.lo > 1.5 * (one.hi - one.lo)


def test_without_the_part_of_seeds_intervals_would_not_cover() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        a, b = simulate(rng, 200, 2, 0.05)
        one = [Drawn(arm.point[:1], arm.draws[:1]) for arm in (a, b)]
        found = compare_drawn(*one, 200, rng, higher_is_better=True)
        assert found.lo is not None
        assert found.hi is not None
        covered += found.lo <= 0 <= found.hi
    assert covered / 200 < 0.7  # what the remark about single runs warns of


def test_pairing_makes_intervals_narrow() -> None:
    rng = np.random.default_rng(0)
    a, b = simulate(rng, 100, 1, 0.0)
    shuffled = Drawn(b.point, rng.permuted(b.draws, axis=1))
    paired = compare_drawn(a, b, 100, rng, higher_is_better=True)
    unpaired = compare_drawn(a, shuffled, 100, rng, higher_is_better=True)
    assert paired.hi - paired.lo < 0.9 * (unpaired.hi - unpaired.lo)


@pytest.mark.parametrize(
    ("effect", "higher_is_better", "verdict"),
    [
        (0.3, True, Verdict.BETTER),
        (0.3, False, Verdict.WORSE),
        (0.3, None, Verdict.HIGHER),
        (-0.3, True, Verdict.WORSE),
        (-0.3, False, Verdict.BETTER),
        (-0.3, None, Verdict.LOWER),
    ],
)
def test_signs(effect: float, higher_is_better: bool | None, verdict: Verdict) -> None:
    rng = np.random.default_rng(0)
    a, b = simulate(rng, 100, 1, 0.0, effect)
    found = compare_drawn(a, b, 100, rng, higher_is_better=higher_is_better)
    assert found.difference == pytest.approx(b.value - a.value)
    assert found.difference * effect > 0
    assert found.lo < found.difference < found.hi
    assert (found.verdict, found.growth) == (verdict, None)


def test_equal_arms_are_the_same() -> None:
    rng = np.random.default_rng(0)
    a, _ = simulate(rng, 30, 2, 0.1)
    found = compare_drawn(a, a, 30, rng, higher_is_better=True)
    assert (found.difference, found.lo, found.hi, found.verdict) == (0, 0, 0, Verdict.SAME)


@pytest.mark.parametrize(
    ("events", "verdict"), [(2, Verdict.CANNOT_TELL), (5, Verdict.CANNOT_TELL), (6, Verdict.WORSE)]
)
@pytest.mark.parametrize("in_a", [False, True], ids=["in one arm", "the same in both"])
def test_few_events_have_no_verdict(events: int, verdict: Verdict, in_a: bool) -> None:
    """One arm has fewer predictions everywhere, so that its rate is higher in every draw where anything is met."""
    images = 100
    weights = np.random.default_rng(1).multinomial(images, np.full(images, 1 / images), size=2000)
    part = np.zeros((2, 1, images))
    part[:, :, :events] = [[[float(in_a)]], [[1.0]]]
    whole = np.stack([np.full((1, images), 10.0), np.full((1, images), 9.0)])
    a, b = (drawn(p, n, weights) for p, n in zip(part, whole, strict=True))
    found = compare_drawn(a, b, images, np.random.default_rng(2), higher_is_better=False)
    assert found.lo is not None
    assert found.difference > 0
    assert (found.verdict, found.growth) == (verdict, None)
    unheld = compare_drawn(replace(a, part=None), b, images, np.random.default_rng(2), higher_is_better=False)
    assert (unheld.lo > 0) == (events > 3)  # the interval alone would have said so from five on


def test_how_many_more_images_would_tell() -> None:
    """The same images four times have half the width: what was four times too few is now just enough."""
    rng = np.random.default_rng(3)
    images = 80
    hits = rng.random((2, images)) < 0.5
    part, whole = hits.astype(float)[:, None], np.ones((1, images))

    def compared(times: int):
        p, n = np.tile(part, (1, 1, times)), images * times
        weights = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), size=4000)
        a, b = (drawn(x, np.tile(whole, (1, times)), weights) for x in p)
        return compare_drawn(a, b, n, np.random.default_rng(2), higher_is_better=True)

    once = compared(1)
    assert once.verdict is Verdict.CANNOT_TELL
    assert once.growth is not None
    assert 1.5 < once.growth < 30
    assert compared(int(np.ceil(once.growth * 1.3))).verdict is not Verdict.CANNOT_TELL
    assert compared(max(int(once.growth / 1.3), 1)).verdict is Verdict.CANNOT_TELL


def test_where_seeds_differ_more_images_never_tell() -> None:
    rng = np.random.default_rng(0)
    a, b = simulate(rng, 2000, 3, 0.2, 0.05)
    found = compare_drawn(a, b, 2000, rng, higher_is_better=True)
    assert (found.verdict, found.growth) == (Verdict.CANNOT_TELL, None)


@pytest.mark.parametrize("units", [0, 1])
def test_one_image_gives_no_interval(units: int) -> None:
    a, b = (Drawn(np.array([x]), np.full((1, 100), x)) for x in (0.2, 0.9))
    found = compare_drawn(a, b, units, np.random.default_rng(0), higher_is_better=True)
    assert (found.lo, found.hi, found.verdict) == (None, None, Verdict.CANNOT_TELL)
    assert found.difference == pytest.approx(0.7)


def test_nothing_to_divide_gives_no_value() -> None:
    a = Drawn(np.array([np.nan]), np.full((1, 100), np.nan))
    b = Drawn(np.array([0.5]), np.full((1, 100), 0.5))
    found = compare_drawn(a, b, 10, np.random.default_rng(0), higher_is_better=True)
    assert (found.a, found.b, found.difference, found.lo) == (None, 0.5, None, None)


def test_draws_without_a_value_are_left_out() -> None:
    rng = np.random.default_rng(0)
    a, b = simulate(rng, 100, 1, 0.0, 0.3)
    holes = b.draws.copy()
    holes[:, ::10] = np.nan
    found = compare_drawn(a, Drawn(b.point, holes), 100, rng, higher_is_better=True)
    assert found.verdict is Verdict.BETTER
    most = np.where(np.arange(300) % 10 > 2, np.nan, b.draws)
    assert compare_drawn(a, Drawn(b.point, most), 100, rng, higher_is_better=True).lo is None
