"""Options and settings that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apiece.errors import INTERRUPTED, UserError

if TYPE_CHECKING:
    from apiece.config.schema import AnswerSettings, PromptSection
    from apiece.rollout.server import ServerSettings

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings on top of the file.")]
AnswerOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="How to generate: `generate.*`, `prompt.*`, `seed` (`apiece config` prints them), `server.*`.",
    ),
]
Device = Annotated[str, typer.Option(help="`auto`, `cpu` or `cuda`.")]
ScorePolicyName = Annotated[
    str,
    typer.Option(
        "--score-policy", help="`coord_logprob`, `coord_mass`, `desc_logprob`, `product` or `constant`.", metavar="NAME"
    ),
]
Server = Annotated[
    str | None, typer.Option(metavar="URL", help="OpenAI-compatible server of CHECKPOINT that generates the answers.")
]
ServedModel = Annotated[str | None, typer.Option("--model", help="Its name on the server, if that serves several.")]

MOVED = {
    "--batch-size": "generate.batch_size=N",
    "--max-objects": "generate.max_objects=N",
    "--temperature": "generate.temperature=T",
    "--grammar": "generate.grammar=true",
    "--no-grammar": "generate.grammar=false",
    "--label": "'generate.labels=[NAME, ...]'",
    "--prompt": "prompt.name=NAME",
    "--prompt-text": "prompt.name=text 'prompt.text=...'",
    "--seed": "seed=N",
    "--concurrency": "server.concurrency=N",
    "--timeout": "server.timeout_s=S",
    "--retries": "server.retries=N",
}
"""Former options of `evaluate` and `predict` -> the setting that does their work."""

_SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+|\[[0-9]+\])*=.*", re.DOTALL)
_ONLY_LOCAL = ("batch_size", "temperature", "labels", "ordered_boxes", "forced_logprobs")


def require_config_first(command: str, config: Path, overrides: list[str]) -> None:
    """Raise a `UserError` where a setting is given in the place of CONFIG, and say how to write it."""
    if "=" in str(config) and not config.exists():
        fix = f"apiece {command} CONFIG.yaml {' '.join([str(config), *overrides])}"
        raise UserError(f"CONFIG comes first, then settings; found the setting {config}", fix=fix, exit_code=2)


def is_setting(argument: str) -> bool:
    """Whether an argument is KEY=VALUE, and no file of that name."""
    return bool(_SETTING.fullmatch(argument)) and not Path(argument).exists()


def refuse_former_options(words: list[str]) -> None:
    """Raise a `UserError` where a setting is written as an option, and say how to write it."""
    command = next((word for word in words if not word.startswith("-")), "")
    for word in words:
        name, _, value = word.partition("=")
        if command in ("evaluate", "predict") and name in MOVED:
            raise UserError(f"no such option: {name}", fix=f"it is a setting now: {MOVED[name]}", exit_code=2)
        if re.fullmatch(r"--[a-z_0-9]+(\.[a-z_0-9]+)+", name):
            fix = f"settings are written without dashes: {name[2:]}={value or 'VALUE'}"
            raise UserError(f"no such option: {name}", fix=fix, exit_code=2)


def answer_settings(
    overrides: list[str], server: str | None, model: str | None, device: str
) -> tuple[AnswerSettings, ServerSettings | None]:
    """The settings of KEY=VALUE arguments, and the server to ask, if one is named; checks that they fit together."""
    from apiece.config.resolve import load_file
    from apiece.config.schema import AnswerSettings
    from apiece.rollout.server import ServerSettings, base_url

    if others := [one for one in overrides if re.split(r"[.\[=]", one)[0] not in AnswerSettings.model_fields]:
        fix = "those are seed, prompt.*, generate.* (apiece config prints them)"
        fix += ", server.concurrency, server.timeout_s and server.retries"
        raise UserError(f"not a setting of this command: {', '.join(others)}", fix=fix, exit_code=2)
    try:
        asked = load_file(None, AnswerSettings, overrides)
    except UserError as error:
        raise UserError(error.message, where=error.where, fix=error.fix, exit_code=2) from error
    given = asked.generate.model_fields_set
    if server is None:
        idle = [*(["--model"] if model else []), *(f"server.{name}" for name in sorted(asked.server.model_fields_set))]
        if idle:
            raise UserError(f"only with --server: {', '.join(idle)}", exit_code=2)
        return asked, None
    idle = [f"generate.{name}" for name in _ONLY_LOCAL if name in given]
    idle += ["generate.grammar=true"] if "grammar" in given and asked.generate.grammar else []
    idle += ["seed"] if "seed" in asked.model_fields_set else []
    idle += ["--device"] if device != "auto" else []
    if idle:
        message = "not with --server, which answers greedily and without grammar, on its own device"
        fix = "leave them out; to constrain answers to the format, run without --server"
        raise UserError(f"{message}: {', '.join(idle)}", fix=fix, exit_code=2)
    base_url(server)
    how = asked.server
    return asked, ServerSettings(server, model, how.concurrency, how.timeout_s, how.retries)


def chosen_prompt(asked: AnswerSettings) -> PromptSection | None:
    """The prompt that was set; `None` for the checkpoint's own."""
    return asked.prompt if "prompt" in asked.model_fields_set else None


def warn(message: str) -> None:
    """Print a warning on stderr."""
    typer.echo(f"warning: {message}", err=True)


def interrupted(out: Path) -> UserError:
    """The error that Ctrl-C ends with, for commands that can resume."""
    fix = "repeat the command with --resume"
    return UserError("interrupted; finished answers are kept", where=out, fix=fix, exit_code=INTERRUPTED)
