"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from apiece.errors import UserError, nearest

if TYPE_CHECKING:
    from apiece.config.schema import PromptSection

BatchSize = Annotated[int, typer.Option(min=1, help="Images at once.")]
MaxObjects = Annotated[int, typer.Option(min=1, help="End an answer after this many objects.")]
Device = Annotated[str, typer.Option(help="`auto`, `cpu` or `cuda`.")]
ScorePolicyName = Annotated[
    str,
    typer.Option(
        "--score-policy", help="`coord_logprob`, `coord_mass`, `desc_logprob`, `product` or `constant`.", metavar="NAME"
    ),
]
Grammar = Annotated[
    bool, typer.Option("--grammar/--no-grammar", help="Hold answers to the format, or let the model write freely.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="A name that may be written; give all of them. Any name by default.", metavar="NAME"),
]
Prompt = Annotated[
    str | None,
    typer.Option(help="`plain`, `coco_80` or `atomic`; the checkpoint's own by default.", show_default=False),
]
PromptText = Annotated[str | None, typer.Option(help="A prompt of your own instead.", show_default=False)]


def chosen_labels(labels: list[str] | None, grammar: bool) -> tuple[str, ...] | None:
    """The names that `--label` allows; `None` for any.

    Raises:
        UserError: Names are given, but answers are not held to anything.
    """
    if labels and not grammar:
        raise UserError("these do not go together: --label, --no-grammar", exit_code=2)
    return tuple(labels) if labels else None


def chosen_prompt(name: str | None, text: str | None) -> PromptSection | None:
    """The prompt that `--prompt` and `--prompt-text` ask for; `None` for the checkpoint's own.

    Raises:
        UserError: Both are given, the name is unknown or the text is blank.
    """
    from apiece.config.schema import PromptSection
    from apiece.model.prompts import PROMPTS

    if name is not None and text is not None:
        raise UserError("these do not go together: --prompt, --prompt-text", exit_code=2)
    if text is not None:
        if not text.strip():
            raise UserError("--prompt-text is blank", exit_code=2)
        return PromptSection(name="text", text=text)
    if name is None:
        return None
    if name not in PROMPTS:
        known = ", ".join(PROMPTS)
        raise UserError(
            f"unknown prompt '{name}'{nearest(name, PROMPTS)}; known: {known}",
            fix="give a prompt of your own with --prompt-text",
            exit_code=2,
        )
    return PromptSection.model_validate({"name": name})
