"""How fast is a training step, and where does the time go?

    python benchmarks/train_step.py
    python benchmarks/train_step.py --cases mixed-32 --repeats 9 --json train_step.json

Every case is a batch size and a kind of generated scene; every arm a way to do one optimizer step on it. The step is
the real one (`apiece.train.step.train_step`): forward, losses, backward, clipping, AdamW. Arms of a case see the same
batches in turn, so a disturbance hits them alike. Medians over the repeats.

- samples/s, tokens/s (real ones, prefix and answer) and boxes/s are measured without hooks and without data loading.
- padding share: positions computed that are padding.
- Parts are measured in further steps with hooks at the borders of the real modules (`common.forward_laps`), forward
  and backward together: `vision`, `prefix` and `answer` (language model), `head`, `loss`, `optimizer` (clipping and
  update), `other` (positions, embedding, bookkeeping). Prefix and answer run in one pass: its time in the language
  model is split between them by count of FLOPs, which is an attribution, not a measurement. `data` is what one process
  needs to load, augment and encode the batch; in training, workers do it meanwhile.
- Floor: FLOPs of the real tokens (backward twice the forward) at the speed of a matrix product; for the optimizer the
  bytes of weights, gradients and both moments that AdamW reads and writes, at the speed of a copy.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apiece.channels.a_soft_context import SoftContext
from apiece.config.schema import ObjectiveSection, OptimSection, Stage2Section
from apiece.data.collate import Batch
from apiece.losses.compose import Objective
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.load import TextSide, load_model, load_text_side, pick_device
from apiece.model.prompt import PROMPTS
from apiece.planning.flops import ForwardFlops
from apiece.train.batches import BatchPlan, micro_batches
from apiece.train.distributed import World
from apiece.train.step import StepResult, build_optimizers, train_step
from apiece.types import Per
from apiece_scenes.layouts import Family
from apiece_scenes.scene import ALL
from common import (
    Floor,
    PartTimer,
    Row,
    Speed,
    checkpoint_or_fresh,
    conditions,
    counts_of,
    forward_laps,
    machine_speed,
    median,
    median_parts,
    middle_floors,
    now,
    parser,
    part_rows,
    print_conditions,
    print_rows,
    scene_samples,
    write_report,
)


@dataclass(frozen=True)
class Case:
    """A workload: samples in a step, and of which scenes."""

    batch_size: int
    families: tuple[Family, ...] = ALL


CASES = {
    "mixed-8": Case(8),
    "mixed-32": Case(32),
    "crowd-32": Case(32, (Family.SHELF, Family.STANDS)),
    "sparse-32": Case(32, (Family.SPARSE,)),
}
QUICK = Case(2)

ARMS = {"stage1": Stage2Section()}
"""Name to the settings of the channel whose forward gives the loss terms of a batch."""


@dataclass
class Setup:
    """One arm, ready to step: its own weights and optimizer state."""

    model: Any
    channel: nn.Module
    config: Stage2Section
    objective: Objective
    optimizers: list[torch.optim.Optimizer]
    world: World

    @classmethod
    def of(cls, arm: str, checkpoint: str, side: TextSide, device: torch.device) -> Setup:
        """Load the checkpoint and build the arm on it."""
        model = load_model(checkpoint).to(device).train()
        config = ARMS[arm]
        objective = Objective(ObjectiveSection(), config.coord_decode_mode, side.vocab.first_id, side.vocab.num_bins)
        optimizers = build_optimizers(model, OptimSection())
        return cls(model, SoftContext(model, objective, config), config, objective, optimizers, World(0, 1, device))

    def step(self, batch: Batch) -> StepResult:
        """One optimizer step."""
        return train_step(self.channel, self.objective, self.optimizers, [batch], self.world, clip_norm=1.0, dtype=None)

    def timed(self, batch: Batch) -> tuple[float, StepResult]:
        """Seconds of one step."""
        before = now(self.world.device)
        result = self.step(batch)
        return now(self.world.device) - before, result

    def parts(self, batch: Batch) -> tuple[dict[str, float], int]:
        """Seconds of one step by part, and the rows that the head was asked for."""
        timer, answer_length = PartTimer(self.world.device), batch.answer_ids.shape[1]
        head_rows: list[int] = []
        handle = self.model.lm_head.register_forward_pre_hook(lambda _, inputs: head_rows.append(len(inputs[0])))
        # The first pass reads prefix and answer together; later ones, if there are any, only the answer.
        parts_by_length = forward_laps(timer, self.model, lambda n: "both" if n > answer_length else "answer")
        with parts_by_length, self._step_laps(timer):
            timer.start()
            self.step(batch)
            timer.lap("other")
        handle.remove()
        parts = dict(timer.seconds)
        both = parts.pop("both", 0.0)
        prefix, answer = language_flops(counts_of(self.model), batch, padded=True)
        parts["prefix"] = both * prefix / (prefix + answer)
        parts["answer"] = parts.get("answer", 0.0) + both * answer / (prefix + answer)
        return parts, sum(head_rows)

    @contextmanager
    def _step_laps(self, timer: PartTimer) -> Iterator[None]:
        """Laps around the losses (forward) and the optimizers."""
        handles = [
            self.channel.register_forward_hook(lambda *_: timer.lap("loss")),
            *(o.register_step_pre_hook(lambda *_: timer.lap("optimizer")) for o in self.optimizers),
            *(o.register_step_post_hook(lambda *_: timer.lap("optimizer")) for o in self.optimizers),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def language_flops(counts: ForwardFlops, batch: Batch, *, padded: bool) -> tuple[float, float]:
    """Forward FLOPs of the language model on prefix and answer of a batch, with or without its padding."""
    masks = (torch.ones_like(m) if padded else m for m in (batch.prefix.mask, batch.answer_mask))
    prefixes, answers = (mask.sum(1).tolist() for mask in masks)
    # The last token of an answer is never fed.
    fed = [t if padded else t - 1 for t in answers]
    prefix = sum(counts.language(p, 0) for p in prefixes)
    return prefix, sum(counts.language(t, p) for p, t in zip(prefixes, fed, strict=True))


def floors(setup: Setup, batch: Batch, head_rows: int, speed: Speed) -> dict[str, Floor]:
    """The least time that each part can take."""
    counts = counts_of(setup.model)
    prefix, answer = language_flops(counts, batch, padded=False)
    if setup.config.n_softctx_iter > 1:  # later passes start at the first slot
        first = int(batch.slots.position.min())
        lengths = zip(batch.prefix.mask.sum(1).tolist(), batch.answer_mask.sum(1).tolist(), strict=True)
        answer += (setup.config.n_softctx_iter - 1) * sum(counts.language(t - 1 - first, p + first) for p, t in lengths)
    grids = [(int(t), int(h), int(w)) for t, h, w in batch.prefix.grid_thw.tolist()]
    forward = {"vision": counts.vision(grids), "prefix": prefix, "answer": answer, "head": counts.head(head_rows)}
    least = {name: Floor.of_flops(3 * flops, speed) for name, flops in forward.items()}
    moved = 4 * 7 * sum(p.numel() for p in setup.model.parameters())
    return least | {"optimizer": Floor.of_bytes(moved, speed)}


def encode_batches(
    case: Case, encoder: SampleEncoder, count: int, folder: Path, seed: int
) -> tuple[list[Batch], float]:
    """`count` batches, and the median seconds that one process takes to load and encode one."""
    samples = scene_samples(folder, case.batch_size * count, case.families, seed=seed)
    plan = BatchPlan(
        [
            encoder.side.images.num_tokens(s.size_wh) + encoder.side.renderer.num_tokens([o.desc for o in s.objects])
            for s in samples
        ],
        case.batch_size,
        window=8,
        seed=seed,
    )
    stream = micro_batches(
        samples, encoder, Augmentation(flip=True), plan,
        start=0, stop=count, rank=0, world=1, micro=case.batch_size, workers=0,
    )  # fmt: skip
    batches: list[Batch] = []
    times: list[float] = []
    for _ in range(count):
        before = time.perf_counter()
        batches += [batch for batch in next(stream) if isinstance(batch, Batch)]
        times.append(time.perf_counter() - before)
    return batches, median(times)


def measure(
    case: Case, arms: Sequence[str], checkpoint: str, device: torch.device, repeats: int, seed: int, speed: Speed
) -> list[Row]:
    """All arms on one case, in turn on the same batches."""
    side = load_text_side(checkpoint)
    setups = {arm: Setup.of(arm, checkpoint, side, device) for arm in arms}
    longest = next(iter(setups.values())).model.config.text_config.max_position_embeddings
    encoder = SampleEncoder(side, PromptTokens.of(side, PROMPTS["plain"]), longest)
    with tempfile.TemporaryDirectory() as folder:
        batches, data_seconds = encode_batches(case, encoder, repeats, Path(folder), seed)
    batches = [batch.to(device) for batch in batches]
    for setup in setups.values():
        setup.step(batches[0])  # warm up: allocations, optimizer state
    timed: dict[str, list[tuple[float, StepResult]]] = {arm: [] for arm in arms}
    parts: dict[str, list[tuple[dict[str, float], int]]] = {arm: [] for arm in arms}
    for batch in batches:
        for arm, setup in setups.items():
            timed[arm].append(setup.timed(batch))
            parts[arm].append(setup.parts(batch))
    rows = []
    for arm, setup in setups.items():
        shares = median_parts([seconds for seconds, _ in parts[arm]]) | {"data": data_seconds}
        # Floors of every batch, then medians, as for the times.
        least = middle_floors(
            [floors(setup, batch, rows, speed) for batch, (_, rows) in zip(batches, parts[arm], strict=True)]
        )
        rows.append(
            {
                "arm": arm,
                "ms_per_step": 1e3 * median([s for s, _ in timed[arm]]),
                "samples_per_s": median([case.batch_size / s for s, _ in timed[arm]]),
                "tokens_per_s": median([float(r.num_tokens) / s for s, r in timed[arm]]),
                "boxes_per_s": median([float(r.counts[Per.OBJECTS]) / s for s, r in timed[arm]]),
                "padding_share": median([1 - float(r.num_tokens / r.num_places) for _, r in timed[arm]]),
                "parts": part_rows(shares, least),
            }
        )
    return rows


def main() -> None:
    description = (__doc__ or "").strip()
    p: argparse.ArgumentParser = parser(description, list(CASES), list(ARMS))
    options = p.parse_args()
    cases = {"quick": QUICK} if options.quick else {name: CASES[name] for name in options.cases}
    repeats = 1 if options.quick else options.repeats
    device = pick_device(options.device)
    speed = machine_speed(device)
    where = conditions(device, speed)
    print_conditions(where)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_or_fresh(options.checkpoint, Path(folder))
        for name, case in cases.items():
            rows = measure(case, options.arms, checkpoint, device, repeats, options.seed, speed)
            print_rows(f"{name}: one optimizer step", [{k: v for k, v in r.items() if k != "parts"} for r in rows])
            for row in rows:
                print_rows(f"{name}, {row['arm']}: where the time goes", row["parts"])
            results += [{"case": name, "repeats": repeats, **row} for row in rows]
    write_report(options.json, "train_step", where, results)


if __name__ == "__main__":
    main()
