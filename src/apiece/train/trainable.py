"""The model as a run trains it: loaded, given adapters where the config asks for them, its parts frozen."""

from __future__ import annotations

from typing import Any

from apiece.config.schema import Config
from apiece.errors import UserError
from apiece.model.find import resolve_checkpoint
from apiece.model.load import TextSide, load_model
from apiece.model.lora import add_adapters, is_adapter, require_peft
from apiece.train.distributed import World
from apiece.train.optim import freeze_parts


def trainable_model(config: Config, side: TextSide, world: World) -> Any:
    """The model on its device, in training mode.

    Raises:
        UserError: Adapters are asked for on top of others, or without peft.
    """
    settings = config.model
    if settings.lora.rank:
        require_peft()
        if is_adapter(folder := resolve_checkpoint(settings.checkpoint)):
            raise UserError(
                "expected a base to put adapters on, found adapters",
                where=folder,
                fix=f"merge them first (apiece model merge {settings.checkpoint} --out DIR), and name that folder",
            )
    model = load_model(settings.checkpoint, attention=settings.attention)
    if settings.lora.rank:
        add_adapters(model, settings.lora, side.vocab.first_id, side.vocab.num_bins, config.seed)
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    freeze_parts(model, config.optim, settings.freeze)
    return model.to(world.device).train()
