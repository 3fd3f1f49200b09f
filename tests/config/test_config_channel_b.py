"""The settings of Channel-B: knobs of a channel without steps are refused; shipped configs differ as they say."""

from __future__ import annotations

import re

import pytest
from test_config_channel_a import CONFIGS, PROD, SELF_CONTEXT, WITHOUT, differences

from apiece.config.resolve import load_config
from apiece.errors import UserError

ONLY_B = "stage2_ab.b_ratio=1.0"
NO_A = "with `stage2_ab.b_ratio: 1`, which leaves no step to Channel-A: lower that, or set it back to its default"


def test_a_knob_of_channel_a_without_channel_a() -> None:
    with pytest.raises(UserError, match=re.escape(f"stage2_ab.n_softctx_iter: has no effect {NO_A} (1)")):
        load_config(None, ["stage2_ab.n_softctx_iter=2", ONLY_B])


@pytest.mark.parametrize("path", SELF_CONTEXT)
def test_a_knob_of_self_context_without_channel_a(path: str) -> None:
    value, default = SELF_CONTEXT[path]
    with pytest.raises(UserError, match=re.escape(f"{path}: has no effect {WITHOUT} ({default})")):
        load_config(None, [f"{path}={value}", ONLY_B])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stage2_ab.b_redundancy_weight=1.0"],
            "stage2_ab.b_redundancy_weight: has no effect with `stage2_ab.b_ratio: 0`, which never generates "
            "answers: raise that, or set it back to its default (0.0)",
        ),
        (
            ["stage2_ab.b_ratio=0.001", "train.steps=999", "optim.warmup_steps=5"],
            "stage2_ab.b_ratio (0.001) gives Channel-B none of train.steps (999): raise one of them, or set it to 0",
        ),
        (["stage2_ab.b_ratio=1.5"], "stage2_ab.b_ratio: expected a number >= 0 and <= 1"),
        (["stage2_ab.b_ratio=-0.1"], "stage2_ab.b_ratio: expected a number >= 0 and <= 1"),
        ([ONLY_B, "stage2_ab.b_redundancy_weight=-1"], "stage2_ab.b_redundancy_weight: expected a number >= 0"),
    ],
)
def test_a_setting_that_makes_no_sense(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [ONLY_B, "stage2_ab.b_redundancy_weight=1.0"],
        ["stage2_ab.b_ratio=0.5", "stage2_ab.n_softctx_iter=2", "stage2_ab.softctx_grad_mode=em_detach"],
        ["stage2_ab.b_ratio=0.001", "train.steps=1000"],
        [ONLY_B, "stage2_ab.coord_decode_mode=st"],
    ],
)
def test_a_setting_that_does(overrides: list[str]) -> None:
    load_config(None, overrides)


def test_the_mixed_config_is_the_baseline_and_a_ratio() -> None:
    assert differences(PROD / "ab_mixed.yaml", PROD / "desc_first_a_only.yaml") == {"stage2_ab": {"b_ratio": 0.5}}
    assert differences(PROD / "b_only.yaml", PROD / "desc_first_a_only.yaml") == {
        "stage2_ab": {"b_ratio": 1.0, "n_softctx_iter": 1}
    }


@pytest.mark.parametrize("name", ["ab_mixed", "b_only"])
def test_a_child_for_this_machine_changes_what_that_of_the_baseline_does(name: str) -> None:
    changed = differences(CONFIGS / "tiny" / f"{name}.yaml", PROD / f"{name}.yaml")
    assert changed == differences(CONFIGS / "tiny" / "a_only.yaml", PROD / "desc_first_a_only.yaml")
