"""Rules about what is trained: frozen parts, adapters and their rates."""

from __future__ import annotations

import pytest

from apiece.config.resolve import load_config
from apiece.config.rules import trained_parts
from apiece.config.schema import Part
from apiece.errors import UserError

LORA = "model.lora.rank=8"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], "vision merger language coord"),
        (["model.freeze=[vision]"], "merger language coord"),
        (["model.freeze=[vision, merger, language]"], "coord"),
        (["optim.lr_vision=0", "optim.lr_merger=0.0"], "language coord"),
        ([LORA], "merger language coord"),
        ([LORA, "model.lora.targets=[vision]"], "vision coord"),
        ([LORA, "model.freeze=[coord]"], "merger language"),
        ([LORA, "optim.lr_vision=0.0"], "merger language coord"),
    ],
)
def test_parts_that_are_trained(overrides: list[str], parts: str) -> None:
    assert trained_parts(load_config(None, overrides).config) == tuple(Part(p) for p in parts.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.freeze=[vision, merger, language, coord]"], "model.freeze: nothing is left to train"),
        (["model.freeze=[language, coord]", "optim.lr_vision=0", "optim.lr_merger=0"], "nothing is left to train"),
        (["model.freeze=[tower]"], "model.freeze"),
        ([LORA, "model.lora.targets=[]"], "model.lora.targets: name one or more of vision, merger, language"),
        ([LORA, "model.lora.targets=[coord]"], "model.lora.targets: name one or more of vision, merger, language"),
        ([LORA, "model.freeze=[language]"], "adapters of language would not be trained: leave out of targets"),
        ([LORA, "optim.lr_merger=0"], "adapters of merger would not be trained"),
        ([LORA, "optim.name=muon"], "optim.name: `muon` is for whole matrices"),
        (["model.lora.alpha=8.0"], "model.lora.alpha: has no effect with `model.lora.rank: 0`"),
        (["model.lora.dora=true"], "model.lora.dora: has no effect with `model.lora.rank: 0`"),
        (["model.freeze=[vision]", "optim.lr_vision=1e-5"], "optim.lr_vision: has no effect as vision is not trained"),
        ([LORA, "optim.lr_vision=1e-5"], "optim.lr_vision: has no effect as vision is not trained"),
        ([LORA, "model.lora.dropout=1.0"], "model.lora.dropout"),
        ([LORA, "model.lora.rank=-1"], "model.lora.rank"),
    ],
)
def test_what_would_train_nothing_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        load_config(None, overrides)
