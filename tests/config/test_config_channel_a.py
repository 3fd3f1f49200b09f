"""The settings of Channel-A: contradictions are refused; packaged configs load and differ as they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import apiece.cli.config  # noqa: F401  registers the command
from apiece.cli import app
from apiece.config.ladder import LadderFile
from apiece.config.reference import values
from apiece.config.resolve import load_config, load_file
from apiece.config.schema import CoordDecodeMode, SoftContextGrad
from apiece.errors import UserError
from apiece_scenes.benchmark import BenchmarkFile

CONFIGS = Path(__file__).parents[2] / "configs"
PROD = CONFIGS / "stage2_two_channel" / "prod"
TWO = "stage2_ab.n_softctx_iter=2"
WITHOUT = (
    "without self-context: set stage2_ab.n_softctx_iter to 2 or more and stage2_ab.b_ratio below 1, "
    "or set it back to its default"
)
SELF_CONTEXT = {
    "objective.bbox_geo.config.a1_smoothl1_weight": ("0.2", "0.0"),
    "objective.bbox_geo.config.a1_ciou_weight": ("0.02", "0.0"),
    "objective.coord_reg.config.a1_soft_ce_weight": ("0.02", "0.0"),
    "objective.coord_reg.config.a1_w1_weight": ("0.02", "0.0"),
    "objective.coord_reg.config.self_context_soft_ce_weight": ("0.1", "null"),
    "objective.token_ce.config.self_context_struct_ce_weight": ("0.2", "0.1"),
    "stage2_ab.softctx_grad_mode": ("em_detach", "unroll"),
    "stage2_ab.softctx_temperature": ("0.5", "1.0"),
    "stage2_ab.coord_ctx_embed_mode": ("soft", "st"),
    "stage2_ab.softctx_replace": ("near_gt", "all"),
    "stage2_ab.softctx_target": ("retarget", "identity"),
}


@pytest.mark.parametrize("path", SELF_CONTEXT)
def test_a_knob_of_self_context_without_self_context(path: str) -> None:
    value, default = SELF_CONTEXT[path]
    with pytest.raises(UserError, match=re.escape(f"{path}: has no effect {WITHOUT} ({default})")):
        load_config(None, [f"{path}={value}"])
    load_config(None, [f"{path}={value}", TWO])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage2_ab.n_softctx_iter=0"], "stage2_ab.n_softctx_iter: expected a whole number >= 1 and <= 8"),
        (["stage2_ab.n_softctx_iter=9"], "stage2_ab.n_softctx_iter: expected a whole number >= 1 and <= 8"),
        ([TWO, "stage2_ab.softctx_grad_mode=detach"], "stage2_ab.softctx_grad_mode: expected one of unroll, em_detach"),
        ([TWO, "stage2_ab.softctx_temperature=0"], "stage2_ab.softctx_temperature: expected a number > 0"),
    ],
)
def test_a_setting_that_makes_no_sense(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [TWO, "stage2_ab.softctx_radius=5", "stage2_ab.softctx_replace=near_gt"],
        [TWO, "stage2_ab.softctx_temperature=0.5", "stage2_ab.coord_ctx_embed_mode=soft"],
        [TWO, "stage2_ab.coord_ctx_embed_mode=hard"],
        [
            *(TWO, "stage2_ab.softctx_temperature=0.5"),
            *("stage2_ab.coord_ctx_embed_mode=soft", "stage2_ab.softctx_grad_mode=em_detach"),
        ],
        [TWO, "stage2_ab.coord_ctx_embed_mode=hard", "stage2_ab.softctx_grad_mode=em_detach"],
        ["stage2_ab.coord_decode_mode=st"],
    ],
)
def test_a_setting_that_does(overrides: list[str]) -> None:
    load_config(None, overrides)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [f"{path}={value}" for path, (value, _) in SELF_CONTEXT.items()])
    assert all(path in str(caught.value) for path in SELF_CONTEXT)


def test_there_are_configs() -> None:
    assert len(list(CONFIGS.rglob("*.yaml"))) > 10


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_shipped_config_loads(path: Path) -> None:
    others = {"ladders": LadderFile, "benchmarks": BenchmarkFile}
    if model := others.get(path.parent.name):
        load_file(path, model)
    else:
        load_config(path)


@pytest.mark.parametrize("path", sorted(PROD.glob("desc_first_a_only_*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_has_a_tiny_child_that_changes_the_same(path: Path) -> None:
    tiny = CONFIGS / "tiny"
    child = tiny / path.name.removeprefix("desc_first_")
    assert changes(child, tiny / "a_only.yaml") == changes(path, PROD / "desc_first_a_only.yaml") != {}


def changes(path: Path, base: Path) -> dict[tuple[str, ...], object]:
    """Settings of a config that its base does not have."""
    ours, theirs = (values(load_config(one).config) for one in (path, base))
    return {key: value for key, value in ours.items() if theirs[key] != value}


def test_the_baseline_has_the_seeds_values() -> None:
    config = load_config(PROD / "desc_first_a_only.yaml").config
    channel, geo, reg = config.stage2_ab, config.objective.bbox_geo.config, config.objective.coord_reg.config
    assert (channel.n_softctx_iter, channel.softctx_grad_mode) == (2, SoftContextGrad.UNROLL)
    assert (channel.coord_ctx_embed_mode.value, channel.coord_decode_mode) == ("st", CoordDecodeMode.EXP)
    assert config.objective.token_ce.weight == 1
    assert (geo.smoothl1_weight, geo.smoothl1_beta, geo.ciou_weight) == (2.0, 1.0, 0.2)
    assert (reg.soft_ce_weight, reg.w1_weight, reg.coord_ce_weight) == (0.1, 0.1, 0)
    assert (reg.coord_gate_weight, reg.text_gate_weight, reg.target_sigma, reg.target_truncate) == (1.0, 0, 2.0, 8)
    assert not any((geo.a1_smoothl1_weight, geo.a1_ciou_weight, reg.a1_soft_ce_weight, reg.a1_w1_weight))


def differences(path: Path, against: Path) -> dict[str, object]:
    """What `apiece config PATH --against OTHER` prints."""
    result = CliRunner().invoke(app, ["config", str(path), "--against", str(against)])
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.output)


@pytest.mark.parametrize(
    ("path", "against"),
    [
        (CONFIGS / "tiny" / "a_only_a1_anchor_small.yaml", CONFIGS / "tiny" / "a_only.yaml"),
        (PROD / "desc_first_a_only_a1_anchor_small.yaml", PROD / "desc_first_a_only.yaml"),
    ],
    ids=["tiny", "prod"],
)
def test_the_anchor_differs_in_four_values(path: Path, against: Path) -> None:
    assert differences(path, against) == {
        "objective": {
            "bbox_geo": {"config": {"a1_smoothl1_weight": 0.2, "a1_ciou_weight": 0.02}},
            "coord_reg": {"config": {"a1_soft_ce_weight": 0.02, "a1_w1_weight": 0.02}},
        }
    }


def test_a_child_for_this_machine_keeps_the_objective_and_the_channel() -> None:
    changed = differences(CONFIGS / "tiny" / "a_only.yaml", PROD / "desc_first_a_only.yaml")
    assert set(changed) <= {"model", "data", "optim", "train", "generate", "eval", "monitor"}


@pytest.mark.parametrize("name", sorted(p.stem for p in PROD.glob("desc_first_a_only_*.yaml")))
def test_a_rung_of_the_ladder_is_a_few_lines(name: str) -> None:
    changed = differences(PROD / f"{name}.yaml", PROD / "desc_first_a_only.yaml")
    assert set(changed) <= {"objective", "stage2_ab"}
    assert 1 <= len(re.findall(r"[^{,]:\s*[^{\s]", str(changed))) <= 4
