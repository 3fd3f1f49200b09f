"""Augmentation: boxes stay on their objects, and a box that is mostly cut away is no label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apiece.data.augment import MIN_KEPT, mirror, random_crop
from apiece.types import Instance

WIDTH, HEIGHT = 64, 48


def painted(*boxes: tuple[int, int, int, int]) -> tuple[Image.Image, list[Instance]]:
    """A black image with boxes in colours of their own, and their labels; the id of a label is its grey value."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    objects = []
    for number, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        pixels[y1:y2, x1:x2] = 10 * number
        objects.append(Instance("box", (x1, y1, x2, y2), area=float((x2 - x1) * (y2 - y1)), id=10 * number))
    return Image.fromarray(pixels), objects


def extent(image: Image.Image, grey: int) -> tuple[int, int, int, int] | None:
    """The box of all pixels of a grey value."""
    rows, columns = np.nonzero(np.asarray(image)[..., 0] == grey)
    if not len(rows):
        return None
    return (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


CORNERS = ((0, 0, 8, 6), (50, 2, 64, 20), (3, 30, 20, 48), (30, 22, 41, 37))


def test_mirrored_boxes_stay_on_their_objects() -> None:
    image, objects = mirror(*painted(*CORNERS))
    assert image.size == (WIDTH, HEIGHT)
    assert [o.bbox_xyxy for o in objects] == [extent(image, o.id) for o in objects]
    assert objects[0].bbox_xyxy == (56, 0, 64, 6)
    assert [o.area for o in objects] == [o.area for o in painted(*CORNERS)[1]]


def test_mirrored_twice_is_the_same() -> None:
    image, objects = painted(*CORNERS)
    again, back = mirror(*mirror(image, objects))
    assert back == objects
    assert np.array_equal(np.asarray(again), np.asarray(image))


def test_nothing_to_mirror_or_crop() -> None:
    image, _ = painted()
    assert mirror(image, [])[1] == []
    assert random_crop(image, [], 0.5, np.random.default_rng(0))[1] == []


@given(seed=st.integers(0, 2**32), jitter=st.floats(0, 0.9))
def test_cropped_boxes_stay_on_their_objects(seed, jitter) -> None:
    before, labels = painted(*CORNERS)
    image, objects = random_crop(before, labels, jitter, np.random.default_rng(seed))
    assert image.width >= (1 - jitter) * WIDTH - 0.5
    assert image.height >= (1 - jitter) * HEIGHT - 0.5
    assert image.width <= WIDTH and image.height <= HEIGHT
    kept = {o.id: o for o in objects}
    for label in labels:
        seen = extent(image, label.id)
        x1, y1, x2, y2 = seen or (0, 0, 0, 0)
        share = (x2 - x1) * (y2 - y1) / label.area
        assert (label.id in kept) == (share >= MIN_KEPT)
        if label.id in kept:
            assert kept[label.id].bbox_xyxy == seen
            assert kept[label.id].desc == label.desc
            assert kept[label.id].area is None  # the mask's area is not known any more


def test_crops_are_drawn_from_the_generator_and_go_everywhere() -> None:
    image, objects = painted(*CORNERS)
    one, two = (random_crop(image, objects, 0.5, np.random.default_rng(7)) for _ in range(2))
    assert one[1] == two[1]
    assert np.array_equal(np.asarray(one[0]), np.asarray(two[0]))
    # The position of the image's own pixels tells the window: give each pixel its place as colour.
    places = np.stack([*np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), np.zeros((HEIGHT, WIDTH))], -1)
    marked = Image.fromarray(places.astype(np.uint8))
    rng = np.random.default_rng(0)
    windows = [random_crop(marked, [], 0.5, rng)[0] for _ in range(300)]
    assert {w.getpixel((0, 0))[0] for w in windows} >= set(range(20))
    assert {w.getpixel((w.width - 1, 0))[0] for w in windows} >= set(range(44, WIDTH))
    assert {w.getpixel((0, w.height - 1))[1] for w in windows} >= set(range(34, HEIGHT))
    assert min(w.width for w in windows) == WIDTH // 2


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_the_smallest_images(size) -> None:
    image = Image.new("RGB", size)
    objects = [Instance("dot", (0, 0, *size))]
    assert mirror(image, objects)[1] == objects
    cropped, kept = random_crop(image, objects, 0.9, np.random.default_rng(0))
    assert min(cropped.size) >= 1
    assert len(kept) <= 1
