"""What does self-context cost, and is it exact?

    python benchmarks/channel_a.py
    python benchmarks/channel_a.py --cases 640/160 --repeats 3 --json channel_a.json

Forward and backward of one batch (no optimizer: it is the same for all) on random Qwen3-VL weights in the proportions
of the 2B model, but narrow: the head takes 20 to 25 % of an ordinary forward pass, the vision tower about a third. A
case is PREFIX/ANSWER in tokens. Arms of a case take turns; medians over the repeats.

- sft: the ordinary Hugging Face step: `model(input_ids, labels=...)`, logits of the whole vocabulary everywhere.
- naive_n2, naive_n4: Channel-A by 2 or 4 such forward passes, the image encoded in each; same losses.
- n1, n2, n4: Channel-A as the package does it (n1 is Stage-1's step).

`flops` is the arithmetic that an arm needs by count (backward twice the forward, attention causal); its ratio to `sft`
is the floor of the ratio of the times. `peak_mb` is what the step adds to the process, in a process of its own.
`grad_diff` is the largest difference of a parameter's gradient to the naive arm's of as many passes, relative to its
largest entry, in float64. `--checkpoint` is of no effect here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import proportions
from apiece.channels.a_soft_context import SoftContext, self_context
from apiece.channels.answer import CoordRows, slot_logits
from apiece.config.schema import CoordDecodeMode, ObjectiveSection, Stage2Section
from apiece.data.collate import Batch
from apiece.losses.compose import (
    AnswerLogits,
    Objective,
    Weights,
    anchor_weights,
    self_context_weights,
    teacher_forced_weights,
    total_loss,
)
from apiece.losses.coord import log_coord_mass
from apiece.model.load import pick_device
from apiece.types import LossTerm, Role
from common import (
    Row,
    conditions,
    counts_of,
    machine_speed,
    median,
    now,
    parser,
    print_conditions,
    print_rows,
    write_report,
)
from proportions import BINS, Proportions

CASES = {"200/160": (200, 160), "640/160": (640, 160), "1000/160": (1000, 160), "1000/640": (1000, 640)}
QUICK = (60, 60)
ARMS = ("sft", "naive_n2", "naive_n4", "n1", "n2", "n4")
BATCH = 2
MODEL = Proportions()
VOCABULARY, FIRST_ID = MODEL.vocabulary, MODEL.first_id
Step = Callable[[], Tensor]


def narrow_model(device: torch.device) -> Any:
    """A quarter of the 2B model's depth and an eighth of its width; vocabulary and vision cut to keep their shares."""
    return MODEL.model(device)


def random_batch(prefix: int, answer: int, device: torch.device) -> Batch:
    """Samples of equal length."""
    shape = MODEL.config().vision_config
    return proportions.random_batch([prefix] * BATCH, [answer] * BATCH, shape, FIRST_ID).to(device)


# ---------------------------------------------------------------- arms


class Naive(SoftContext):
    """The same channel by whole forward passes of the library."""

    def forward(self, batch: Batch) -> list[LossTerm]:
        """Loss terms, as the package's channel gives them."""
        passes, config = self.config.n_softctx_iter, self.objective.config
        prefix, start = batch.prefix, batch.prefix.ids.shape[1]
        ids = torch.cat([prefix.ids, batch.answer_ids], dim=1)
        kinds = torch.nn.functional.pad(prefix.image_mask, (0, batch.answer_ids.shape[1]))
        positions, _ = self.model.model.get_rope_index(
            ids, kinds.int(), image_grid_thw=prefix.grid_thw, attention_mask=torch.ones_like(ids)
        )
        truth = self.model.get_input_embeddings()(ids)
        embeds, rows = truth, CoordRows.of(self.model, FIRST_ID, BINS)
        terms: list[LossTerm] = []
        for number in range(1, passes + 1):
            hidden = self.model.model(
                inputs_embeds=embeds, pixel_values=prefix.pixel_values, image_grid_thw=prefix.grid_thw,
                position_ids=positions, use_cache=False,
            ).last_hidden_state  # fmt: skip
            logits = self.model.lm_head(hidden)[:, start - 1 : -1]
            if number == 1 and passes > 1:
                terms += self._losses("a1", anchor_weights(config), logits, batch)
            if number == passes:
                of = teacher_forced_weights if passes == 1 else self_context_weights
                return terms + self._losses(f"a{number}", of(config), logits, batch)
            logits_SK = slot_logits(hidden[:, start - 1 : -1], batch.slots, rows)
            context = self_context(logits_SK, batch.slots.target_bin, rows.table_KD, self.config)
            embeds = truth.index_put((batch.slots.sample, start + batch.slots.position), context.embeds_SD)
        raise AssertionError("there is at least one pass")

    def _losses(self, name: str, weights: Weights, logits: Tensor, batch: Batch) -> list[LossTerm]:
        text = batch.answer_mask & (batch.roles != Role.COORD)
        slot_SV = logits[batch.slots.sample, batch.slots.position]
        slot_SK = slot_SV[:, FIRST_ID : FIRST_ID + BINS]
        mass_S = log_coord_mass(slot_SV, FIRST_ID, BINS) if weights.coord_gate else None
        read = AnswerLogits(logits[text], batch.answer_ids[text], batch.roles[text], slot_SK, mass_S)
        return self.objective.terms(name, weights, read, batch.slots.target_bin)


def make_step(arm: str, model: Any, batch: Batch) -> Step:
    """The forward pass of an arm, to its loss."""
    if arm == "sft":
        return partial(_sft_loss, model, batch)
    objective = Objective(ObjectiveSection(), CoordDecodeMode.EXP, FIRST_ID, BINS)
    cls = Naive if arm.startswith("naive") else SoftContext
    channel = cls(model, objective, Stage2Section(n_softctx_iter=passes_of(arm)))
    return lambda: total_loss(channel(batch), objective.counts(batch))


def passes_of(arm: str) -> int:
    """Passes of Channel-A; an ordinary step is one."""
    return 1 if arm == "sft" else int(arm[-1])


def _sft_loss(model: Any, batch: Batch) -> Tensor:
    prefix = batch.prefix
    ids = torch.cat([prefix.ids, batch.answer_ids], dim=1)
    loss: Tensor = model(
        input_ids=ids,
        pixel_values=prefix.pixel_values,
        image_grid_thw=prefix.grid_thw,
        mm_token_type_ids=torch.nn.functional.pad(prefix.image_mask, (0, batch.answer_ids.shape[1])).int(),
        labels=torch.cat([torch.full_like(prefix.ids, -100), batch.answer_ids], dim=1),
        use_cache=False,
    ).loss
    return loss


def flops_of(arm: str, model: Any, batch: Batch) -> float:
    """What the arm needs by count: forward, and twice that backward; its losses and norms are left out."""
    counts, (size, length), prefix = counts_of(model), batch.answer_ids.shape, batch.prefix.ids.shape[1]
    vision = counts.vision([(int(t), int(h), int(w)) for t, h, w in batch.prefix.grid_thw.tolist()])
    passes, slots = passes_of(arm), len(batch.slots)
    if arm == "sft" or arm.startswith("naive"):
        each = vision + size * counts.language(prefix + length, 0) + counts.head(size * (prefix + length))
        return 3 * passes * each
    first, names = int(batch.slots.position.min()), int((batch.roles == Role.DESC).sum())
    text = int(batch.answer_mask.sum()) - slots
    language = counts.language(prefix + length - 1, 0)
    language += (passes - 1) * counts.language(length - 1 - first, prefix + first)
    rows = text + slots if passes == 1 else text + (text - names + slots) + (passes - 1) * slots * BINS / VOCABULARY
    return 3 * (vision + size * language + counts.head(1) * rows)


# ---------------------------------------------------------------- measuring


def backward(step: Step, model: Any) -> None:
    model.zero_grad(set_to_none=True)
    step().backward()


def gradient_difference(arm: str, sizes: tuple[int, int]) -> float | None:
    """To the naive arm, in float64 on the CPU."""
    if arm == "sft" or arm.startswith("naive"):
        return None
    cpu = torch.device("cpu")
    model, batch = narrow_model(cpu).double(), random_batch(*sizes, cpu)
    batch = replace(batch, prefix=replace(batch.prefix, pixel_values=batch.prefix.pixel_values.double()))
    seen = []
    for name in (f"naive_{arm}", arm):
        backward(make_step(name, model, batch), model)
        seen.append([p.grad.clone() for p in model.parameters()])
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)) for a, b in zip(*seen, strict=True))


def peak_mb(arm: str, sizes: tuple[int, int], device: torch.device) -> float:
    """Most that one step held beyond model and batch, in this process."""
    model, batch = narrow_model(device), random_batch(*sizes, device)
    for p in model.parameters():  # gradients are there in every step but the first
        p.grad = torch.zeros_like(p)
    step = make_step(arm, model, batch)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step().backward()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark (Linux)
    resident = _status("VmRSS")
    step().backward()
    return (_status("VmHWM") - resident) / 1e3


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def peak_in_a_process(arm: str, case: str, device: torch.device) -> float:
    command = [sys.executable, __file__, "--peak", arm, case, str(device)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(case: str, arms: list[str], device: torch.device, repeats: int) -> list[Row]:
    """All arms of a case, in turn."""
    sizes = sizes_of(case)
    model, batch = narrow_model(device), random_batch(*sizes, device)
    steps = {arm: make_step(arm, model, batch) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(repeats + 1):
        for arm in arms if repeat % 2 else reversed(arms):
            before = now(device)
            backward(steps[arm], model)
            if repeat:  # the first is to warm up
                seconds[arm].append(now(device) - before)
    return [
        {
            "case": case,
            "arm": arm,
            "seconds": median(seconds[arm]),
            "peak_mb": peak_in_a_process(arm, case, device),
            "grad_diff": gradient_difference(arm, sizes),
            "flops": flops_of(arm, model, batch),
        }
        for arm in arms
    ]


def sizes_of(case: str) -> tuple[int, int]:
    return CASES.get(case, QUICK)


def table(rows: list[Row]) -> list[Row]:
    """Rows with their ratios to the ordinary step."""
    base = next((r for r in rows if r["arm"] == "sft"), rows[0])
    return [
        {
            "arm": r["arm"],
            "ms": 1e3 * r["seconds"],
            "time_ratio": r["seconds"] / base["seconds"],
            "floor_ratio": r["flops"] / base["flops"],
            "peak_mb": r["peak_mb"],
            "grad_diff": "-" if r["grad_diff"] is None else f"{r['grad_diff']:.0e}",
            "gflop": r["flops"] / 1e9,
        }
        for r in rows
    ]


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        arm, case, device_name = sys.argv[2:]
        print(peak_mb(arm, sizes_of(case), torch.device(device_name)))
        return
    p: argparse.ArgumentParser = parser((__doc__ or "").strip(), list(CASES), list(ARMS))
    options = p.parse_args()
    device = pick_device(options.device)
    where = conditions(device, machine_speed(device))
    print_conditions(where)
    results: list[Row] = []
    for case in ["quick"] if options.quick else options.cases:
        rows = measure(case, options.arms, device, 1 if options.quick else options.repeats)
        print_rows(f"{case}: forward and backward of {BATCH} samples; ratios to {rows[0]['arm']}", table(rows))
        results += rows
    write_report(options.json, "channel_a", where, results)


if __name__ == "__main__":
    main()
