"""What stands at the slots of the next pass has the same gradients, to the bit, however often it is worked out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from apiece.channels.a_soft_context import self_context
from apiece.config.schema import ContextEmbedMode, SoftContextReplace, Stage2Section

SLOTS, BINS, WIDTH = 4000, 50, 192


@pytest.fixture
def threads() -> Iterator[None]:
    """More than one, as in a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("replace", SoftContextReplace)
@pytest.mark.parametrize("mode", ContextEmbedMode)
def test_gradients_are_the_same_bits_every_time(mode: ContextEmbedMode, replace: SoftContextReplace) -> None:
    made = torch.Generator().manual_seed(0)
    logits_SK = torch.randn(SLOTS, BINS, generator=made)
    truth_S = torch.randint(BINS, (SLOTS,), generator=made)
    weight_SD = torch.randn(SLOTS, WIDTH, generator=made)
    config = Stage2Section(coord_ctx_embed_mode=mode, softctx_replace=replace, n_softctx_iter=2)

    def gradient() -> Tensor:
        table_KD = torch.ones(BINS, WIDTH, requires_grad=True)
        (self_context(logits_SK, truth_S, table_KD, config).embeds_SD * weight_SD).sum().backward()
        assert table_KD.grad is not None
        return table_KD.grad

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(20))
