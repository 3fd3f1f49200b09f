"""Rules about what is trained at all: frozen parts, adapters, and their rates."""

from __future__ import annotations

from apiece.config.lora import Part
from apiece.config.pairs import no_effect, rule, value_at
from apiece.config.schema import Config

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
