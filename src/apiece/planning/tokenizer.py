"""A checkpoint's tokenizer and chat template without the library that loads models: counting tokens must be quick."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Library

from apiece.codec import NUM_BINS, Renderer, coord_token
from apiece.codec.vocab import CoordVocab
from apiece.errors import UserError
from apiece.model.prompts import chat_prompt

COPY = "copy it from the original model"


@dataclass(frozen=True)
class PlainTokenizer:
    """What the codec and the prompts use of a tokenizer.

    Attributes:
        library: Reads `tokenizer.json`.
        eos: Text of the end token, if there is one.
        template: The chat template.
        where: The checkpoint's folder.
    """

    library: Any
    eos: str | None
    template: str
    where: Path

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends an answer."""
        return None if self.eos is None else self.library.token_to_id(self.eos)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text."""
        return list(self.library.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        """Text of ids, special tokens kept."""
        return str(self.library.decode(list(token_ids), skip_special_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        return dict(self.library.get_vocab(with_added_tokens=True))

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        """The prompt of messages, as the model's template writes it; it runs in a sandbox."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            template = environment.from_string(self.template)
            return template.render(
                messages=messages, add_generation_prompt=settings.get("add_generation_prompt", False)
            )
        except TemplateError as error:
            raise UserError(
                f"the chat template cannot be applied: {error}",
                where=self.where,
                fix="use the model's own chat_template",
            ) from error


@dataclass(frozen=True)
class TextShape:
    """What the planner needs to know of a checkpoint's text side.

    Attributes:
        tokenizer: Its tokenizer.
        renderer: Counts the tokens of answers.
        size: Tokens that the tokenizer knows.
        extended: Whether the coordinate tokens are among them.
    """

    tokenizer: PlainTokenizer
    renderer: Renderer
    size: int
    extended: bool

    @classmethod
    def read(cls, folder: Path) -> TextShape:
        """From the files of a checkpoint's folder; one without coordinate tokens is taken as if they were added.

        Raises:
            UserError: A file is missing or broken.
        """
        tokenizer = read_tokenizer(folder)
        vocabulary = tokenizer.get_vocab()
        extended = coord_token(0) in vocabulary
        # Where they would come to lie does not matter here: each is one token wherever it is.
        vocab = CoordVocab.of(tokenizer, where=str(folder)) if extended else CoordVocab(len(vocabulary))
        return cls(tokenizer, Renderer(tokenizer, vocab), len(vocabulary) + (0 if extended else NUM_BINS), extended)

    def prompt_tokens(self, instruction: str, image_token: int) -> int:
        """Tokens of the prompt around the image."""
        ids = self.tokenizer.encode(chat_prompt(self.tokenizer, instruction))
        if ids.count(image_token) != 1:
            raise UserError(
                f"expected the chat template to write one image placeholder, found {ids.count(image_token)}",
                where=self.tokenizer.where,
                fix="use the model's own chat_template, and an instruction without special tokens",
            )
        return len(ids) - 1


def read_tokenizer(folder: Path) -> PlainTokenizer:
    """The tokenizer in a checkpoint's folder."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError("tokenizer.json is missing from the checkpoint", where=folder, fix=COPY)
    if not isinstance(_read_json(file).get("model"), dict):  # the library's own error has no type to be caught by
        raise UserError("expected a tokenizer, found no `model` in it", where=file, fix=COPY)
    library = Library.from_file(str(file))
    settings = _read_json(folder / "tokenizer_config.json")
    eos = settings.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    return PlainTokenizer(library, eos, _template(folder, settings), folder)


def _template(folder: Path, settings: dict[str, Any]) -> str:
    """The chat template, from the file that holds it in this checkpoint."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    older = folder / "chat_template.json"
    found = settings.get("chat_template") or (_read_json(older).get("chat_template") if older.is_file() else None)
    if not isinstance(found, str):
        raise UserError("the checkpoint has no chat template", where=folder, fix=f"chat_template.jinja: {COPY}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"broken JSON: {error}", where=path, fix=COPY) from error
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object, found {type(value).__name__}", where=path, fix=COPY)
    return value
