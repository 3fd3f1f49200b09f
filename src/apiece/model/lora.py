"""Low-rank adapters by peft, with coordinate rows of their own; saved in peft's format, merged back on demand.

While training, the model keeps its class and the names of its parts: peft puts its layers in place of linear ones, and
the coordinate rows become parameters of their own (`separate_coord_rows`). On disk both are what peft calls a LoRA
adapter with `trainable_token_indices`, so any code that knows peft reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from apiece.config.schema import LoraSection
from apiece.errors import UserError
from apiece.model.families import language_of, part_of

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Ends of names here -> in peft's files.
_ENDS = {
    ".lora_A.default.weight": ".lora_A.weight",
    ".lora_B.default.weight": ".lora_B.weight",
    ".lora_magnitude_vector.default.weight": ".lora_magnitude_vector",
    ".rows": ".token_adapter.trainable_tokens_delta",
}


def require_peft() -> None:
    """Fail early if peft is missing. It takes seconds to import, so only what needs it does."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError("adapters need peft", fix="pip install 'apiece[lora]'") from error


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint holds an adapter, which needs its base."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_adapted(model: Any) -> bool:
    """Whether a model has adapters that are not merged."""
    return isinstance(model.get_input_embeddings(), CoordEmbedding)


def of_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter or is a coordinate row; all others are the base's."""
    return name.endswith(tuple(_ENDS))


def add_adapters(model: Any, lora: LoraSection, first: int, bins: int, seed: int) -> None:
    """Put adapters that add nothing yet into a float32 model, in place, and give its `bins` coordinate rows from id
    `first` their own parameters."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if part_of(name) in lora.targets]
    # Layers of a kind share a pattern that leaves their numbers open.
    patterns = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in chosen})
    require_peft()
    from peft import LoraConfig

    tied = bool(model.config.tie_word_embeddings)
    ids = list(range(first, first + bins))
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules="|".join(patterns),
        trainable_token_indices={"embed_tokens": ids} if tied else {"embed_tokens": ids, "lm_head": ids},
        base_model_name_or_path=str(Path(model.name_or_path).resolve()),
    )
    _inject(model, settings, first, bins, seed)


def add_adapters_like(model: Any, other: Any) -> None:
    """Put adapters of the same shapes as another model's into a model, in place."""
    table = other.get_input_embeddings()
    _inject(model, other.peft_config["default"], table.first, table.rows.shape[0], 0)


def _inject(model: Any, settings: LoraConfig, first: int, bins: int, seed: int) -> None:
    from peft import inject_adapter_in_model

    # The coordinate rows are ours while training: peft's own copy the whole table at every use.
    linear_only = deepcopy(settings)
    linear_only.trainable_token_indices = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(linear_only, model)
    model.peft_config = {"default": settings}
    separate_coord_rows(model, first, bins)


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """Adapters and coordinate rows by name; rows shared by head and embedding appear once, as the embedding's."""
    names = {name for name, _ in model.named_parameters() if of_adapter(name)}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def to_peft_name(name: str) -> str:
    """The name of a parameter in peft's files."""
    for end, saved in _ENDS.items():
        if name.endswith(end):
            return _PREFIX + name.removesuffix(end) + saved
    raise AssertionError(f"{name} is not of an adapter")


def save_adapter(model: Any, out: Path, weights: dict[str, Tensor] | None) -> dict[str, Any]:
    """Write the adapter as peft does, and the base's `config.json`; returns what identifies the base, for
    `apiece.json`.

    `weights` are all of `adapter_weights`, where the model holds only a part of them.
    """
    settings = model.peft_config["default"]
    tensors = {to_peft_name(n): t.detach().cpu().contiguous() for n, t in (weights or adapter_weights(model)).items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    described = deepcopy(settings)
    described.inference_mode = True
    described.save_pretrained(str(out))
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    base = Path(settings.base_model_name_or_path)
    return {"base": {"path": str(base), "fingerprint": fingerprint(base)}}


def merged(base: Any, folder: Path) -> Any:
    """A float32 model with an adapter's updates written into its weights and coordinate rows."""
    require_peft()
    from peft import PeftModel

    with warnings.catch_warnings():  # peft uses what transformers is about to drop
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return PeftModel.from_pretrained(base, folder).merge_and_unload()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The description of a saved adapter; refused if it is not LoRA, is pickled, or would import code."""
    path = folder / ADAPTER_CONFIG
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=path, fix="copy the adapter's folder again") from error
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        kind = found.get("peft_type") if isinstance(found, dict) else type(found).__name__
        raise UserError(f"expected an adapter of type LORA, found {kind}", where=path, fix="name one of LoRA or DoRA")
    # peft imports the module that `megatron_core` names.
    if found.get("megatron_config") is not None:
        raise UserError("names a module to import, which is never done", where=path, fix="set megatron_config to null")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"the adapter has no {ADAPTER_WEIGHTS}",
            where=folder,
            fix="save it as safetensors first; pickled weights are never loaded",
        )
    return found


def fingerprint(folder: Path) -> str:
    """Identifies a checkpoint's weights quickly: sizes, headers and samples of the files, hashed."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for k in range(65):
                file.seek(k * max(size - 4096, 0) // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()[:32]


# Embedding and head whose coordinate rows are trained while all other rows stay as they are. The rows are a small
# parameter of their own, so their gradient, their optimizer state and what is saved of them are those of 1000 rows and
# not of the whole table. Shapes: K bins, D width.


class CoordEmbedding(nn.Module):
    """An embedding whose rows from `first` on, those of the coordinate tokens, are replaced by `rows_KD`."""

    def __init__(self, base: nn.Embedding, first: int, rows_KD: nn.Parameter) -> None:
        super().__init__()
        self.base, self.first, self.rows = base, first, rows_KD

    def forward(self, ids: Tensor) -> Tensor:
        bins = self.rows.shape[0]
        within = (ids >= self.first) & (ids < self.first + bins)
        own = embedding((ids - self.first).clamp(0, bins - 1), self.rows)
        return torch.where(within[..., None], own, self.base(ids))


class CoordHead(nn.Module):
    """A head with other rows for the coordinate tokens; where head and embedding are tied, they share them."""

    def __init__(self, base: nn.Linear, first: int, rows_KD: nn.Parameter) -> None:
        super().__init__()
        self.base, self.first, self.rows = base, first, rows_KD

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.base(hidden)
        # In place: a second copy of the logits would be the largest tensor of the step.
        logits[..., self.first : self.first + self.rows.shape[0]] = linear(hidden, self.rows)
        return logits


def separate_coord_rows(model: Any, first: int, bins: int) -> None:
    """Give a model's coordinate rows parameters of their own, with the values they have."""
    head, table = model.lm_head, model.get_input_embeddings()
    rows_KD = nn.Parameter(table.weight.detach()[first : first + bins].clone())
    tied = head.weight is table.weight
    head_KD = rows_KD if tied else nn.Parameter(head.weight.detach()[first : first + bins].clone())
    language_of(model).embed_tokens = CoordEmbedding(table, first, rows_KD)
    model.lm_head = CoordHead(head, first, head_KD)


def coord_rows(model: Any, first: int, bins: int) -> tuple[Tensor, Tensor]:
    """The coordinate tokens' rows of head and embedding, `[K, D]` each; one tensor where the two are tied.

    Call it once a step: where rows are cut out of a table, the gradient of each cut is as large as the table.
    """
    head, table = model.lm_head, model.get_input_embeddings()
    if isinstance(table, CoordEmbedding):
        return head.rows, table.rows
    head_KD = head.weight[first : first + bins]
    return head_KD, head_KD if head.weight is table.weight else table.weight[first : first + bins]
