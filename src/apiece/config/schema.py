"""The settings: strict, frozen models. A field's docstring is its documentation and ends up in the JSON schema.

Everything that can be wrong with a config is found when it is loaded; downstream code takes these objects as they are.
Rules about several settings at once are in `rules.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from apiece.config.describe import check_rules

# What every section of the settings is made of: the base of the models, and numbers with bounds.


NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        serialize_by_alias=True,  # a key that is a word of Python's, such as `from`, is an alias
    )


# The settings of low-rank adapters, and the parts of a model that settings speak of.


class Part(StrEnum):
    """Parts of the model that are frozen, adapted and given a learning rate on their own."""

    VISION = "vision"
    MERGER = "merger"
    LANGUAGE = "language"
    COORD = "coord"


class LoraSection(Section):
    """Low-rank adapters (extra `lora`): all weights stay as they are but the adapters and the coordinate rows."""

    rank: Count = 0
    """Rank of the adapters; 0: none, and all weights of the parts that are not frozen are trained."""
    alpha: Positive | None = None
    """What an adapter adds is scaled by alpha / rank; none: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that is dropped in training (seeded by step and process)."""
    dora: bool = False
    """Train the length of every weight's columns as well (DoRA)."""
    targets: tuple[Part, ...] = (Part.MERGER, Part.LANGUAGE)
    """Parts whose linear layers get an adapter: `vision`, `merger`, `language`. Rates: `optim.lr_vision` and so on."""


# The settings of dumps during training.


class PanelSection(Section):
    """The samples of `data.eval` that are dumped: chosen once, the same at every step."""

    size: Count = 16
    """How many are chosen, in equal shares of images with 1-5, 6-15 and 16+ labels (and a few with none)."""
    ids: tuple[str, ...] = ()
    """Sample ids that are in it beside those."""
    seed: Count = 0
    """Of the choice; not the run's seed, so that runs that differ in it show the same images."""
    from_run: Annotated[str | None, Field(alias="from")] = None
    """Folder of a run whose panel is taken over; its `data.eval` must be the same file."""


class MonitorSection(Section):
    """Dumps of a fixed panel during training, to be looked at with `apiece report` (docs/records.md)."""

    every_steps: PositiveCount | None = None
    """Steps between dumps; there is one before the first step and one at the end, too. None: no dumps."""
    panel: PanelSection = PanelSection()
    """What is dumped."""
    pictures: bool = True
    """Draw each sample of a dump as a PNG: labels left, predictions right."""
    probes: bool = True
    """Read what the model believes at the labels' coordinates."""
    elsewhere: Count = 16
    """How many broken answers of the evaluation of the same step are kept beside the panel, at most."""


# The settings of the training loop: steps, batches, checkpoints, processes, and what it does when something fails.


class Parallel(StrEnum):
    """What several processes do with the model."""

    DDP = "ddp"
    FSDP = "fsdp"


class TrainSection(Section):
    """The loop."""

    steps: PositiveCount = 1000
    """Optimizer steps in all."""
    batch_size: PositiveCount = 8
    """Samples in one optimizer step, over all ranks and accumulation."""
    micro_batch_size: PositiveCount | None = None
    """Samples in one forward pass on one rank; none: as many as fit `batch_size` on this number of ranks."""
    length_window: PositiveCount = 8
    """Batches are cut from windows of this many batches sorted by length: less padding, still shuffled."""
    save_every: PositiveCount | None = None
    """Steps between checkpoints; none: only at the end and on interruption."""
    keep_last: PositiveCount = 2
    """How many of the newest checkpoints are kept."""
    keep_best: (
        Literal["coco/AP", "coco/AP50", "f1/f1", "f1/precision", "f1/recall", "f1/mean_iou", "f1/true"] | None
    ) = None
    """Also keep the checkpoint whose evaluation had the greatest value of this figure; none: only the newest ones."""
    sharded_checkpoints: bool = False
    """Every process writes the parts of weights and optimizer state that it holds, instead of one process gathering and
    writing all: for models that one process's memory is too small for. Read by everything that reads the others, on any
    number of processes; `apiece model export` makes one file of the weights."""
    grace_s: Positive = 30.0
    """Seconds that the run has between SIGTERM and its end; a step and a save that take longer are warned of."""
    skip_nonfinite: Count = 0
    """How many steps of a run may be left out because a loss or the gradient was not finite (`apiece replay` goes over
    them again); after that, as with 0, the run saves the step before and stops."""
    log_every: PositiveCount = 10
    """Steps between lines of metrics."""
    telemetry_window: Annotated[int, Field(ge=3)] = 100
    """Steps over which the running mean and variance of every term are taken."""
    trackers: tuple[Literal["tensorboard"], ...] = ()
    """Where figures go besides `metrics.jsonl`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU where there is one."""
    parallel: Parallel = Parallel.DDP
    """Under torchrun, `ddp`: every process holds the model; `fsdp`: they share weights, gradients and optimizer state
    among them. Same results, same checkpoints. With one process there is nothing to share."""


class CoordDecodeMode(StrEnum):
    """How a box coordinate is read off a slot's distribution for the geometry losses."""

    EXP = "exp"
    ST = "st"


class SoftContextGrad(StrEnum):
    """Whether gradients flow through the self-generated context."""

    UNROLL = "unroll"
    EM_DETACH = "em_detach"


class ContextEmbedMode(StrEnum):
    """How a belief becomes an input embedding."""

    ST = "st"
    SOFT = "soft"
    HARD = "hard"


class SoftContextReplace(StrEnum):
    """Which slots get the model's belief."""

    ALL = "all"
    NEAR_GT = "near_gt"


class SoftContextTarget(StrEnum):
    """What the last pass is asked for."""

    IDENTITY = "identity"
    RETARGET = "retarget"


class ObjectOrder(StrEnum):
    """In which order objects are written in the answer."""

    SORTED = "sorted"
    LEFT_TO_RIGHT = "left_to_right"
    READING = "reading"
    RANDOM = "random"


class Shuffle(StrEnum):
    """How far a training sample may move from its place in the file."""

    FULL = "full"
    BUFFER = "buffer"
    NONE = "none"


class Precision(StrEnum):
    """Arithmetic of the forward pass; losses are always float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class ModelSection(Section):
    """Which model is trained."""

    checkpoint: str = "tiny"
    """A checkpoint folder, a Hugging Face id, or `tiny` for the model that ships with the package."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation; `auto` takes FlashAttention where it is installed on a GPU, else SDPA."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, about a third more time."""
    precision: Precision = Precision.AUTO
    """`auto` is bf16 autocast on a GPU that computes bf16 natively, else fp32. Weights stay float32."""
    freeze: tuple[Part, ...] = ()
    """Parts that stay as they are: `vision`, `merger`, `language` (layers and norms), `coord` (embedding and head)."""
    lora: LoraSection = LoraSection()
    """Low-rank adapters instead of training all weights."""


class DataSection(Section):
    """What is trained on and how images enter the model."""

    train: str | None = None
    """Training JSONL (docs/data.md), relative to the current folder."""
    eval: str | None = None
    """JSONL evaluated during training; none: no evaluation."""
    complete: str | None = None
    """Everything that is on the images of `data.eval` (COCO or JSONL), where it is known: adds the true F1."""
    max_objects: PositiveCount = 60
    """Images with more labelled objects are left out of training, with a count; never out of evaluation."""
    object_order: ObjectOrder = ObjectOrder.SORTED
    """`sorted` by (y1, x1), `left_to_right` by (x1, y1), `reading` row by row and in a row by (x1, y1), or `random`,
    seeded by sample and epoch."""
    max_pixels: PositiveCount = 1_048_576
    """Images above this many pixels are resized down to it; none is ever enlarged beyond rounding to the patch grid."""
    flip: bool = False
    """Mirror half of the training images left to right (seeded by sample and epoch)."""
    scale_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Crop a random window that keeps at least 1 - this share of each side (seeded by sample and epoch)."""
    context_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Move the coordinates that the model reads, and not those that it is to write, by up to this share of the box's
    side (one deviation, seeded by sample and epoch). Who has only read exact boxes copies them, and drifts along a row
    once it reads its own."""
    shuffle: Shuffle = Shuffle.FULL
    """`full`: each epoch a new order of the whole file; `buffer`: within blocks of `buffer_size` records that follow
    each other, so that a slow disk is read front to back; `none`: the order of the file. Any run resumes
    with the sample at which it stopped."""
    buffer_size: PositiveCount = 10_000
    """Records in a block of `shuffle: buffer`."""
    workers: Count = 1
    """Processes that load and encode images; 0 does it in the main process."""


class PromptSection(Section):
    """The instruction that stands beside the image."""

    name: Literal["plain", "coco_80", "atomic", "text"] = "plain"
    """A named template (apiece/model/prompts.py), or `text` for your own."""
    text: str | None = None
    """Your own instruction; only with `name: text`."""


class TokenCEConfig(Section):
    """Weights inside `token_ce`."""

    desc_ce_weight: NonNegative = 1.0
    """Weight of the tokens of an object's name, against 1 for syntax and end tokens."""
    self_context_struct_ce_weight: NonNegative = 0.1
    """Weight of syntax and end tokens on the last of several passes; names are not in it there."""


class TokenCE(Section):
    """Cross-entropy on syntax, name and end tokens; coordinate tokens are not in it."""

    weight: NonNegative = 1.0
    """Weight of the term."""
    config: TokenCEConfig = TokenCEConfig()
    """Its parts."""


class BBoxGeoConfig(Section):
    """Weights inside `bbox_geo`."""

    smoothl1_weight: NonNegative = 2.0
    """SmoothL1 between decoded and true box, coordinates in [0, 1], mean over the four."""
    smoothl1_beta: Positive = 1.0
    """Where SmoothL1 turns from square to straight, in units of the image side."""
    ciou_weight: NonNegative = 0.2
    """1 - CIoU of the decoded box."""
    a1_smoothl1_weight: NonNegative = 0.0
    """SmoothL1 on the anchor pass A1 as well, where there are several passes."""
    a1_ciou_weight: NonNegative = 0.0
    """1 - CIoU on the anchor pass A1 as well, where there are several passes."""


class BBoxGeo(Section):
    """Geometry of boxes decoded from the slots."""

    weight: NonNegative = 1.0
    """Multiplies all parts."""
    config: BBoxGeoConfig = BBoxGeoConfig()
    """Its parts."""


class CoordRegConfig(Section):
    """Weights inside `coord_reg`, over the 1000 coordinate logits of each slot."""

    coord_ce_weight: NonNegative = 0.0
    """Hard cross-entropy to the true bin."""
    soft_ce_weight: NonNegative = 0.1
    """Cross-entropy to a truncated Gaussian around the true bin."""
    w1_weight: NonNegative = 0.1
    """Wasserstein-1 distance to that Gaussian, in units of the image side."""
    self_context_soft_ce_weight: NonNegative | None = None
    """`soft_ce_weight` on the last of several passes; none: the same."""
    a1_soft_ce_weight: NonNegative = 0.0
    """Soft cross-entropy on the anchor pass A1 as well, where there are several passes."""
    a1_w1_weight: NonNegative = 0.0
    """Wasserstein-1 on the anchor pass A1 as well, where there are several passes."""
    coord_gate_weight: NonNegative = 1.0
    """-log of the mass on coordinate tokens at slots, under the full softmax."""
    text_gate_weight: NonNegative = 0.0
    """-log of the mass on other tokens at supervised text positions."""
    target_sigma: Positive = 2.0
    """Width of the Gaussian target, bins."""
    target_truncate: PositiveCount = 8
    """The Gaussian is zero beyond this many bins."""
    temperature: Positive = 1.0
    """Divides the coordinate logits in these losses."""


class CoordReg(Section):
    """Losses on the distribution over bins at each slot."""

    weight: NonNegative = 1.0
    """Multiplies all parts."""
    config: CoordRegConfig = CoordRegConfig()
    """Its parts."""


class ObjectiveSection(Section):
    """The loss: a mapping by term."""

    token_ce: TokenCE = TokenCE()
    """Text of the answer."""
    bbox_geo: BBoxGeo = BBoxGeo()
    """Boxes."""
    coord_reg: CoordReg = CoordReg()
    """Distributions over bins."""


class Stage2Section(Section):
    """The channels of Stage-2."""

    b_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of optimizer steps that are Channel-B's (taught on the model's own answers): of the first n steps,
    floor(n x b_ratio). The others are Channel-A's."""
    b_redundancy_weight: NonNegative = 0.0
    """Charge on the model's own boxes that are wrong whatever is labelled (`duplicate`, `group`): -log(1 - p) of the
    token at which each commits, its x1, per labelled object. 0: such boxes are free, as all false positives are."""
    coord_decode_mode: CoordDecodeMode = CoordDecodeMode.EXP
    """`exp`: expectation over bins; `st`: the most likely bin forward, the expectation's gradient backward."""
    n_softctx_iter: Annotated[int, Field(ge=1, le=8)] = 1
    """Passes of Channel-A: 1 is plain teacher forcing; above it, later passes read the model's own coordinates."""
    softctx_grad_mode: SoftContextGrad = SoftContextGrad.UNROLL
    """`unroll`: gradients flow through the context into earlier passes; `em_detach`: they do not."""
    softctx_temperature: Positive = 1.0
    """Divides the coordinate logits before they become a context embedding."""
    coord_ctx_embed_mode: ContextEmbedMode = ContextEmbedMode.ST
    """`soft`: the expected embedding; `hard`: the most likely bin's; `st`: hard forward, soft backward."""
    softctx_replace: SoftContextReplace = SoftContextReplace.ALL
    """`all` slots, or only those whose most likely bin is `near_gt`; the others keep the true coordinate."""
    softctx_radius: Count = 10
    """How near, in bins, for `softctx_replace: near_gt`."""
    softctx_target: SoftContextTarget = SoftContextTarget.IDENTITY
    """`identity`: slot i is to say object i's box; `retarget`: the box of the instance that the context has begun."""


class OptimSection(Section):
    """Optimizer and schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the momentum of the matrices inside the layers; everything else stays with AdamW."""
    lr: Positive = 1e-5
    """Peak learning rate of the language model (AdamW)."""
    lr_vision: Annotated[float, Field(ge=0)] | None = None
    """Peak rate of the vision tower; none: as `lr`; 0 freezes it."""
    lr_merger: Annotated[float, Field(ge=0)] | None = None
    """Peak rate of the merger between vision and language; none: as `lr`; 0 freezes it."""
    lr_coord: Annotated[float, Field(ge=0)] | None = None
    """Peak rate of the embedding and head table that holds the coordinate rows; none: as `lr`."""
    lr_muon: Positive = 0.02
    """Peak rate of the matrices under `muon`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: NonNegative = 0.01
    """Decoupled decay; not applied to biases, norms and embeddings."""
    warmup_steps: Count = 50
    """Steps of linear warm-up."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The cosine ends at this share of the peak rate."""
    clip_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""


class GenerateSection(Section):
    """How answers are written."""

    batch_size: PositiveCount = 16
    """Images answered at once."""
    max_objects: PositiveCount = 100
    """An answer is ended after this many records (finish reason `object_cap`)."""
    max_new_tokens: PositiveCount = 4096
    """An answer is ended after this many tokens (finish reason `length`)."""
    temperature: NonNegative = 0.0
    """0 is greedy; above it, seeded sampling."""
    grammar: bool = True
    """Hold answers to the format: tokens that would break it are never written. Without it the model writes what it
    likes, and records that it breaks are counted (`parse/`). The speed is the same."""
    labels: tuple[str, ...] | None = None
    """The only names that may be written; none: any name. With `grammar`."""
    ordered_boxes: bool = True
    """Hold x2 above x1 and y2 above y1. With `grammar`."""
    max_repeats: PositiveCount | None = 4
    """An answer is ended once it holds this many equal records, name and all four coordinates (finish reason
    `repetition`); none: never."""
    forced_logprobs: bool = True
    """Know the log-probabilities of tokens that the format forces, too; false: they are null, and the head's work on
    them is saved, which counts where the vocabulary is large and the model small."""


class EvalSection(Section):
    """Evaluation during training."""

    every_steps: PositiveCount | None = None
    """Steps between evaluations; none: only at the end."""
    samples: PositiveCount = 64
    """Size of the fixed subset of `data.eval`."""


class RunSection(Section):
    """Where a run is written."""

    name: str | None = None
    """Name of the run's folder; none: the config's file name."""
    dir: str = "runs"
    """Folder of all runs. An existing run is never overwritten."""


class Config(Section):
    """A whole run."""

    seed: Count = 0
    """Every random choice is a function of this and of what it is for."""
    run: RunSection = RunSection()
    """Where it is written."""
    model: ModelSection = ModelSection()
    """The model."""
    data: DataSection = DataSection()
    """The data."""
    prompt: PromptSection = PromptSection()
    """The instruction."""
    objective: ObjectiveSection = ObjectiveSection()
    """The loss."""
    stage2_ab: Stage2Section = Stage2Section()
    """The channels."""
    optim: OptimSection = OptimSection()
    """The optimizer."""
    train: TrainSection = TrainSection()
    """The loop."""
    generate: GenerateSection = GenerateSection()
    """Generation, in evaluation and prediction alike."""
    eval: EvalSection = EvalSection()
    """Evaluation during training."""
    monitor: MonitorSection = MonitorSection()
    """Dumps during training."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        check_rules(self)
        return self
