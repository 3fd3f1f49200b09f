"""Every verdict on a split that was made for it, and just short of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from worlds import ROW, STRIP, Beliefs, World

from apiece.evaluate.detections import samples_to_ground_truth
from apiece.stats.draws import ImageDraws
from apiece.study.diagnosis import NOTHING, Explained, Stand, explain
from apiece.study.evidence import ENOUGH_IMAGES, Figure, labelled_groups, mean
from apiece.types import Instance, Sample

AVERAGED = Beliefs(gap=30.0, modes=2)
MIXED = Beliefs(chimeras=2, follow=(0.1, 0.7))


def judge(world: World, training: Figure | None = None) -> Explained:
    return explain(world.evidence(), training_groups=training)


def stands(verdict: Explained) -> tuple[str, ...]:
    return tuple(str(e.stand) for e in verdict.explanations.values())


YES, NO, MAYBE = "supported", "refuted", "can't tell"


@pytest.mark.parametrize(
    ("world", "verdict", "expected"),
    [
        pytest.param(World(under=AVERAGED), ("averaging",), (YES, NO, NO), id="averaging"),
        pytest.param(World(under=MIXED, elsewhere=MIXED), ("chimera",), (NO, YES, NO), id="chimera"),
        pytest.param(World(strips=12, labelled_strips=25), ("labels",), (NO, NO, YES), id="labels"),
        pytest.param(
            World(strips=12, labelled_strips=25, hidden=True), ("labels",), (NO, NO, YES), id="labels in place of rows"
        ),
        pytest.param(World(), (MAYBE,), (NO, NO, NO), id="none of them"),
        pytest.param(World(strips=0), (NOTHING,), (MAYBE, NO, MAYBE), id="no long boxes"),
        pytest.param(
            World(under=replace(MIXED, gap=30, modes=2), elsewhere=MIXED), ("averaging", "chimera"), (YES, YES, NO),
            id="two at once",
        ),
        pytest.param(World(under=AVERAGED, elsewhere=AVERAGED), (MAYBE,), (MAYBE, NO, NO), id="gaps everywhere alike"),
        pytest.param(World(elsewhere=AVERAGED), (MAYBE,), (NO, NO, NO), id="gaps elsewhere alone"),
        pytest.param(World(under=Beliefs(gap=30)), (MAYBE,), (NO, NO, NO), id="gaps of one lopsided peak"),
        pytest.param(World(under=Beliefs(gap=5, modes=2)), (MAYBE,), (NO, NO, NO), id="two peaks, no gap"),
        pytest.param(
            World(under=Beliefs(chimeras=2), elsewhere=Beliefs(chimeras=2)), (MAYBE,), (NO, NO, NO),
            id="mixed contexts, but the box that was begun is finished",
        ),
        pytest.param(
            World(under=replace(MIXED, chimeras=0), elsewhere=replace(MIXED, chimeras=0)), (MAYBE,), (NO, NO, NO),
            id="boxes are not finished, but contexts are clean",
        ),
        pytest.param(
            World(under=replace(MIXED, follow=(0.01, 0.02)), elsewhere=replace(MIXED, follow=(0.01, 0.02))),
            (MAYBE,), (NO, MAYBE, NO), id="mass near neither box",
        ),
        pytest.param(World(images=9, strips=5, under=AVERAGED), (MAYBE,), (MAYBE, MAYBE, MAYBE), id="too few images"),
        pytest.param(World(strips=9, under=AVERAGED), (MAYBE,), (MAYBE, NO, NO), id="too few long boxes"),
        pytest.param(World(probed=False), (MAYBE,), (MAYBE, MAYBE, NO), id="no probes"),
        pytest.param(World(labelled_strips=3), (MAYBE,), (NO, NO, MAYBE), id="a few labelled strips"),
        pytest.param(World(images=0, strips=0), (NOTHING,), (MAYBE, MAYBE, MAYBE), id="no images"),
    ],
)  # fmt: skip
def test_verdicts(world: World, verdict: tuple[str, ...], expected: tuple[str, ...]) -> None:
    found = judge(world)
    assert stands(found) == expected
    assert found.verdict == verdict


def test_labels_trained_on_count_as_well() -> None:
    world = World()
    rate = judge(world).rate
    assert rate.value == pytest.approx(20 / 100)
    many, few = (Figure(x, x, x, 1000, 100) for x in (0.3, 0.05))
    assert judge(world, many).verdict == ("labels",)
    assert judge(world, few).explanations["labels"].stand is Stand.CANNOT_TELL
    assert "trained on" in judge(world, few).explanations["labels"].because


def test_numbers_are_those_of_the_split() -> None:
    found = judge(World(under=AVERAGED, elsewhere=Beliefs(gap=2.0)))
    averaging = found.explanations["averaging"]
    assert averaging.numbers["gap"].value == pytest.approx(30)
    assert averaging.numbers["gap"].items == 80
    assert averaging.numbers["gap"].images == 20
    assert averaging.numbers["gap_elsewhere"].value == pytest.approx(2)
    assert averaging.numbers["gap_difference"].value == pytest.approx(28)
    assert averaging.numbers["several_peaks"].value == 1
    assert "30.0 bins" in averaging.because
    chimera = judge(World(under=MIXED)).explanations["chimera"].numbers
    assert chimera["chimera"].value == pytest.approx(0.25)
    assert chimera["chimera_under_long"].value == pytest.approx(0.5)
    assert chimera["follow"].value == pytest.approx((0.1 + 0.8) / (0.1 + 0.7 + 0.8 + 0.1))


def test_an_image_without_labels_and_a_lone_object_change_nothing() -> None:
    alone = Sample("alone", World().samples()[0].image, (400, 100), (Instance("cup", ROW[0]),))
    empty = Sample("empty", alone.image, (400, 100))
    crowd = Sample("crowd", alone.image, (400, 100), (Instance("book", STRIP, iscrowd=True),))
    found = judge(World(under=AVERAGED, more=(alone, empty)))
    assert found.verdict == ("averaging",)
    assert found.explanations["averaging"].numbers["gap_elsewhere"].items == 80
    assert not labelled_groups(samples_to_ground_truth([crowd])).any()


def test_few_images_decide_nothing() -> None:
    draws = ImageDraws(np.ones(ENOUGH_IMAGES, dtype=bool))
    image = np.arange(ENOUGH_IMAGES)
    few = mean(draws, image[1:], np.arange(1.0, 10.0))
    assert few.lo is not None and few.interval is None
    assert not few.above(few.lo - 1)
    whole = mean(draws, image, np.arange(10.0))
    assert whole.value == 4.5
    assert whole.lo is not None and whole.hi is not None
    assert 1.5 < whole.lo < 4.5 < whole.hi < 7.5
    assert whole.above(1.5) and whole.below(7.5)
    assert mean(draws, image[:0], []).as_dict() == {"value": None, "lo": None, "hi": None, "items": 0, "images": 0}
    gaps = mean(draws, image, np.where(image < 5, np.nan, 2.0))
    assert (gaps.value, gaps.items) == (2, 5)


@pytest.mark.parametrize(
    ("world", "said"),
    [
        pytest.param(
            World(strips=0), "no probed label is under a long box; elsewhere the expectation", id="no long boxes"
        ),
        pytest.param(World(probed=False), "no label was probed", id="no probes"),
    ],
)
def test_what_is_not_known_is_said_in_words(world: World, said: str) -> None:
    found = judge(world).explanations
    assert found["averaging"].because.startswith(said)
    assert not any("unknown" in explanation.because for explanation in found.values())
