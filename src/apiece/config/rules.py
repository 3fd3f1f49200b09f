"""What settings must not be combined. Each rule names the settings it reads, the one to change first."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from apiece.config.describe import no_effect, rule, value_at
from apiece.config.schema import Config, ContextEmbedMode, Part, Shuffle, SoftContextGrad, SoftContextReplace


@rule("prompt.text", "prompt.name")
def _own_prompt(config: Config) -> str | None:
    prompt = config.prompt
    if (prompt.name == "text") == (prompt.text is not None):
        return None
    return "prompt.text goes with `prompt.name: text` and only with it: set both or neither"


@rule("train.micro_batch_size", "train.batch_size")
def _micro_batches(config: Config) -> str | None:
    size, micro = config.train.batch_size, config.train.micro_batch_size
    if micro is None or size % micro == 0:
        return None
    return f"train.batch_size ({size}) must be a multiple of train.micro_batch_size ({micro})"


@rule("eval.every_steps", "data.eval")
def _something_to_evaluate(config: Config) -> str | None:
    if config.eval.every_steps is None or config.data.eval is not None:
        return None
    return "eval.every_steps is set but data.eval is not: name the JSONL to evaluate on"


@rule("monitor.every_steps", "data.eval")
def _something_to_dump(config: Config) -> str | None:
    if config.monitor.every_steps is None or config.data.eval is not None:
        return None
    return "monitor.every_steps is set but data.eval is not: name the JSONL that the panel is chosen from"


@rule("monitor.panel.size", "monitor.panel.ids", "monitor.panel.from")
def _panel_of_something(config: Config) -> str | None:
    panel = config.monitor.panel
    if panel.size or panel.ids or panel.from_run is not None:
        return None
    return "the panel is empty: raise monitor.panel.size, or name samples in monitor.panel.ids"


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


no_effect(
    "data.buffer_size",
    reads="data.shuffle",
    unless=lambda config: config.data.shuffle is Shuffle.BUFFER,
    why="unless `data.shuffle: buffer`: set that",
)
no_effect(
    "train.length_window",
    reads="data.shuffle",
    unless=lambda config: config.data.shuffle is not Shuffle.NONE,
    why="with `data.shuffle: none`, which keeps the order of the file: set that to `full` or `buffer`",
)


@rule("train.keep_best", "data.eval", "data.complete", "train.save_every", "eval.every_steps", "train.steps")
def _something_to_be_the_best(config: Config) -> str | None:
    best, train = config.train.keep_best, config.train
    if best is None:
        return None
    if config.data.eval is None:
        return "train.keep_best is set but data.eval is not: name the JSONL to evaluate on"
    if best == "f1/true" and config.data.complete is None:
        return "train.keep_best is f1/true, which needs data.complete: name the complete truth, or take f1/f1"
    save, evaluate = train.save_every or train.steps, config.eval.every_steps or train.steps
    if math.lcm(save, evaluate) < train.steps:
        return None
    return (
        f"train.keep_best has nothing to choose from: of {train.steps} steps, none but the last is both saved "
        f"(train.save_every: {train.save_every}) and evaluated (eval.every_steps: {config.eval.every_steps})"
    )


no_effect(
    "optim.lr_muon",
    reads="optim.name",
    unless=lambda config: config.optim.name == "muon",
    why="with `optim.name: adamw`: set `optim.name: muon`",
)
no_effect(
    "eval.samples",
    reads="data.eval",
    unless=lambda config: config.data.eval is not None,
    why="without data.eval: name the JSONL to evaluate on",
)
no_effect(
    "data.complete",
    reads="data.eval",
    unless=lambda config: config.data.eval is not None,
    why="without data.eval, whose images it completes: name the JSONL to evaluate on",
)
for _knob in (
    "monitor.panel.size",
    "monitor.panel.ids",
    "monitor.panel.seed",
    "monitor.panel.from",
    "monitor.pictures",
    "monitor.probes",
    "monitor.elsewhere",
):
    no_effect(
        _knob,
        reads="monitor.every_steps",
        unless=lambda config: config.monitor.every_steps is not None,
        why="without monitor.every_steps: set it to the steps between dumps",
    )
for _knob in ("monitor.panel.size", "monitor.panel.ids", "monitor.panel.seed"):
    no_effect(
        _knob,
        reads="monitor.panel.from",
        unless=lambda config: config.monitor.panel.from_run is None,
        why="with monitor.panel.from, which names the samples: leave that out",
    )
for _knob in ("generate.labels", "generate.ordered_boxes", "generate.forced_logprobs"):
    no_effect(
        _knob,
        reads="generate.grammar",
        unless=lambda config: config.generate.grammar,
        why="with `generate.grammar: false`: set that to true",
    )


@rule("stage2_ab.b_ratio", "train.steps")
def _a_step_for_channel_b(config: Config) -> str | None:
    ratio, steps = config.stage2_ab.b_ratio, config.train.steps
    if not ratio or int(steps * Fraction(repr(ratio))):
        return None
    return (
        f"stage2_ab.b_ratio ({ratio}) gives Channel-B none of train.steps ({steps}): raise one of them, or set it to 0"
    )


no_effect(
    "stage2_ab.b_redundancy_weight",
    reads="stage2_ab.b_ratio",
    unless=lambda config: config.stage2_ab.b_ratio > 0,
    why="with `stage2_ab.b_ratio: 0`, which has no answers of the model's own: raise that",
)


def _several_passes(config: Config) -> bool:
    return config.stage2_ab.n_softctx_iter > 1


_SELF_CONTEXT = (
    "objective.bbox_geo.config.a1_smoothl1_weight",
    "objective.bbox_geo.config.a1_ciou_weight",
    "objective.coord_reg.config.a1_soft_ce_weight",
    "objective.coord_reg.config.a1_w1_weight",
    "objective.coord_reg.config.self_context_soft_ce_weight",
    "objective.token_ce.config.self_context_struct_ce_weight",
    "stage2_ab.softctx_grad_mode",
    "stage2_ab.softctx_temperature",
    "stage2_ab.coord_ctx_embed_mode",
    "stage2_ab.softctx_replace",
    "stage2_ab.softctx_target",
)
no_effect(
    *_SELF_CONTEXT,
    reads=("stage2_ab.n_softctx_iter", "stage2_ab.b_ratio"),
    unless=lambda config: _several_passes(config) or config.stage2_ab.b_ratio == 1,
    why="with `stage2_ab.n_softctx_iter: 1`, which has no self-context: set it to 2 or more",
)
no_effect(
    *("stage2_ab.n_softctx_iter", *_SELF_CONTEXT),
    reads="stage2_ab.b_ratio",
    unless=lambda config: config.stage2_ab.b_ratio < 1,
    why="with `stage2_ab.b_ratio: 1`, which leaves no step to Channel-A: lower that",
)
no_effect(
    "stage2_ab.softctx_radius",
    reads="stage2_ab.softctx_replace",
    unless=lambda config: config.stage2_ab.softctx_replace is SoftContextReplace.NEAR_GT,
    why="with `stage2_ab.softctx_replace: all`: set it to `near_gt`",
)
no_effect(
    "stage2_ab.softctx_temperature",
    reads="stage2_ab.coord_ctx_embed_mode",
    unless=lambda config: config.stage2_ab.coord_ctx_embed_mode is not ContextEmbedMode.HARD,
    why="with `stage2_ab.coord_ctx_embed_mode: hard`, which takes the most likely bin",
)
no_effect(
    "stage2_ab.softctx_temperature",
    reads=("stage2_ab.softctx_grad_mode", "stage2_ab.coord_ctx_embed_mode"),
    unless=lambda config: (
        config.stage2_ab.softctx_grad_mode is not SoftContextGrad.EM_DETACH
        or config.stage2_ab.coord_ctx_embed_mode is not ContextEmbedMode.ST
    ),
    why="with `stage2_ab.softctx_grad_mode: em_detach` and `stage2_ab.coord_ctx_embed_mode: st`, where it would only "
    "shape the gradient that is cut off: set one of them to `unroll` or `soft`",
)


def _weighs(path: str) -> Callable[[Config], bool]:
    """Whether the weight at a dotted path is above 0."""
    return lambda config: bool(value_at(config, path) > 0)


# What shapes a term (smoothl1_beta, target_sigma, ...) is felt in the logged figures even where the term has no weight.
for _term, _parts in {
    "token_ce": ("desc_ce_weight", "self_context_struct_ce_weight"),
    "bbox_geo": ("smoothl1_weight", "ciou_weight", "a1_smoothl1_weight", "a1_ciou_weight"),
    "coord_reg": (
        *("coord_ce_weight", "soft_ce_weight", "w1_weight", "self_context_soft_ce_weight"),
        *("a1_soft_ce_weight", "a1_w1_weight", "coord_gate_weight", "text_gate_weight"),
    ),
}.items():
    no_effect(
        *(f"objective.{_term}.config.{_part}" for _part in _parts),
        reads=f"objective.{_term}.weight",
        unless=_weighs(f"objective.{_term}.weight"),
        why=f"with `objective.{_term}.weight: 0`, which multiplies it: raise that",
    )


# Rules about what is trained at all: frozen parts, adapters, and their rates.


RATES = {Part.VISION: "lr_vision", Part.MERGER: "lr_merger", Part.COORD: "lr_coord"}
"""The setting of a part's own rate in `optim`; `language` has the general one, which is never 0."""


def trained_parts(config: Config) -> tuple[Part, ...]:
    """Parts that have something to train: not frozen, with a rate above 0, and with adapters where those are used."""
    rates = {part: value_at(config, f"optim.{name}") for part, name in RATES.items()}
    adapted = {*config.model.lora.targets, Part.COORD} if config.model.lora.rank else set(Part)
    return tuple(p for p in Part if p not in config.model.freeze and rates.get(p) != 0 and p in adapted)


@rule("model.freeze", "model.lora.targets", "model.lora.rank", *(f"optim.{name}" for name in RATES.values()))
def _something_to_train(config: Config) -> str | None:
    if trained_parts(config):
        return None
    return "nothing is left to train: every part is frozen, by model.freeze or a rate of 0; train one at least"


@rule("model.lora.targets", "model.lora.rank", "model.freeze", *(f"optim.{name}" for name in RATES.values()))
def _adapters_are_trained(config: Config) -> str | None:
    lora, trained = config.model.lora, trained_parts(config)
    if not lora.rank:
        return None
    if not lora.targets or Part.COORD in lora.targets:
        return "name one or more of vision, merger, language; coordinate rows are trained beside adapters anyway"
    idle = [str(part) for part in lora.targets if part not in trained]
    if not idle or not trained:
        return None
    return f"adapters of {', '.join(idle)} would not be trained: leave out of targets what is frozen or has rate 0"


@rule("optim.name", "model.lora.rank")
def _adapters_with_adamw(config: Config) -> str | None:
    if config.optim.name == "adamw" or not config.model.lora.rank:
        return None
    return "`muon` is for whole matrices; adapters are trained with `optim.name: adamw`"


for _knob in ("alpha", "dropout", "dora", "targets"):
    no_effect(
        f"model.lora.{_knob}",
        reads="model.lora.rank",
        unless=lambda config: config.model.lora.rank > 0,
        why="with `model.lora.rank: 0`, which makes no adapters: raise that",
    )


def _rate_of(part: Part, name: str) -> None:
    """A rate above 0 for what is not trained is a mistake."""

    def idle(config: Config) -> bool:
        return not value_at(config, f"optim.{name}") or part in trained_parts(config)

    no_effect(
        f"optim.{name}",
        reads=("model.freeze", "model.lora.rank", "model.lora.targets"),
        unless=idle,
        why=f"as {part} is not trained: take it out of model.freeze, or into model.lora.targets,",
    )


for _part, _name in RATES.items():
    _rate_of(_part, _name)
