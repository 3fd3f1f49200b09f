"""Does `apiece plan` foretell memory and arithmetic?

    python benchmarks/plan.py
    python benchmarks/plan.py --cases narrow-256 --arms n1 n2_recompute --json plan.json

A real optimizer step (forward, losses, backward, clipping, AdamW) is measured and set beside what is worked out from
shapes alone (`apiece.planning`), for models of several sizes in float32:

- `tensors`: the most bytes in tensors at any moment of the second step, weights and optimizer state included: what a
  GPU's allocator would report. Counted storage by storage as operations return.
- `flops`: what torch's own counter counts in forward and backward pass, with eager attention, whose products it sees;
  the count then takes all pairs, as that does.

Arms: `n1`, `n2`, `n4` passes of Channel-A; `_recompute` with gradient checkpointing, `_frozen` with a frozen vision
tower, `_lora` with adapters of rank 8, `_half` under bf16 autocast, `_padded` with samples of different lengths.
`--checkpoint`, `--repeats` and `--device` are of no effect here.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from apiece.channels.a_soft_context import SoftContext
from apiece.config.schema import CoordDecodeMode, LoraSection, ObjectiveSection, OptimSection, Part, Stage2Section
from apiece.data.collate import Batch
from apiece.losses.compose import Objective, total_loss
from apiece.losses.coord import soft_targets
from apiece.model.families import FAMILIES
from apiece.model.lora import add_adapters
from apiece.model.tiny import tiny_config
from apiece.planning.flops import Recipe, Work, step_flops
from apiece.planning.memory import training_footprint
from apiece.planning.shapes import ModelShape
from apiece.train.distributed import World
from apiece.train.step import build_optimizers, freeze_parts, train_step
from apiece.types import Role
from common import Row, conditions, machine_speed, parser, print_conditions, print_rows, write_report
from proportions import BINS, IMAGE_ID, Proportions, random_batch

CPU = torch.device("cpu")
LORA = LoraSection(rank=8)
ARMS = (
    *("n1", "n2", "n4", "n1_padded", "n2_padded", "n1_recompute", "n2_recompute"),
    *("n1_frozen", "n1_lora", "n1_half", "n2_half", "n1_half_recompute", "n1_half_lora"),
)


@dataclass(frozen=True)
class Case:
    """A model and the lengths of a batch.

    Attributes:
        sizes: Of the model; none for the embedded one.
        prefixes: Tokens of image and prompt of each sample.
        answers: Tokens of the answer of each sample.
    """

    sizes: Proportions | None
    prefixes: tuple[int, ...]
    answers: tuple[int, ...]

    def config(self) -> Any:
        """Of the model."""
        if self.sizes is not None:
            return self.sizes.config()
        names = ("image_pad", "video_pad", "vision_start", "vision_end", "im_end", "endoftext")
        return tiny_config(1666, {f"<|{name}|>": IMAGE_ID + i for i, name in enumerate(names)})

    def first_id(self) -> int:
        """Id of the coordinate token of bin 0."""
        return int(self.config().text_config.vocab_size) - BINS

    def batch(self, *, padded: bool) -> Batch:
        """Random samples, of the first one's length unless `padded`."""
        of = slice(None) if padded else slice(1)
        times = 1 if padded else len(self.prefixes)
        return random_batch(
            list(self.prefixes[of]) * times,
            list(self.answers[of]) * times,
            self.config().vision_config,
            self.first_id(),
        )


CASES = {
    "tiny": Case(None, (184, 154, 130, 184, 154, 130, 184, 184), (400, 300, 150, 200, 100, 320, 50, 75)),
    "narrow-256": Case(Proportions(), (360, 280), (160, 110)),
    "narrow-384": Case(Proportions(384, 5, 6, 160, 4, 20_000, (1, 2)), (200, 240, 140), (260, 310, 60)),
    "narrow-2.5": Case(Proportions(deepstack=(2,), family="qwen2_5_vl"), (360, 280), (160, 110)),
}
QUICK = Case(Proportions(128, 3, 2, 64, 2, 4_000, (0,)), (140, 100), (110, 60))
QUICK_OTHER = Case(Proportions(128, 3, 2, 64, 3, 4_000, (1,), "qwen2_5_vl"), (140, 100), (110, 60))


# ---------------------------------------------------------------- foretold


def recipe_of(arm: str) -> Recipe:
    """What an arm does, as the planner takes it."""
    if "lora" in arm:
        nothing, adapted = dict.fromkeys(Part, False), frozenset(LORA.targets)
        base = Recipe(trained=nothing, rank=LORA.rank, adapted=adapted, rows=True)
    else:
        base = Recipe(trained={part: part is not Part.VISION or "frozen" not in arm for part in Part})
    return replace(base, passes=int(arm[1]), recompute="recompute" in arm, half="half" in arm, cuda=False)


def work_of(batch: Batch) -> Work:
    """The sizes of a batch."""
    text = batch.answer_mask & (batch.roles != Role.COORD)
    return Work(
        grids=tuple((int(t), int(h), int(w)) for t, h, w in batch.prefix.grid_thw.tolist()),
        prefix=batch.prefix.ids.shape[1],
        answer=batch.answer_ids.shape[1],
        text_rows=int(text.sum()),
        name_rows=int((batch.roles == Role.DESC).sum()),
        slots=len(batch.slots),
        first_slot=int(batch.slots.position.min()),
        padded=not bool(batch.prefix.mask.all()),
    )


def foretold(case: Case, arm: str) -> dict[str, float]:
    """Memory and FLOPs from shapes."""
    shape, recipe = ModelShape.of(case.config()), recipe_of(arm)
    work = work_of(case.batch(padded="padded" in arm))
    tensors = training_footprint(shape, work, recipe, 1, accumulates=False).total
    flops = step_flops(shape, work, recipe, causal=False).total
    return {"tensors": tensors, "flops": flops}


# ---------------------------------------------------------------- measured


@dataclass
class Setup:
    """An arm, ready to step."""

    model: Any
    channel: SoftContext
    objective: Objective
    batch: Batch
    half: bool

    @classmethod
    def of(cls, case: Case, arm: str, attention: str) -> Setup:
        """Build model and batch."""
        recipe, config = recipe_of(arm), case.config()
        model_class = FAMILIES[config.model_type].model_class
        model = model_class._from_config(config, attn_implementation=attention).train()
        if recipe.rank:
            add_adapters(model, LORA, case.first_id(), BINS, 0)
        freeze_parts(model, optim_of(arm))
        if recipe.recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        objective = Objective(ObjectiveSection(), CoordDecodeMode.EXP, case.first_id(), BINS)
        channel = SoftContext(model, objective, Stage2Section(n_softctx_iter=recipe.passes))
        return cls(model, channel, objective, case.batch(padded="padded" in arm), recipe.half)

    def step(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """One optimizer step."""
        dtype = torch.bfloat16 if self.half else None
        world = World(0, 1, CPU)
        train_step(self.channel, self.objective, optimizers, [self.batch], world, clip_norm=1.0, dtype=dtype)


def optim_of(arm: str) -> OptimSection:
    return OptimSection(lr_vision=0.0 if "frozen" in arm else None)


def count_flops(case: Case, arm: str) -> float:
    """Of forward and backward pass, by torch's counter; a frozen tower is frozen here, too."""
    setup = Setup.of(case, arm, "eager")
    build_optimizers(setup.model, optim_of(arm))
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setup.half):
            terms = setup.channel(setup.batch)
        total_loss(terms, setup.objective.counts(setup.batch)).backward()
    return float(counter.get_total_flops())


class Watch(TorchDispatchMode):
    """Adds up the storages of all tensors that operations return, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that is there already, or that an operation returned."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


def count_tensors(case: Case, arm: str) -> float:
    """The most bytes in tensors in the second step."""
    setup, watch = Setup.of(case, arm, "sdpa"), Watch()
    optimizers = build_optimizers(setup.model, optim_of(arm))
    setup.step(optimizers)
    there = [*setup.model.parameters(), *setup.model.buffers(), setup.batch.prefix.pixel_values]
    there += [value for o in optimizers for state in o.state.values() for value in state.values()]
    targets = soft_targets(BINS, 2.0, 8, CPU, torch.float32)
    for tensor in (*there, targets.q_KK, targets.cdf_KK):
        watch.add(tensor.detach())
    with watch:
        setup.step(optimizers)
    return float(watch.peak)


def measure(name: str, arm: str) -> Row:
    """One arm of a case, foretold and measured."""
    case = CASES.get(name, QUICK)
    found = {"tensors": count_tensors(case, arm), "flops": count_flops(case, arm)}
    plan = foretold(case, arm)
    row: Row = {"case": name, "arm": arm}
    for what, scale in (("tensors", 1e6), ("flops", 1e9)):
        row |= {
            f"{what}_plan": plan[what] / scale,
            what: found[what] / scale,
            f"{what}_ratio": plan[what] / found[what],
        }
    return row


def main() -> None:
    p: argparse.ArgumentParser = parser((__doc__ or "").strip(), list(CASES), list(ARMS))
    options = p.parse_args()
    results: list[Row] = []
    for case in ["quick"] if options.quick else options.cases:
        rows = [measure(case, arm) for arm in (options.arms[:1] if options.quick else options.arms)]
        print_rows(f"{case}: foretold and measured", [{k: v for k, v in r.items() if k != "case"} for r in rows])
        results += rows
    where = conditions(CPU, machine_speed(CPU))
    print_conditions(where)
    write_report(options.json, "plan", where, results)


if __name__ == "__main__":
    main()
