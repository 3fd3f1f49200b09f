"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from apiece.errors import UserError, nearest

if TYPE_CHECKING:
    from apiece.config.schema import PromptSection
    from apiece.rollout.server import ServerSettings

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

Server = Annotated[
    str | None,
    typer.Option(
        help="Let an OpenAI-compatible server (vLLM, SGLang, ...) that serves CHECKPOINT write the answers.",
        metavar="URL",
        show_default=False,
    ),
]
ServedModel = Annotated[
    str | None,
    typer.Option("--model", help="Its name on the server; by default the only one there.", show_default=False),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests to the server under way at once.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that the server may take for one answer.")]
Retries = Annotated[int, typer.Option(min=0, help="Further attempts where the server fails or is too busy.")]

_OF_SERVERS = ("served_model", "concurrency", "timeout", "retries")
_OF_THIS_PROCESS = ("batch_size", "device", "grammar", "label", "temperature", "seed")


def typed(context: typer.Context, *names: str) -> list[str]:
    """Which of these parameters stand on the command line, as they are written there."""
    sources = {name: context.get_parameter_source(name) for name in names}
    spelled = {"served_model": "--model"}
    return [
        spelled.get(n, f"--{n.replace('_', '-')}")
        for n, s in sources.items()
        if s is not None and s.name == "COMMANDLINE"
    ]


def chosen_server(context: typer.Context) -> ServerSettings | None:
    """The server that `--server` names, with its options; `None` without it.

    Raises:
        UserError: Options are given that the engine has no use for, or the address is none.
    """
    from apiece.rollout.server import ServerSettings, base_url

    url, given = context.params["server"], context.params
    if url is None:
        if idle := typed(context, *_OF_SERVERS):
            raise UserError(f"only with --server: {', '.join(idle)}", exit_code=2)
        return None
    idle = typed(context, *(name for name in _OF_THIS_PROCESS if name in given))
    if idle and not (idle == ["--grammar"] and not given["grammar"]):
        raise UserError(
            f"not with --server, which answers greedily and freely, on its own device: {', '.join(idle)}",
            fix="leave them out; to hold answers to the format, run without --server",
            exit_code=2,
        )
    base_url(url)
    return ServerSettings(url, given["served_model"], given["concurrency"], given["timeout"], given["retries"])


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
    from apiece.model.prompt import PROMPTS

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
