"""Loading and saving checkpoints: model, tokenizer, image processor, coordinate vocabulary, and the prompt's hash.

A checkpoint is a folder as Hugging Face writes it (safetensors and JSON only), plus `apiece.json` with what the weights
were trained under.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from apiece.codec import CoordVocab, Renderer
from apiece.config.schema import ObjectOrder, PromptSection
from apiece.errors import UserError, nearest
from apiece.files import read_json_object, write_json
from apiece.model.families import FAMILIES
from apiece.model.find import resolve_checkpoint
from apiece.model.lora import fingerprint, is_adapted, is_adapter, merged, read_adapter_config, save_adapter
from apiece.model.prompt import ImageEncoder

# Loading and saving take a second; our own progress bars are enough.
transformers_logging.disable_progress_bar()

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str, *, cpu: str = "--device cpu") -> torch.device:
    """The device named `cpu`, `cuda` or `auto` (a GPU where there is one); `cpu` is how the user asks for the CPU."""
    if name not in DEVICES:
        raise UserError(f"unknown device '{name}'{nearest(name, DEVICES)}; known: {', '.join(DEVICES)}", exit_code=2)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"no CUDA device found (torch {torch.__version__})",
            fix=f"{cpu}, or install a CUDA build",
            exit_code=2,
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


# Weights written as one file per process, joined: reading them needs no processes.


PATTERN = "shard-*.safetensors"
# Keys under which torch.distributed.checkpoint keeps the place of each part, in the header of the file.
_PLACES, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


def read_shards(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whole."""
    parts: dict[str, list[tuple[tuple[int, ...], Tensor]]] = {}
    for file in sorted(folder.glob(PATTERN)):
        try:
            with safe_open(file, framework="pt") as opened:
                places = json.loads((opened.metadata() or {}).get(_PLACES, "{}"))
                for name in opened.keys():  # noqa: SIM118  not a mapping
                    offsets = tuple(places[name][_OFFSETS])
                    parts.setdefault(name, []).append((offsets, opened.get_tensor(name)))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"cut short or damaged weights: {error}", where=file, fix="name an older checkpoint of the run"
            ) from error
    return {name: _joined(name, parts.pop(name), folder) for name in sorted(parts)}


def _joined(name: str, parts: list[tuple[tuple[int, ...], Tensor]], folder: Path) -> Tensor:
    ends = [[at + size for at, size in zip(offsets, part.shape, strict=True)] for offsets, part in parts]
    size = [max(column) for column in zip(*ends, strict=True)]
    whole = torch.empty(size, dtype=parts[0][1].dtype)
    if sum(part.numel() for _, part in parts) != whole.numel():
        raise UserError(
            f"a file of weights is missing: there is only a part of {name}", where=folder, fix="restore the folder"
        )
    for offsets, part in parts:
        whole[tuple(slice(at, at + n) for at, n in zip(offsets, part.shape, strict=True))] = part
    return whole


@dataclass(frozen=True, slots=True)
class TextSide:
    """What is needed to write and read answers and to encode images, without the weights: workers get this."""

    tokenizer: Any
    images: ImageEncoder
    vocab: CoordVocab
    renderer: Renderer
    image_token_id: int  # placeholder that the image's features replace
    card: dict[str, Any]  # contents of `apiece.json`; empty if there is none
    path: Path

    def with_max_pixels(self, max_pixels: int) -> TextSide:
        """Never above the checkpoint's own limit."""
        return replace(self, images=self.images.with_max_pixels(max_pixels))


def load_text_side(checkpoint: str, max_pixels: int | None = None) -> TextSide:
    """Tokenizer, image processor and coordinate vocabulary of a checkpoint."""
    folder = resolve_checkpoint(checkpoint)
    config = _read_config(folder)
    tokenizer = read_tokenizer(folder)
    images = ImageEncoder(read_image_processor(folder))
    vocab = CoordVocab.of(tokenizer, where=str(checkpoint))
    rows = config.text_config.vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"tokenizer.json has {len(tokenizer):,} tokens, the model of config.json {rows:,} rows: they are not "
            "from one checkpoint",
            where=folder,
            fix="copy both from the same model",
        )
    renderer = Renderer(tokenizer, vocab)
    side = TextSide(tokenizer, images, vocab, renderer, config.image_token_id, read_card(folder), folder)
    return side if max_pixels is None else side.with_max_pixels(max_pixels)


def context_length(checkpoint: str) -> int:
    """How many tokens a checkpoint's model takes: image, prompt and answer together."""
    return int(_read_config(resolve_checkpoint(checkpoint)).text_config.max_position_embeddings)


def load_model(
    checkpoint: str,
    *,
    attention: str = "auto",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    base: str | None = None,
) -> Any:
    """The model of a checkpoint, in evaluation mode, on the CPU; an adapter is merged into its base.

    Args:
        attention: `sdpa`, `eager`, `flash_attention_2`, or `auto` for FlashAttention where it can run, else SDPA.
        dtype: The weights'; `auto` keeps the file's.
        base: An adapter's base, if that has moved.
    """
    folder = resolve_checkpoint(checkpoint)
    config = _read_config(folder)
    if is_adapter(folder):
        return _load_adapted(folder, attention, dtype, base)
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            "the checkpoint has no safetensors weights",
            where=folder,
            fix="convert it first; pickled weights are never loaded",
        )
    _require_whole(folder)
    if attention == "auto":
        attention = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    cls = FAMILIES[config.model_type].model_class
    options: dict[str, Any] = {
        "attn_implementation": attention,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    if list(folder.glob(PATTERN)):
        parts = read_shards(folder)
        # `auto` would take the config's: these keep their own.
        options["dtype"] = next(iter(parts.values())).dtype if dtype == "auto" else dtype
        return read_weights(
            folder, lambda: cls.from_pretrained(None, config=config, state_dict=parts, **options)
        ).eval()
    options |= {"dtype": dtype, "use_safetensors": True}
    return read_weights(folder, lambda: cls.from_pretrained(folder, **options)).eval()


def save_pretrained(
    model: Any,
    tokenizer: Any,
    image_processor: Qwen2VLImageProcessorPil,
    out: Path,
    card: dict[str, Any] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder that the ordinary loading code reads; weights already there in shards stay.

    Of a model with adapters only these are written. `card` is what the weights were trained under, for `apiece.json`;
    `weights` are all of them by name, where the model holds only a part.
    """
    out.mkdir(parents=True, exist_ok=True)
    about = {}
    if is_adapted(model):
        about = save_adapter(model, out, weights)
    elif list(out.glob(PATTERN)):
        model.config.save_pretrained(out)
        model.generation_config.save_pretrained(out)
    else:
        model.save_pretrained(out, state_dict=weights)
    tokenizer.save_pretrained(out)
    image_processor.save_pretrained(out)
    write_json(out / CARD, (card or {}) | about)


def _load_adapted(folder: Path, attention: str, dtype: torch.dtype | Literal["auto"], base: str | None) -> Any:
    """The base of an adapter with the adapter merged into it, in float32, then in the dtype asked for."""
    where = base or str(read_adapter_config(folder).get("base_model_name_or_path"))
    fix = "move the base back, or merge with --base: apiece model merge"
    if base is None and not Path(where).is_dir():
        raise UserError(f"the adapter's base is no longer at {where}", where=folder, fix=fix)
    known, found = read_card(folder).get("base", {}).get("fingerprint"), fingerprint(resolve_checkpoint(where))
    if known is not None and known != found:
        raise UserError(f"the weights in {where} are not those that the adapter was trained on", where=folder, fix=fix)
    _require_whole(folder)
    model = merged(load_model(where, attention=attention), folder)
    if dtype == "auto":
        dtype = _read_config(resolve_checkpoint(where)).dtype or torch.float32
    return model.to(dtype).eval()


def _require_whole(folder: Path) -> None:
    """Open each file of weights, whose header says how long it must be; an index names all of several files."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        found = read_json_object(index, "an index of weights", fix="copy or download this file again").get("weight_map")
        if not isinstance(found, dict):
            raise UserError("is no index of weights", where=index, fix="copy or download this file again")
        named = {str(name) for name in found.values()}
        if missing := sorted(name for name in named if not (folder / name).is_file()):
            raise UserError(
                f"{len(missing)} of {len(named)} files of weights are missing: {', '.join(missing[:3])}",
                where=folder,
                fix="copy or download them",
            )
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"cut short or damaged weights: {error}",
                where=path,
                fix="copy or download this file again; of a run, name an older one: RUN/checkpoints/step_N/model",
            ) from error


def _read_config(folder: Path) -> Any:
    config = read_model_config(folder)
    if (problem := FAMILIES[config.model_type].unsupported(config)) is not None:
        fix = "no published model of this family needs it"
        raise UserError(f"{problem} is not supported", where=folder / "config.json", fix=fix)
    return config


# The parts of a checkpoint's folder. The libraries that read them raise errors of any kind about a file: here they
# become a `UserError` with the file and a remedy.


CARD = "apiece.json"

_COPY = "copy {} from the original model again"
# What transformers and tokenizers raise on damaged files, found by damaging each of them.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, ZeroDivisionError),
    *(jinja2.TemplateError, StrictDataclassError),
)


class reading:  # noqa: N801  a context manager, read as a verb
    """Turns a library's error about a user's file into a `UserError`; wrap only the library's call in it."""

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


def read_model_config(folder: Path) -> Any:
    """A checkpoint's `config.json`, of a supported family."""
    path, fix = folder / "config.json", _COPY.format("config.json")
    kind = read_json_object(path, "a model's settings", fix=fix).get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"expected a model of type {', '.join(FAMILIES)}, found {'none' if kind is None else repr(kind)}",
            where=path,
            fix=f"start from a checkpoint of {' or '.join(family.name for family in FAMILIES.values())}",
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


def read_weights(folder: Path, load: Callable[[], tuple[Any, Mapping[str, Any]]]) -> Any:
    """A model whose weights are all there, of the right shapes, and finite; else they would be random numbers.

    `load` is `from_pretrained` with `output_loading_info=True` and `ignore_mismatched_sizes=True`.
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
    """One pass over the weight, without a copy."""
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
