"""Memory of one GPU at the highest point of a step, in bytes.

Weights, gradients and moments are counted exactly. What layers keep for the backward pass is worked out from the
tensors that the library's modules save, in float32 or under bf16 autocast; `benchmarks/plan.py` compares the sum with
measured peaks. Several processes either hold everything each (`ddp`) or share weights, gradients and optimizer state
(`fsdp`), as `train/sharding.py` does it: a layer is whole while it runs, and what lies outside the layers for as long
as the step.

Shapes: B samples, P prefix tokens, T answer tokens, R text rows, S slots, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from apiece.codec.bins import NUM_BINS
from apiece.config.schema import Part
from apiece.planning.flops import Recipe, Work
from apiece.planning.shapes import ModelShape

WEIGHT = 4  # bytes of a weight, of its gradient and of a moment: all float32
GROWTH = 1.5  # keys and values of answers are kept in tables that grow by half when they are full
FED, LOGIT_COPIES = 4, 3
"""Tokens that a row is fed at once while answers are written, at most, and tables of their logits at that moment."""
CURVES_KEPT, CURVES_WORKING = 9, 6
"""Tables `[S, bins]` that the losses on slots keep, and those that come and go with them."""
TARGETS = 2 * NUM_BINS**2 * 4  # target distributions and their running sums, made once


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of a GPU at the highest point of a kind of step; gradients need not be complete there.

    `exchange`: buckets of gradients, gathered layers, a gathered model, working memory of the update.
    """

    weights: float
    optimizer: float
    gradients: float
    activations: float
    logits: float
    exchange: float
    highest_in: str

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits + self.exchange


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes that a GPU holds through the whole run; `learnt`: all gradients; `exchange`: DDP's buckets."""

    weights: float
    optimizer: float
    learnt: float
    exchange: float

    @classmethod
    def of(cls, shape: ModelShape, recipe: Recipe, processes: int) -> Resident:
        held, learnt = (WEIGHT * sum(n.values()) / recipe.shards for n in (recipe.held(shape), recipe.learnt(shape)))
        single = WEIGHT * recipe.muon_matrices(shape) / recipe.shards if recipe.muon else 0.0
        # DDP copies gradients into buckets of its own, which it keeps.
        return cls(held, 2 * learnt - single, learnt, learnt if processes > 1 and recipe.shards == 1 else 0.0)

    @property
    def total(self) -> float:
        """Without gradients, which come and go."""
        return self.weights + self.optimizer + self.exchange

    def at(self, where: str, gradients: float, activations: float, logits: float, exchange: float) -> Footprint:
        moved = self.exchange + exchange
        return Footprint(self.weights, self.optimizer, gradients, activations, logits, moved, where)


def training_footprint(
    shape: ModelShape, work: Work, recipe: Recipe, processes: int, *, accumulates: bool
) -> Footprint:
    """The highest point of forward pass, backward pass and update.

    In the backward pass gradients grow as what the layers keep shrinks, so the highest point lies where one of the two
    changes its pace: at the logits, or at either end of the language model or the tower.

    `work` is the heaviest micro-batch; `accumulates`: whether a step has several of them on a GPU.
    """
    rest, t, v, n = Resident.of(shape, recipe, processes), shape.text, shape.vision, work.patches
    learnt, half = recipe.learnt(shape), recipe.compute_bytes
    # Under FSDP the tables are whole, and so are their gradients: the head's comes first, the embedding's last.
    tables = float(WEIGHT * learnt[Part.COORD])
    head = tables if shape.tied else tables / 2
    language, images = (
        sum(WEIGHT * learnt[part] / recipe.shards for part in parts)
        for parts in ((Part.LANGUAGE,), (Part.VISION, Part.MERGER))
    )
    first, working = _language_layer(shape, work, recipe, later=False)
    later, later_working = _language_layer(shape, work, recipe, later=True) if recipe.later_gradients else (0.0, 0.0)
    # Keys and values wait for later passes, which hand back gradients for them.
    stored = 8.0 * work.samples * work.length * shape.key_width
    waiting = stored * (recipe.passes > 1)
    layers = first + waiting * recipe.recompute + max(recipe.later_gradients * later, waiting)
    # The norm behind the last layer: its output stays whole while rows are cut from it.
    norms = (
        4.0 * work.samples * t.hidden_size * (work.length + 2 * work.answer + 3 * recipe.later_gradients * work.again)
    )
    inputs = 4.0 * n * shape.patch_values + TARGETS
    block, in_block = _vision_block(shape, work, recipe)
    mergers = 4.0 * n * v.hidden_size * half * shape.mergers + _casts(recipe, shape.matrices[Part.MERGER])
    before = inputs + v.depth * block + mergers * recipe.image_gradients
    whole = before + t.num_hidden_layers * layers + norms
    # Embeddings, keys and values, and autocast's copies of weights go when the backward pass begins.
    held = 4.0 * work.samples * (work.prefix + work.answer) * t.hidden_size
    if recipe.recompute:
        held += t.num_hidden_layers * (stored - waiting)
        held += _casts(recipe, shape.matrices[Part.LANGUAGE]) * recipe.trained[Part.LANGUAGE]
    logits, forward, backward = _logits(shape, work, recipe)
    look_up = WEIGHT * shape.table * recipe.trained[Part.COORD] * shape.tied
    points = (
        ("vision tower", 0.0, inputs + in_block, 0.0),
        ("language model", 0.0, whole + held + working * recipe.recompute, 0.0),
        ("logits", 0.0, whole + held, logits + forward),
        ("logits", head, whole, logits + backward),
        ("language model", head, whole + max(working, later_working), 0.0),
        ("language model", head + language, before + first + working, 0.0),
        ("embedding", tables + language, before + look_up, 0.0),
        ("vision tower", tables + language + images, inputs + in_block, 0.0),
    )
    gathered = _gathered(shape, recipe)
    # A second micro-batch finds all gradients there and adds each new one to the old.
    full = rest.learnt if accumulates else 0.0
    found = [
        rest.at(where, full + min(grown, head) if full else grown, kept, read, gathered)
        for where, grown, kept, read in points
    ]
    return max(*found, _update(shape, recipe, rest), key=lambda one: one.total)


def _language_layer(shape: ModelShape, work: Work, recipe: Recipe, *, later: bool) -> tuple[float, float]:
    """Bytes that a layer keeps in a pass, and the most that its backward pass holds beyond that."""
    t, e, trained = shape.text, recipe.compute_bytes, recipe.trained[Part.LANGUAGE]
    adapted, width, inner = Part.LANGUAGE in recipe.adapted, t.hidden_size, t.intermediate_size
    queries, keys = work.again if later else work.length, work.samples * work.length
    rows, masked = work.samples * queries, (later or work.padded) and not recipe.flash
    # Two norms: input and, for the weight, what it is multiplied with, in float32. Their outputs are the inputs of
    # three and two products: one tensor in float32, a copy for each product under autocast.
    norms = 2 * 4 * width * (1 + trained)
    values = norms + (5 * 2 if recipe.half else 2 * 4) * width * (trained or adapted)
    # Adapters in bf16 keep copies of what the other two products read, and all of what they make of their inputs.
    values += adapted * (2 * recipe.half * (shape.query_width + inner) + 7 * e * recipe.rank)
    # Queries and keys: before and in their own norms (float32 inside), then rotated; and attention's output.
    values += (4 + e * trained) * (shape.query_width + shape.key_width) * (not shape.gated) + 2 * e * shape.query_width
    mlp = (3 + (trained or (adapted and not recipe.half))) * e * inner
    # With a mask, keys and values are repeated for every query head.
    attended = 2.0 * e * keys * (shape.query_width if masked else shape.key_width)
    attended += (work.samples if work.padded else 1) * queries * work.length * e * masked
    kept = rows * (values + mlp) + attended
    in_attention = rows * e * shape.query_width + attended + 8.0 * keys * shape.key_width
    working = max(rows * (2 * e * inner + 8 * width), in_attention - rows * (mlp + norms / 2 + 4 * width))
    casts = _casts(recipe, shape.matrices[Part.LANGUAGE] / t.num_hidden_layers)
    if recipe.recompute:
        return 4.0 * rows * width, kept + working + casts
    return kept + casts * (not (later and trained)), working


def _vision_block(shape: ModelShape, work: Work, recipe: Recipe) -> tuple[float, float]:
    """Bytes that a block of the tower keeps, and the most that it holds beyond that."""
    v, e, learns = shape.vision, recipe.compute_bytes, recipe.learns(Part.VISION)
    # Inputs of the norms (in float32, on a GPU), queries, keys and values, attention's output, the MLP about its bend.
    values = v.hidden_size * (2 * (4 if recipe.cuda else e) + 9 * e + 8 * shape.gated)
    values += (4 if shape.gated else 2) * v.intermediate_size * e
    kept = work.patches * float(values) + _casts(recipe, shape.matrices[Part.VISION] / v.depth)
    working = work.patches * 2.0 * (v.intermediate_size + v.hidden_size) * e * learns
    if recipe.recompute or not learns:
        return work.patches * float(v.hidden_size) * e * learns, kept + working
    return kept, working


def _logits(shape: ModelShape, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    """Bytes that logits and losses keep; that they hold beyond that at the end of the forward pass; in the backward."""
    several, trained = recipe.passes > 1, recipe.trained[Part.COORD]
    heads = [(work.text_rows, 0 if several else work.slots * recipe.gate)]
    if several:
        heads.append((work.text_rows - work.name_rows, work.slots * recipe.gate))
    table, copies = WEIGHT * shape.table * trained, 2.0 * shape.table * recipe.half
    curves, kept = 4.0 * NUM_BINS * work.slots, 0.0
    for rows, slots in heads:
        # Log-probabilities stay, logits go; the mass gate keeps its logits. A text gate keeps the text's as well.
        kept += 4.0 * shape.text.vocab_size * (rows * (1 + recipe.text_gate) + slots) + CURVES_KEPT * curves
        kept += recipe.compute_bytes * shape.text.hidden_size * (rows + slots)
        # Autocast makes one copy of a trained table; of a frozen one each use keeps its own.
        kept += 0.0 if trained else copies * (1 + (slots > 0))
    text, gated = (4.0 * shape.text.vocab_size * count for count in heads[-1])
    # In the backward pass: two gradients of all text logits at once; then those of the slots with the text's; then
    # that of the table, once for the text and once for the slots.
    behind = max(2 * text - table, 3 * gated - table, text / 2 * recipe.half - gated + table * (gated > 0), 0.0)
    return kept, text + CURVES_WORKING * curves + copies * trained, behind


def _casts(recipe: Recipe, numbers: float) -> float:
    """Copies of weights in bf16 that autocast makes; shared layers are gathered in bf16 as it is."""
    return 2.0 * numbers if recipe.half and recipe.shards == 1 else 0.0


def _update(shape: ModelShape, recipe: Recipe, rest: Resident) -> Footprint:
    """The optimizer's step: on a GPU it takes the root of all second moments at once, elsewhere one by one."""
    if recipe.cuda:
        working = rest.learnt - (WEIGHT * recipe.muon_matrices(shape) / recipe.shards if recipe.muon else 0.0)
    else:
        layer = shape.matrices[Part.LANGUAGE] // shape.text.num_hidden_layers
        working = 2.0 * WEIGHT * (shape.table if recipe.trained[Part.COORD] else layer // 8)
    return rest.at("update", rest.learnt, 0.0, 0.0, working)


def _gathered(shape: ModelShape, recipe: Recipe) -> float:
    """What is whole beyond this GPU's share, under FSDP: two layers (one runs, the next is fetched) and the rest."""
    if recipe.shards == 1:
        return 0.0
    e, language = recipe.compute_bytes, shape.matrices[Part.LANGUAGE]
    layer = language // shape.text.num_hidden_layers
    outside = sum(shape.parameters.values()) - language - shape.matrices[Part.VISION]
    # Gradients of a layer: whole as computed, then in float32 on their way to the others.
    on_the_way = layer * (e + WEIGHT) if recipe.trained[Part.LANGUAGE] else 0
    return 2.0 * layer * e + on_the_way + WEIGHT * outside


def rollout_footprint(
    shape: ModelShape, work: Work, recipe: Recipe, processes: int, rows: int, new_tokens: int
) -> Footprint:
    """While Channel-B's answers are written: float32, no gradients; a shared model is gathered whole on every GPU.

    `rows` answers are written at once, up to `new_tokens` long, behind the longest prefix of the heaviest micro-batch.
    """
    rest, t, v = Resident.of(shape, recipe, processes), shape.text, shape.vision
    copy = WEIGHT * float(sum(shape.parameters.values())) if recipe.shards > 1 else 0.0
    columns = GROWTH * (work.prefix + new_tokens)
    kept = 2.0 * 4 * rows * columns * shape.key_width * t.num_hidden_layers
    # Images and prompts are read one block or layer at a time.
    patches = rows * max(frames * high * wide for frames, high, wide in work.grids)
    tower = 4.0 * patches * (shape.patch_values + 6 * v.hidden_size + 2 * v.intermediate_size)
    layer = 4.0 * rows * work.prefix * (4 * t.hidden_size + 3 * shape.query_width + 2 * t.intermediate_size)
    logits = LOGIT_COPIES * 4.0 * rows * FED * t.vocab_size
    return rest.at("rollout", 0.0, kept + max(tower, layer), logits, copy)
