"""Reads the parts of a checkpoint's folder: what is wrong with one is said with its file and a remedy.

The libraries that read them raise errors of any kind about a file; here these become a `UserError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from transformers import AutoConfig, AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.utils import logging as transformers_logging

from apiece.config.schema import ObjectOrder, PromptSection
from apiece.errors import UserError
from apiece.files import read_json_object

CARD = "apiece.json"

_COPY = "copy {} from the original model again"
# What transformers and tokenizers raise on files that are not what they should be, found by damaging each of them.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, ZeroDivisionError),
    *(jinja2.TemplateError, StrictDataclassError),
)


class reading:  # noqa: N801  a context manager, read as a verb
    """Turns a library's error about a user's file into a `UserError`; wrap nothing but the library's call in it."""

    def __init__(self, where: Path, what: str, fix: str) -> None:
        self.where, self.what, self.fix = where, what, fix

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # tokenizers raises bare `Exception`, and nothing else here does.
        if isinstance(error, UserError) or error is None or not (kind is Exception or isinstance(error, _UNREADABLE)):
            return
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{self.what}: {said:.300}", where=self.where, fix=self.fix) from error


class _Card(BaseModel):
    """What is checked of `apiece.json`; it may hold more."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    prompt: PromptSection | None = None
    prompt_hash: str | None = None
    max_pixels: PositiveInt | None = None
    object_order: ObjectOrder | None = None
    step: int | None = None
    base: dict[str, str] | None = None


def read_card(folder: Path) -> dict[str, Any]:
    """What `apiece.json` says the weights were trained under; empty if there is none."""
    path, fix = folder / CARD, "delete the file to continue without it"
    if not path.exists():
        return {}
    card = read_json_object(path, "what the weights were trained under", fix=fix)
    try:
        checked = _Card.model_validate_json(json.dumps(card))  # from JSON, where strictness lets text be an enum
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{place}: {first['msg']}, found {first['input']!r:.60}", where=path, fix=fix) from error
    prompt = checked.prompt
    if prompt is not None and (prompt.name == "text") != (prompt.text is not None):
        raise UserError(f"prompt: name {prompt.name!r} and text {prompt.text!r} do not fit", where=path, fix=fix)
    known = {} if prompt is None else {"prompt": prompt.model_dump(mode="json")}
    return {key: value for key, value in (card | known).items() if value is not None}


def read_model_config(folder: Path, supported: Mapping[str, str]) -> Any:
    """A checkpoint's `config.json`; `supported` are the names of model families by `model_type`."""
    path, fix = folder / "config.json", _COPY.format("config.json")
    kind = read_json_object(path, "a model's settings", fix=fix).get("model_type")
    if not isinstance(kind, str) or kind not in supported:
        raise UserError(
            f"expected a model of type {', '.join(supported)}, found {'none' if kind is None else repr(kind)}",
            where=path,
            fix=f"start from a checkpoint of {' or '.join(supported.values())}",
        )
    with reading(path, "does not describe a model", fix):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint."""
    path, fix = folder / "tokenizer.json", _COPY.format("tokenizer.json")
    _require(path)
    content = read_json_object(path, "a tokenizer", fix=fix)
    if not isinstance(content.get("model"), dict) or not isinstance(content.get("added_tokens"), list):
        raise UserError("expected a tokenizer, with `model` and `added_tokens`", where=path, fix=fix)
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        read_json_object(settings, "a tokenizer's settings", fix=_COPY.format(settings.name))
    with reading(path, "cannot be read as a tokenizer", fix):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def read_image_processor(folder: Path) -> Qwen2VLImageProcessorPil:
    """The image processor of a checkpoint."""
    path = folder / "preprocessor_config.json"
    fix = _COPY.format(path.name)
    _require(path)
    read_json_object(path, "an image processor's settings", fix=fix)
    with reading(path, "does not describe an image processor", fix):
        found = Qwen2VLImageProcessorPil.from_pretrained(folder, trust_remote_code=False)
        longest = found.size["longest_edge"]
    sizes = {"patch_size": found.patch_size, "merge_size": found.merge_size, "size.longest_edge": longest}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name}: expected a whole number from 1, found {value!r}", where=path, fix=fix)
    return found


def require_fitting(tokenizer: Any, config: Any, folder: Path) -> None:
    """Refuse a tokenizer with more tokens than the model has rows: they are not from one checkpoint."""
    rows = config.text_config.vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"tokenizer.json has {len(tokenizer):,} tokens, the model of config.json {rows:,} rows: they are not "
            "from one checkpoint",
            where=folder,
            fix="copy both from the same model",
        )


def read_weights(folder: Path, load: Callable[[], tuple[Any, Mapping[str, Any]]]) -> Any:
    """A model whose weights are all there, of the right shapes, and finite; else they would be random numbers.

    Args:
        load: `from_pretrained` with `output_loading_info=True` and `ignore_mismatched_sizes=True`.
    """
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its own report of the same is pages long
    try:
        with reading(folder, "the model cannot be built", _COPY.format("config.json and the weights")):
            model, found = load()
    finally:
        transformers_logging.set_verbosity(before)
    fix = "copy config.json and the weights from one model again"
    if mismatched := sorted(found["mismatched_keys"]):
        name, inside, expected = mismatched[0]
        message = f"weights of another shape than config.json says: {name} is {list(inside)}, not {list(expected)}"
        raise UserError(f"{message}{_more(mismatched)}", where=folder, fix=fix)
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"weights are missing: {missing[0]}{_more(missing)}", where=folder, fix=fix)
    bad = [name for name, weight in model.named_parameters() if not _finite(weight)]
    if bad:
        raise UserError(
            f"weights are NaN or infinite: {bad[0]}{_more(bad)}",
            where=folder,
            fix="the training that wrote them diverged: take an older checkpoint, RUN/checkpoints/step_N/model",
        )
    return model


def _finite(weight: torch.Tensor) -> bool:
    """Whether all of a weight is finite: one pass over it and no copy."""
    if weight.is_meta or not weight.numel():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all())


def _more(names: list[Any]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _require(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"{path.name} is missing from the checkpoint", where=path.parent, fix="copy it from the original model"
        )
