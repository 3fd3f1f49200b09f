"""First values of coordinate rows: close where bins are close, and never the same."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose

from apiece.model.extend import ordinal_rows


@pytest.mark.parametrize("width", [31, 32, 192, 2048])
def test_neighbours_are_close_and_all_rows_differ(width) -> None:
    rows = ordinal_rows(1000, width, scale=1.0)
    assert rows.shape == (1000, width)
    assert rows.dtype == torch.float32
    gaps = torch.cdist(rows.double(), rows.double())
    next_to, ten, hundred, far = (gaps.diagonal(d) for d in (1, 10, 100, 500))
    assert float(next_to.min()) > 0.01 * width**0.5
    assert float((gaps + torch.eye(1000) * 1e6).min()) == pytest.approx(float(next_to.min()))  # none is nearer
    assert next_to.mean() < ten.mean() < hundred.mean() < far.mean()
    assert next_to.max() < hundred.min()


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_scale_and_mean(scale) -> None:
    mean = torch.linspace(-1, 1, 64)
    rows = ordinal_rows(1000, 64, scale=scale, mean=mean)
    assert float((rows - mean).pow(2).mean().sqrt()) == pytest.approx(scale, rel=0.02)
    assert_allclose(rows - mean, ordinal_rows(1000, 64, scale=scale), atol=1e-6)
