"""The settings: strict, frozen models. A field's docstring is its documentation and ends up in the JSON schema.

Everything that can be wrong with a config is found when it is loaded; downstream code takes these objects as they are.
Rules about several settings at once are in `rules.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from apiece.config.describe import check_rules

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        serialize_by_alias=True,  # a key that is a Python keyword, such as `from`, is an alias
    )


class Part(StrEnum):
    """Parts of the model that are frozen, adapted and given a learning rate on their own."""

    VISION = "vision"
    MERGER = "merger"
    LANGUAGE = "language"
    COORD = "coord"


class LoraSection(Section):
    """Low-rank adapters (extra `lora`): only the adapters and the coordinate rows are trained."""

    rank: Count = 0
    """Rank of the adapters; 0: none, and all weights of parts that are not frozen are trained."""
    alpha: Positive | None = None
    """The adapters' output is scaled by alpha / rank; none: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that is dropped during training (seeded by step and process)."""
    dora: bool = False
    """Also train the norms of the weights' columns (DoRA)."""
    targets: tuple[Part, ...] = (Part.MERGER, Part.LANGUAGE)
    """Parts whose linear layers get an adapter: `vision`, `merger`, `language`. Rates: `optim.lr_vision` and so on."""


class PanelSection(Section):
    """The samples of `data.eval` that are dumped: chosen once, the same at every step."""

    size: Count = 16
    """How many are chosen, in equal shares of images with 1-5, 6-15 and 16+ labels (and a few with none)."""
    ids: tuple[str, ...] = ()
    """Sample ids to add to those."""
    seed: Count = 0
    """Seed of the choice; not the run's seed, so that runs with other seeds show the same images."""
    from_run: Annotated[str | None, Field(alias="from")] = None
    """Folder of a run whose panel is used instead; its `data.eval` must be the same file."""


class MonitorSection(Section):
    """Dumps of a fixed panel of images during training, for `apiece report`."""

    every_steps: PositiveCount | None = None
    """Steps between dumps, with one before the first step and one at the end; none: no dumps."""
    panel: PanelSection = PanelSection()
    """Which samples are dumped."""
    pictures: bool = True
    """Draw each sample of a dump as a PNG: labels left, predictions right."""
    probes: bool = True
    """Record the model's distributions at the labels' coordinates."""
    elsewhere: Count = 16
    """Greatest number of malformed answers from the evaluation of the same step that are kept as well."""


class Parallel(StrEnum):
    """How several processes share the model."""

    DDP = "ddp"
    FSDP = "fsdp"


class TrainSection(Section):
    """The training loop."""

    steps: PositiveCount = 1000
    """Number of optimizer steps."""
    batch_size: PositiveCount = 8
    """Samples per optimizer step, over all ranks and accumulation."""
    micro_batch_size: PositiveCount | None = None
    """Samples per forward pass on one rank; none: `batch_size` divided by the number of ranks."""
    length_window: PositiveCount = 8
    """Batches are drawn from windows of this many batches sorted by length: less padding, still shuffled."""
    save_every: PositiveCount | None = None
    """Steps between checkpoints; none: only at the end and on interruption."""
    keep_last: PositiveCount = 2
    """How many of the newest checkpoints are kept."""
    keep_best: (
        Literal["coco/AP", "coco/AP50", "f1/f1", "f1/precision", "f1/recall", "f1/mean_iou", "f1/true"] | None
    ) = None
    """Also keep the checkpoint with the greatest value of this figure; none: only the newest ones."""
    sharded_checkpoints: bool = False
    """Every process writes its own part of weights and optimizer state, instead of one gathering and writing all: for
    models too large for the memory of one process. All commands read such checkpoints, on any number of processes;
    `apiece model export` makes one file of the weights."""
    grace_s: Positive = 30.0
    """Seconds between SIGTERM and the end of the process; a warning says if a step and a save take longer."""
    skip_nonfinite: Count = 0
    """How many steps may be skipped because a loss or the gradient was not finite; at the next one, or the first one
    with 0, the run saves the step before and stops."""
    log_every: PositiveCount = 10
    """Steps between lines in `metrics.jsonl`."""
    telemetry_window: Annotated[int, Field(ge=3)] = 100
    """Steps over which the running mean and variance of every term are taken."""
    trackers: tuple[Literal["tensorboard"], ...] = ()
    """Where figures go in addition to `metrics.jsonl`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU where there is one."""
    parallel: Parallel = Parallel.DDP
    """Under torchrun, `ddp`: every process holds the whole model; `fsdp`: weights, gradients and optimizer state are
    sharded. Same results, same checkpoints. Without effect on one process."""


class CoordDecodeMode(StrEnum):
    """How a slot's distribution becomes a box coordinate for the geometry losses."""

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
    """What the last pass is trained to answer."""

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
    """Training JSONL, relative to the current folder."""
    eval: str | None = None
    """JSONL evaluated during training; none: no evaluation."""
    complete: str | None = None
    """Complete annotations of the images in `data.eval` (COCO or JSONL), where they exist: adds the true F1."""
    max_objects: PositiveCount = 60
    """Images with more labels are left out of training, and counted; never out of evaluation."""
    object_order: ObjectOrder = ObjectOrder.SORTED
    """`sorted` by (y1, x1), `left_to_right` by (x1, y1), `reading` row by row and in a row by (x1, y1), or `random`,
    seeded by sample and epoch."""
    max_pixels: PositiveCount = 1_048_576
    """Images with more pixels are scaled down to this; none is enlarged, except by rounding to the patch grid."""
    flip: bool = False
    """Mirror half of the training images left to right (seeded by sample and epoch)."""
    scale_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Crop a random window that keeps at least (1 - this) of each side (seeded by sample and epoch)."""
    context_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Noise on the coordinates that the model reads as context, not on those it is trained to write: a standard
    deviation, as a share of the box's side (seeded by sample and epoch). A model trained only on exact boxes learns to
    copy them, and drifts along a row once it conditions on its own predictions."""
    shuffle: Shuffle = Shuffle.FULL
    """`full`: a new order of the whole file in each epoch; `buffer`: within blocks of `buffer_size` consecutive lines,
    so that a slow disk is read front to back; `none`: the order of the file. Every run resumes at
    the sample where it stopped."""
    buffer_size: PositiveCount = 10_000
    """Lines in a block of `shuffle: buffer`."""
    workers: Count = 1
    """Processes that load and encode images; 0 does it in the main process."""


class PromptSection(Section):
    """The instruction that goes with the image."""

    name: Literal["plain", "coco_80", "atomic", "text"] = "plain"
    """A named template, or `text` for your own."""
    text: str | None = None
    """Your own instruction; only with `name: text`."""


class TokenCEConfig(Section):
    """Weights inside `token_ce`."""

    desc_ce_weight: NonNegative = 1.0
    """Weight of the tokens of an object's name; syntax and end tokens weigh 1."""
    self_context_struct_ce_weight: NonNegative = 0.1
    """Weight of syntax and end tokens on the last of several passes, where names are left out."""


class TokenCE(Section):
    """Cross-entropy on syntax, name and end tokens, without coordinate tokens."""

    weight: NonNegative = 1.0
    """Multiplies all parts."""
    config: TokenCEConfig = TokenCEConfig()
    """Weights of its parts."""


class BBoxGeoConfig(Section):
    """Weights inside `bbox_geo`."""

    smoothl1_weight: NonNegative = 2.0
    """SmoothL1 between decoded and true box, coordinates in [0, 1], mean over the four."""
    smoothl1_beta: Positive = 1.0
    """Where SmoothL1 turns from quadratic to linear, in units of the image side."""
    ciou_weight: NonNegative = 0.2
    """1 - CIoU of the decoded box."""
    a1_smoothl1_weight: NonNegative = 0.0
    """Additional SmoothL1 on the anchor pass A1 of several passes."""
    a1_ciou_weight: NonNegative = 0.0
    """Additional 1 - CIoU on the anchor pass A1 of several passes."""


class BBoxGeo(Section):
    """Geometry of boxes decoded from the slots."""

    weight: NonNegative = 1.0
    """Multiplies all parts."""
    config: BBoxGeoConfig = BBoxGeoConfig()
    """Weights of its parts."""


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
    """Additional soft cross-entropy on the anchor pass A1 of several passes."""
    a1_w1_weight: NonNegative = 0.0
    """Additional Wasserstein-1 on the anchor pass A1 of several passes."""
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
    """Weights of its parts."""


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
    """Share of optimizer steps in Channel-B (training on the model's own answers): floor(n x b_ratio) of the first n
    steps. The others are in Channel-A."""
    b_redundancy_weight: NonNegative = 0.0
    """Penalty for predictions that are wrong no matter what is labelled (`duplicate`, `group`): -log(1 - p) of their x1
    token, with which each commits to its box, per labelled object. 0: no penalty, as for all false positives."""
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
    """Greatest distance in bins for `softctx_replace: near_gt`."""
    softctx_target: SoftContextTarget = SoftContextTarget.IDENTITY
    """`identity`: slot i is trained on object i's box; `retarget`: on that of the instance that the context began."""


class OptimSection(Section):
    """Optimizer and schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the momentum of the matrices inside the layers; all other weights use AdamW."""
    lr: Positive = 1e-5
    """Peak learning rate of the language model (AdamW)."""
    lr_vision: Annotated[float, Field(ge=0)] | None = None
    """Peak rate of the vision tower; none: `lr`; 0 freezes it."""
    lr_merger: Annotated[float, Field(ge=0)] | None = None
    """Peak rate of the merger between vision and language; none: `lr`; 0 freezes it."""
    lr_coord: Annotated[float, Field(ge=0)] | None = None
    """Peak rate of the embedding and head table that holds the coordinate rows; none: `lr`."""
    lr_muon: Positive = 0.02
    """Peak rate of the matrices under `muon`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: NonNegative = 0.01
    """Decoupled decay; not applied to biases, norms and embeddings."""
    warmup_steps: Count = 50
    """Steps of linear warm-up."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The cosine schedule ends at this share of the peak rate."""
    clip_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""


class GenerateSection(Section):
    """How answers are generated: in training, evaluation and prediction alike."""

    batch_size: PositiveCount = 16
    """Images answered at once."""
    max_objects: PositiveCount = 100
    """An answer ends after this many objects (finish reason `object_cap`)."""
    max_new_tokens: PositiveCount = 4096
    """An answer ends after this many tokens (finish reason `length`)."""
    temperature: NonNegative = 0.0
    """0 is greedy; above it, seeded sampling."""
    grammar: bool = True
    """Constrain answers to the format: tokens that would break it are never written. Without it the model writes
    freely, and malformed objects are counted (`parse/`). The speed is the same."""
    labels: tuple[str, ...] | None = None
    """The only names that may be written; none: any name. With `grammar`."""
    ordered_boxes: bool = True
    """Constrain x2 to be above x1 and y2 above y1. With `grammar`."""
    max_repeats: PositiveCount | None = 4
    """An answer ends once it holds this many identical objects, name and all four coordinates (finish reason
    `repetition`); none: never."""
    forced_logprobs: bool = True
    """Compute the log-probabilities of tokens that the format forces, too; false: they are null, which saves the head's
    work on them: worth it where the vocabulary is large and the model small."""


class ServerSection(Section):
    """How `--server` of `apiece evaluate` and `apiece predict` is asked."""

    concurrency: PositiveCount = 8
    """Greatest number of requests in flight."""
    timeout_s: Annotated[float, Field(ge=0.1)] = 300.0
    """Seconds that the server may take for one answer."""
    retries: Count = 5
    """Further attempts where the server fails or is too busy."""


class EvalSection(Section):
    """Evaluation during training."""

    every_steps: PositiveCount | None = None
    """Steps between evaluations; none: only one at the end."""
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
    """Every random choice is a function of this and of its purpose."""
    run: RunSection = RunSection()
    """Where the run is written."""
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
    """Generation."""
    eval: EvalSection = EvalSection()
    """Evaluation during training."""
    monitor: MonitorSection = MonitorSection()
    """Dumps during training."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        check_rules(self)
        return self


class AnswerSettings(Section):
    """Settings that `apiece evaluate` and `apiece predict` take as KEY=VALUE."""

    seed: Count = 0
    """Seed of sampling."""
    prompt: PromptSection = PromptSection()
    """The instruction; the checkpoint's own if nothing of it is set."""
    generate: GenerateSection = GenerateSection()
    """Generation."""
    server: ServerSection = ServerSection()
    """How a server is asked."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        check_rules(self)
        return self
