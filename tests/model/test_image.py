"""Image sizes and patches: on the grid, under the budget, never enlarged, and the library's own values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from apiece.model.prompt import ImageEncoder, target_size

FACTORS = st.sampled_from([24, 28, 32])
BUDGETS = st.integers(10_000, 2_000_000)
SIDES = st.one_of(st.integers(1, 200), st.integers(1, 12_000))


@pytest.mark.parametrize(
    ("size", "factor", "budget", "expected"),
    [
        ((192, 192), 24, 36864, (192, 192)),  # on the grid, at the budget
        ((96, 48), 24, 36864, (96, 48)),  # on the grid: small images stay small
        ((100, 70), 24, 36864, (96, 72)),  # nearest multiples
        ((1, 1), 24, 36864, (24, 24)),  # one factor at least
        ((384, 384), 24, 36864, (192, 192)),  # shrunk
        ((768, 192), 24, 36864, (384, 96)),  # shrunk, aspect kept
        ((10_000, 1), 24, 36864, (1536, 24)),  # a line
        ((1, 10_000), 24, 36864, (24, 1536)),  # a line, upright
        ((300, 300), 24, 100, (24, 24)),  # a budget below one token
        ((1920, 1080), 32, 1_048_576, (1344, 768)),  # a photo at the default budget
    ],
)
def test_by_hand(size, factor, budget, expected) -> None:
    assert target_size(size, factor, budget) == expected


@given(width=SIDES, height=SIDES, factor=FACTORS, budget=BUDGETS)
def test_every_size(width, height, factor, budget) -> None:
    w, h = target_size((width, height), factor, budget)
    assert w % factor == h % factor == 0
    assert min(w, h) >= factor
    assert w * h <= budget
    # Never enlarged beyond rounding.
    assert w <= max(factor, width + factor / 2)
    assert h <= max(factor, height + factor / 2)
    # Never shrunk for nothing: less than two steps of a side away from the size that would just fit.
    shrink = min(1.0, (budget / (width * height)) ** 0.5)
    if min(width, height) * shrink >= 4 * factor:
        assert abs(w - width * shrink) <= 2 * factor
        assert abs(h - height * shrink) <= 2 * factor
        assert abs(np.log(w / h) - np.log(width / height)) < 0.3
    # Upright and lying are the same thing.
    assert sorted(target_size((height, width), factor, budget)) == sorted((w, h))


@given(columns=st.integers(1, 60), rows=st.integers(1, 60), factor=FACTORS)
def test_a_size_that_fits_is_kept(columns, rows, factor) -> None:
    size = (columns * factor, rows * factor)
    assert target_size(size, factor, size[0] * size[1]) == size


def noise(size_wh, seed: int = 0) -> Image.Image:
    width, height = size_wh
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["tiny", "published"])
def images(request, tiny_side) -> ImageEncoder:
    """The tiny model's encoder, and one whose patches are merged 2 x 2 and two frames deep."""
    if request.param == "tiny":
        return tiny_side.images
    size = {"shortest_edge": 24**2, "longest_edge": 192**2}
    return ImageEncoder(Qwen2VLImageProcessorPil(patch_size=12, merge_size=2, temporal_patch_size=2, size=size))


@pytest.mark.parametrize("size", [(192, 192), (100, 70), (24, 24), (30, 150), (384, 384), (250, 250), (61, 47)])
def test_patches_are_the_librarys_where_the_sizes_agree(images, size) -> None:
    image = noise(size)
    own = images.processor(images=[image], return_tensors="np")
    pixels, grid = images.encode(image)
    assert grid == tuple(own["image_grid_thw"][0])
    assert pixels.dtype == np.float32
    assert_array_equal(pixels, own["pixel_values"])


@pytest.mark.parametrize("size", [(24, 24), (100, 70), (500, 200)])
def test_tokens_and_patches(images, size) -> None:
    p = images.processor
    assert images.factor == p.patch_size * p.merge_size
    width, height = images.size_for(size)
    assert (width, height) == target_size(size, images.factor, 192**2)
    pixels, grid = images.encode(noise(size))
    assert grid == (1, height // p.patch_size, width // p.patch_size)
    assert pixels.shape == (grid[1] * grid[2], 3 * p.temporal_patch_size * p.patch_size**2)
    assert images.num_tokens(size) * p.merge_size**2 == len(pixels)


def test_the_budget_can_be_lowered_and_not_raised(images, tiny_side) -> None:
    assert images.size_for((5000, 5000)) == (192, 192)
    assert images.with_max_pixels(96 * 96).size_for((192, 192)) == (96, 96)
    assert images.with_max_pixels(10**9).size_for((5000, 5000)) == (192, 192)
    assert tiny_side.with_max_pixels(96 * 96).images.size_for((192, 192)) == (96, 96)
