"""One step: splitting a batch changes nothing; a value that is not finite stops it before the update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import small_config, small_scenes

from apiece.channels.a_soft_context import SoftContext
from apiece.config.schema import Part
from apiece.data.collate import Batch
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.losses.compose import Objective
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.families import count_parameters, describe_parameters, part_of
from apiece.model.load import load_model, load_text_side
from apiece.train.batches import BatchPlan, micro_batches
from apiece.train.distributed import World
from apiece.train.step import WholeMuon, build_optimizers, freeze_parts, lr_scale, train_step

CPU = World(0, 1, torch.device("cpu"))


class Rig:
    """A model in float64 with everything a step needs."""

    def __init__(self, root: Path, checkpoint: Path, data: Path) -> None:
        self.config = small_config(root, checkpoint, data)
        side = load_text_side(str(checkpoint))
        self.model = load_model(str(checkpoint), dtype=torch.float64).train()
        self.objective = Objective(
            self.config.objective, self.config.stage2_ab.coord_decode_mode, side.vocab.first_id, side.vocab.num_bins
        )
        self.channel = SoftContext(self.model, self.objective, self.config.stage2_ab)
        self.encoder = SampleEncoder(side, PromptTokens.of(side, "Detect."), 8192)
        self.samples = read_jsonl(data)

    def batches(self, micro: int) -> list[Batch]:
        plan = BatchPlan([1] * len(self.samples), 8, 1, 0)
        stream = micro_batches(
            self.samples, self.encoder, Augmentation(), plan, start=0, stop=1, rank=0, world=1, micro=micro, workers=0
        )
        return next(stream)

    def gradients(self, micro: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        optimizer = Recorder(self.model)
        result = train_step(
            self.channel, self.objective, [optimizer], self.batches(micro), CPU, clip_norm=1e9, dtype=None
        )
        return optimizer.seen, {k: float(v) for k, v in result.atoms.items()}


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradients instead of using them."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.names = {p: n for n, p in model.named_parameters()}
        self.seen: dict[str, torch.Tensor] = {}

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.seen = {
            self.names[p]: p.grad.clone() for g in self.param_groups for p in g["params"] if p.grad is not None
        }


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Rig:
    root = tmp_path_factory.mktemp("step")
    return Rig(root, tiny_checkpoint, small_scenes(root / "s"))


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(rig: Rig, micro: int) -> None:
    whole, atoms = rig.gradients(8)
    parts, atoms_parts = rig.gradients(micro)
    assert whole.keys() == parts.keys() == {n for n, _ in rig.model.named_parameters()}
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-12)
    assert atoms_parts == pytest.approx(atoms, rel=1e-9)


def test_a_value_that_is_not_finite_stops_before_the_update(rig: Rig, tmp_path: Path) -> None:
    optimizers = build_optimizers(rig.model, rig.config.optim)
    batch = rig.batches(8)[0]
    ids = ", ".join(batch.sample_ids)
    with torch.no_grad():
        kept = rig.model.model.language_model.norm.weight.clone()
        rig.model.model.language_model.norm.weight[0] = float("nan")
    before = {n: p.detach().clone() for n, p in rig.model.named_parameters()}
    with pytest.raises(UserError, match=f"a1/token_ce/struct.*a1/bbox_geo/ciou.*is not finite; .*samples {ids}"):
        train_step(rig.channel, rig.objective, optimizers, [batch], CPU, clip_norm=1.0, dtype=None)
    for name, parameter in rig.model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        rig.model.model.language_model.norm.weight.copy_(kept)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.visual.blocks.0.attn.qkv.weight", "vision"),
        ("model.visual.merger.linear_fc1.weight", "merger"),
        ("model.visual.deepstack_merger_list.0.norm.weight", "merger"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "language"),
        ("model.language_model.embed_tokens.weight", "coord"),
        ("lm_head.weight", "coord"),
    ],
)
def test_parameters_belong_to_their_part(name: str, part: str) -> None:
    assert part_of(name) == part


def test_a_part_with_rate_zero_is_frozen(rig: Rig) -> None:
    config = rig.config.optim.model_copy(update={"lr_vision": 0.0})
    freeze_parts(rig.model, config)
    optimizers = build_optimizers(rig.model, config)
    frozen = {n for n, p in rig.model.named_parameters() if not p.requires_grad}
    held = {p for o in optimizers for g in o.param_groups for p in g["params"]}
    assert frozen == {n for n, _ in rig.model.named_parameters() if part_of(n) == "vision"}
    assert not any(p in held for n, p in rig.model.named_parameters() if n in frozen)
    freeze_parts(rig.model, rig.config.optim)


def test_parts_that_are_named_are_frozen(rig: Rig) -> None:
    freeze_parts(rig.model, rig.config.optim, (Part.LANGUAGE, Part.COORD))
    trained = {part_of(n) for n, p in rig.model.named_parameters() if p.requires_grad}
    groups = {g["part"] for o in build_optimizers(rig.model, rig.config.optim) for g in o.param_groups}
    assert trained == groups == {"vision", "merger"}
    counts = count_parameters(rig.model)
    assert sum(total for _, total in counts.values()) == sum(p.numel() for p in rig.model.parameters())
    assert [trained > 0 for trained, _ in counts.values()] == [True, True, False, False]
    line = describe_parameters(rig.model)
    assert line.startswith("trained: vision ") and "language" not in line and line.endswith("%)")
    freeze_parts(rig.model, rig.config.optim)


def test_muon_that_gathers_takes_the_librarys_steps() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(12, 5), torch.randn(3, 12, 5)
    ends = []
    for kind in (torch.optim.Muon, WholeMuon):
        matrix = torch.nn.Parameter(start.clone())
        optimizer = kind([matrix], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            matrix.grad = gradient.clone()
            optimizer.step()
        ends.append((matrix.detach(), optimizer.state[matrix]["momentum_buffer"]))
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_rate_warms_up_and_falls_to_its_end(rig: Rig) -> None:
    config = rig.config.optim.model_copy(update={"warmup_steps": 4, "min_lr_ratio": 0.1})
    scales = [lr_scale(s, 20, config) for s in range(20)]
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[4] == 1.0
    assert scales[4:] == sorted(scales[4:], reverse=True)
    assert lr_scale(20, 20, config) == pytest.approx(0.1)


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (3, 7), (5, 12)])
def test_batches_are_a_function_of_the_step(start: int, stop: int) -> None:
    plan = BatchPlan([5, 1, 4, 2, 3, 9, 7, 8, 6, 0], batch_size=4, window=2, seed=1)
    everything = list(plan.steps(0, 12))
    assert list(plan.steps(start, stop)) == everything[start:stop]


def test_every_epoch_draws_every_sample(rig: Rig) -> None:
    plan = BatchPlan(list(range(12)), batch_size=4, window=2, seed=0)
    first, second = ([i for b in plan.epoch(e) for i in b] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
