"""What settings must not be combined. Each rule names the settings it reads, the one to change first.

Only contradictions are refused: a setting asks for something that another one rules out.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

from apiece.config.describe import no_effect, rule, value_at
from apiece.config.schema import Config, Part, Shuffle


@rule("prompt.text", "prompt.name")
def _own_prompt(config: Config) -> str | None:
    prompt = config.prompt
    together = (prompt.name == "text") == (prompt.text is not None)
    return None if together else "prompt.text goes with `prompt.name: text` and only with it: set both or neither"


@rule("prompt.text")
def _blank_prompt(config: Config) -> str | None:
    text = config.prompt.text
    return "expected an instruction, found blank text" if text is not None and not text.strip() else None


@rule("train.micro_batch_size", "train.batch_size")
def _micro_batches(config: Config) -> str | None:
    size, micro = config.train.batch_size, config.train.micro_batch_size
    splits = micro is None or size % micro == 0
    return None if splits else f"train.batch_size ({size}) must be a multiple of train.micro_batch_size ({micro})"


def _needs_eval(path: str, use: str) -> None:
    @rule(path, "data.eval")
    def check(config: Config) -> str | None:
        alone = value_at(config, path) is not None and config.data.eval is None
        return f"{path} is set but data.eval is not: name the JSONL {use}" if alone else None


_needs_eval("eval.every_steps", "to evaluate on")
_needs_eval("monitor.every_steps", "that the panel is chosen from")
_needs_eval("train.keep_best", "to evaluate on")
_needs_eval("data.complete", "to evaluate on, whose images it completes")


@rule("monitor.panel.size", "monitor.panel.ids", "monitor.panel.from")
def _panel_of_something(config: Config) -> str | None:
    panel = config.monitor.panel
    some = panel.size or panel.ids or panel.from_run is not None
    return None if some else "the panel is empty: raise monitor.panel.size, or name samples in monitor.panel.ids"


@rule("optim.warmup_steps", "train.steps")
def _warmup_ends(config: Config) -> str | None:
    warmup, steps = config.optim.warmup_steps, config.train.steps
    if warmup < steps:
        return None
    remedy = f"for a run this short, set optim.warmup_steps={steps // 10} too"
    return f"optim.warmup_steps ({warmup}) must be below train.steps ({steps}): {remedy}"


@rule("data.buffer_size", "data.shuffle", "train.batch_size")
def _a_buffer_of_batches(config: Config) -> str | None:
    size, batch = config.data.buffer_size, config.train.batch_size
    if config.data.shuffle is not Shuffle.BUFFER or size >= batch:
        return None
    return f"data.buffer_size ({size}) must be at least train.batch_size ({batch}): raise it"


@rule("train.keep_best", "data.eval", "data.complete", "train.save_every", "eval.every_steps", "train.steps")
def _something_to_be_the_best(config: Config) -> str | None:
    best, train = config.train.keep_best, config.train
    if best is None or config.data.eval is None:
        return None
    if best == "f1/true" and config.data.complete is None:
        return "train.keep_best is f1/true, which needs data.complete: name the complete truth, or take f1/f1"
    save, evaluate = train.save_every or train.steps, config.eval.every_steps or train.steps
    if math.lcm(save, evaluate) < train.steps:
        return None
    return (
        f"train.keep_best has nothing to choose from: of {train.steps} steps, none but the last is both saved "
        f"(train.save_every: {train.save_every}) and evaluated (eval.every_steps: {config.eval.every_steps})"
    )


@rule("stage2_ab.b_ratio", "train.steps")
def _a_step_for_channel_b(config: Config) -> str | None:
    ratio, steps = config.stage2_ab.b_ratio, config.train.steps
    if not ratio or int(steps * Fraction(repr(ratio))):
        return None
    return (
        f"stage2_ab.b_ratio ({ratio}) gives Channel-B none of train.steps ({steps}): raise one of them, or set it to 0"
    )


# Settings that ask for something which other settings switch off. An arm of a comparison that differs in such a setting
# alone would differ in nothing.

no_effect(
    *("monitor.panel.size", "monitor.panel.ids", "monitor.panel.seed"),
    reads=("monitor.panel.from",),
    unless=lambda config: config.monitor.panel.from_run is None,
    why="with monitor.panel.from, which names the samples: leave that out",
)
no_effect(
    "generate.labels",
    reads=("generate.grammar",),
    unless=lambda config: config.generate.grammar,
    why="with `generate.grammar: false`: set that to true",
)
no_effect(
    "stage2_ab.b_redundancy_weight",
    reads=("stage2_ab.b_ratio",),
    unless=lambda config: config.stage2_ab.b_ratio > 0,
    why="with `stage2_ab.b_ratio: 0`, which never generates answers: raise that",
)
no_effect(
    "stage2_ab.n_softctx_iter",
    reads=("stage2_ab.b_ratio",),
    unless=lambda config: config.stage2_ab.b_ratio < 1,
    why="with `stage2_ab.b_ratio: 1`, which leaves no step to Channel-A: lower that",
)
no_effect(
    *("objective.bbox_geo.config.a1_smoothl1_weight", "objective.bbox_geo.config.a1_ciou_weight"),
    *("objective.coord_reg.config.a1_soft_ce_weight", "objective.coord_reg.config.a1_w1_weight"),
    "objective.coord_reg.config.self_context_soft_ce_weight",
    "objective.token_ce.config.self_context_struct_ce_weight",
    *("stage2_ab.softctx_grad_mode", "stage2_ab.softctx_temperature", "stage2_ab.coord_ctx_embed_mode"),
    *("stage2_ab.softctx_replace", "stage2_ab.softctx_target"),
    reads=("stage2_ab.n_softctx_iter", "stage2_ab.b_ratio"),
    unless=lambda config: config.stage2_ab.n_softctx_iter > 1 and config.stage2_ab.b_ratio < 1,
    why="without self-context: set stage2_ab.n_softctx_iter to 2 or more and stage2_ab.b_ratio below 1",
)


# What is trained at all: frozen parts, adapters, and their rates.


RATES = {Part.VISION: "lr_vision", Part.MERGER: "lr_merger", Part.COORD: "lr_coord"}
"""The setting of a part's own rate in `optim`; `language` has the general one, which is never 0."""
_TRAINED = ("model.freeze", "model.lora.rank", "model.lora.targets")


def trained_parts(config: Config) -> tuple[Part, ...]:
    """Parts that are not frozen, have a rate above 0, and have adapters where those are used."""
    rates = {part: getattr(config.optim, name) for part, name in RATES.items()}
    adapted = {*config.model.lora.targets, Part.COORD} if config.model.lora.rank else set(Part)
    return tuple(p for p in Part if p not in config.model.freeze and rates.get(p) != 0 and p in adapted)


@rule(*_TRAINED, *(f"optim.{name}" for name in RATES.values()))
def _something_to_train(config: Config) -> str | None:
    nothing = "nothing is left to train: every part is frozen, by model.freeze or a rate of 0; train at least one"
    return None if trained_parts(config) else nothing


@rule("model.lora.targets", "model.lora.rank", "model.freeze", *(f"optim.{name}" for name in RATES.values()))
def _adapters_are_trained(config: Config) -> str | None:
    lora, trained = config.model.lora, trained_parts(config)
    if not lora.rank:
        return None
    if not lora.targets or Part.COORD in lora.targets:
        return "name one or more of vision, merger, language; coordinate rows are trained as well in any case"
    idle = [str(part) for part in lora.targets if part not in trained]
    if not idle or not trained:
        return None
    return f"adapters of {', '.join(idle)} would not be trained: leave out of targets what is frozen or has rate 0"


@rule("optim.name", "model.lora.rank")
def _adapters_with_adamw(config: Config) -> str | None:
    wrong = config.model.lora.rank > 0 and config.optim.name != "adamw"
    return "`muon` is for whole matrices; adapters are trained with `optim.name: adamw`" if wrong else None


no_effect(
    *(f"model.lora.{name}" for name in ("alpha", "dropout", "dora", "targets")),
    reads=("model.lora.rank",),
    unless=lambda config: config.model.lora.rank > 0,
    why="with `model.lora.rank: 0`, which makes no adapters: raise that",
)


def _rate_matters(part: Part, name: str, config: Config) -> bool:
    return not getattr(config.optim, name) or part in trained_parts(config)


for _part, _name in RATES.items():
    no_effect(
        f"optim.{_name}",
        reads=_TRAINED,
        unless=partial(_rate_matters, _part, _name),
        why=f"as {_part} is not trained: take it out of model.freeze, or into model.lora.targets,",
    )
