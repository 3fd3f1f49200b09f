"""Memory of one micro-batch of training, as it rises and falls: what each part keeps for its backward pass.

What is kept is counted tensor by tensor, as the library's modules save them (the comments say which); the forward pass
then adds part after part, and the backward pass gives them back in reverse while gradients build up. The peak is the
highest point on that way, so it may lie at the logits, in the last layer, or where the gradients are complete.
`benchmarks/plan.py` holds it against measured peaks.

Sizes are in bytes. Shapes: B samples, P prefix tokens, T answer tokens, R text rows, S slots, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apiece.codec.bins import NUM_BINS
from apiece.config.schema import Part
from apiece.planning.flops import Recipe, Work
from apiece.planning.shapes import ModelShape

# Memory of one GPU in a run: what is always there, and the highest point of each kind of step.
#
# Sizes are in bytes. Several processes either hold everything each (`ddp`) or share weights, gradients and optimizer
# state (`fsdp`), as `train/sharding.py` does it: a layer is whole while it runs, and what lies outside the layers for
# as long as the step.


GROWTH = 1.5
"""Keys and values of answers are kept in tables that grow by half when they are full."""
FED, LOGIT_COPIES = 4, 3
"""Tokens that a row is fed at once while answers are written, at most, and tables of their logits at that moment."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The highest point of a kind of step.

    Attributes:
        weights: All of them, or this GPU's share.
        optimizer: Moments.
        gradients: At that point.
        activations: Layers' tensors, inputs, keys and values of answers.
        logits: Logits and what losses make of them.
        exchange: Buckets of gradients, gathered layers, a gathered model, working memory of the update.
        where: Which part of the step it is.
    """

    weights: float
    optimizer: float
    gradients: float
    activations: float
    logits: float
    exchange: float
    where: str

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits + self.exchange

    def parts(self) -> dict[str, float]:
        """By name."""
        names = ("weights", "optimizer", "gradients", "activations", "logits", "exchange")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Resident:
    """What a GPU holds through the whole run.

    Attributes:
        weights: Bytes.
        optimizer: Bytes.
        learnt: Bytes of all gradients at rest.
        exchange: Bytes of DDP's buckets.
        share: Which part of what is shared is this GPU's.
    """

    weights: float
    optimizer: float
    learnt: float
    exchange: float
    share: float

    @classmethod
    def of(cls, shape: ModelShape, recipe: Recipe, processes: int) -> Resident:
        """Of a model and a recipe on one of several processes."""
        share = 1 / processes if recipe.shared else 1.0
        parameters, learnt = sum(recipe.held(shape).values()), sum(recipe.learnt(shape).values())
        moments = 2 * learnt - (recipe.muon_matrices(shape) if recipe.muon else 0)
        return cls(
            weights=WEIGHT * parameters * share,
            optimizer=WEIGHT * moments * share,
            learnt=WEIGHT * learnt * share,
            # DDP copies gradients into buckets of its own, which it keeps.
            exchange=WEIGHT * learnt if processes > 1 and not recipe.shared else 0.0,
            share=share,
        )

    def with_peak(self, peak: Peak, exchange: float, where: str) -> Footprint:
        """The footprint at a peak."""
        return Footprint(
            self.weights, self.optimizer, peak.gradients, peak.activations, peak.logits, self.exchange + exchange, where
        )


def training_footprint(
    shape: ModelShape, work: Work, recipe: Recipe, processes: int, *, accumulates: bool
) -> Footprint:
    """The highest point of forward and backward pass and of the update.

    Args:
        shape: Of the model.
        work: The heaviest micro-batch.
        recipe: What is done with it.
        processes: GPUs, one process each.
        accumulates: Whether a step has several micro-batches on a GPU.
    """
    rest = Resident.of(shape, recipe, processes)
    peak = peak_of(timeline(shape, work, recipe), gradients=rest.learnt if accumulates else 0.0)
    passes = rest.with_peak(peak, _gathered(shape, recipe), peak.where)
    return max(passes, _update(shape, recipe, rest), key=lambda one: one.total)


def _update(shape: ModelShape, recipe: Recipe, rest: Resident) -> Footprint:
    """The optimizer's step: on a GPU it takes the root of all second moments at once, elsewhere one by one."""
    if recipe.cuda:
        working = rest.learnt - (WEIGHT * recipe.muon_matrices(shape) * rest.share if recipe.muon else 0.0)
    else:
        table = shape.language.table if recipe.trained[Part.COORD] else shape.language.layer_matrices // 8
        working = 2.0 * WEIGHT * table
    return rest.with_peak(Peak(0.0, 0.0, rest.learnt, "update"), working, "update")


def _gathered(shape: ModelShape, recipe: Recipe) -> float:
    """What is whole beyond this GPU's share, under FSDP: two layers (one runs, the next is fetched) and the rest."""
    if not recipe.shared:
        return 0.0
    e, t, parts = recipe.compute_bytes, shape.language, shape.parameters()
    layer = t.layer_matrices
    inside = t.layers * layer + shape.vision.depth * shape.vision.block_matrices
    outside = sum(parts.values()) - inside
    # Gradients of a layer: whole as computed, then in float32 on their way to the others.
    on_the_way = layer * (e + WEIGHT) if recipe.trained[Part.LANGUAGE] else 0
    return 2.0 * layer * e + on_the_way + WEIGHT * outside


def rollout_footprint(
    shape: ModelShape, work: Work, recipe: Recipe, processes: int, rows: int, new_tokens: int
) -> Footprint:
    """While Channel-B's answers are written: float32, no gradients; a shared model is gathered whole on every GPU.

    Args:
        shape: Of the model.
        work: The heaviest micro-batch; its longest prefix is taken for every row.
        recipe: Of the run.
        processes: GPUs.
        rows: Answers written at once.
        new_tokens: Of the longest answer.
    """
    rest, t = Resident.of(shape, recipe, processes), shape.language
    copy = WEIGHT * float(sum(shape.parameters().values())) if recipe.shared else 0.0
    columns = GROWTH * (work.prefix + new_tokens)
    kept = 2.0 * 4 * rows * columns * t.key_width * t.layers
    reading = _reading(shape, work, recipe, rows)
    logits = LOGIT_COPIES * 4.0 * rows * FED * t.vocabulary
    peak = Peak(kept + reading, logits, 0.0, "rollout")
    return rest.with_peak(peak, copy, "rollout")


def _reading(shape: ModelShape, work: Work, recipe: Recipe, rows: int) -> float:
    """Working memory of reading images and prompts of `rows` answers at once: one block or layer at a time."""
    v, t = shape.vision, shape.language
    patches = rows * max(t_ * h * w for t_, h, w in work.grids)
    tower = 4.0 * patches * (v.patch_values + 6 * v.width + 2 * v.inner)
    layer = 4.0 * rows * work.prefix * (4 * t.width + 3 * t.query_width + 2 * t.inner)
    return max(tower, layer)


WEIGHT = 4
"""Bytes of a weight, of its gradient and of a moment: all float32."""
CURVES_KEPT, CURVES_WORKING = 9, 6
"""Tables `[S, bins]` that the losses on slots keep, and those that come and go beside them."""
TARGETS = 2 * NUM_BINS**2 * 4
"""Target distributions and their running sums, made once."""


@dataclass(frozen=True, slots=True)
class Node:
    """A part of the forward pass, in order.

    Attributes:
        name: What it is.
        kept: Held from its forward to its backward pass.
        forward: Beyond that, while it runs.
        backward: Beyond what is kept and its gradient, while its backward pass runs.
        gradient: Of weights, there from its backward pass on.
        until_turn: Held to the end of the forward pass alone.
        leaves: Gradients that wait from its backward pass on until another part `takes` them.
        takes: Waiting gradients that its backward pass frees.
        logits: Whether what it keeps are logits.
    """

    name: str
    kept: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    gradient: float = 0.0
    until_turn: float = 0.0
    leaves: float = 0.0
    takes: float = 0.0
    logits: bool = False


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest point of a micro-batch, beyond weights and optimizer state.

    Attributes:
        activations: What layers keep, inputs and working memory.
        logits: Logits and what the losses make of them.
        gradients: Of weights, at that point.
        where: The part that runs then.
    """

    activations: float
    logits: float
    gradients: float
    where: str

    @property
    def total(self) -> float:
        """Bytes."""
        return self.activations + self.logits + self.gradients


def peak_of(nodes: Sequence[Node], *, gradients: float = 0.0) -> Peak:
    """Walk through the parts forwards and backwards.

    Args:
        nodes: In the order of the forward pass.
        gradients: There already, from a micro-batch before: each new one is added to the old and freed.
    """
    kept = {True: 0.0, False: 0.0}
    held = waiting = 0.0
    best = Peak(0.0, 0.0, gradients, "")

    def look(node: Node, working: float, learnt: float) -> None:
        nonlocal best
        extra = {node.logits: working}
        now = Peak(
            kept[False] + held + waiting + extra.get(False, 0.0),
            kept[True] + extra.get(True, 0.0),
            learnt,
            node.name,
        )
        best = max(best, now, key=lambda peak: peak.total)

    for node in nodes:
        kept[node.logits] += node.kept
        held += node.until_turn
        look(node, node.forward, gradients)
    held, built, full = 0.0, 0.0, gradients > 0
    for node in reversed(nodes):
        waiting += node.leaves
        look(node, node.backward, gradients + (node.gradient if full else built + node.gradient))
        built += node.gradient
        waiting -= node.takes
        kept[node.logits] -= node.kept
    return best


def timeline(shape: ModelShape, work: Work, recipe: Recipe) -> list[Node]:
    """The parts of one micro-batch, in the order of the forward pass."""
    t, size = shape.language, work.samples
    nodes = [
        Node("inputs", kept=4.0 * work.patches * shape.vision.patch_values + TARGETS),
        *_vision(shape, work, recipe),
    ]
    # The embeddings of prompt and answer are looked up once and wait for later passes until the turn.
    embedded = 4.0 * size * (work.prefix + work.answer) * t.width
    own = recipe.trained[Part.COORD]
    nodes.append(
        Node(
            "embedding",
            until_turn=embedded,
            forward=embedded,
            # The gradient of a look-up is as large as the table; that of a tied head is there already.
            backward=(0.0 if not own else WEIGHT * t.table * t.tied) + 4.0 * size * work.length * t.width,
            gradient=0.0 if t.tied or not own else WEIGHT * t.table,
        )
    )
    nodes += _layers(shape, work, recipe, "layer", later=False)
    nodes.append(_norm(shape, work, work.answer, "norm"))
    several = recipe.passes > 1
    nodes.append(_head(shape, work, recipe, work.text_rows, full_slots=recipe.gate and not several, first=not several))
    for number in range(2, recipe.passes + 1):
        last = number == recipe.passes
        if not last and not recipe.unroll:
            continue  # runs without gradients: less than the last pass, and gone before it
        nodes += _layers(shape, work, recipe, f"layer of pass {number}", later=True, last=last)
        nodes.append(_norm(shape, work, work.again, f"norm of pass {number}"))
    if several:
        nodes.append(_head(shape, work, recipe, work.text_rows - work.name_rows, full_slots=recipe.gate, first=True))
    return nodes


def _vision(shape: ModelShape, work: Work, recipe: Recipe) -> list[Node]:
    """The tower and its mergers."""
    v, n, e = shape.vision, work.patches, recipe.compute_bytes
    tower, sides = recipe.learns(Part.VISION), shape.linear_sides()
    norm_in = 4 if recipe.half and recipe.cuda else e  # autocast on a GPU hands norms a float32 copy
    # Two norms' inputs and outputs; rotated queries and keys; queries, keys and values in one piece, of which the
    # values are a part; attention's output, and again where images are joined; the MLP before and after its bend.
    # A gate adds two tensors to the MLP; norms without a bias keep in float32 what their weight is multiplied with.
    inner = (4 if v.gated else 2) * v.inner * e
    normed = 2 * 4 * v.width * v.gated
    block = n * (v.width * (2 * norm_in + (2 + 2 + 3 + 2) * e) + inner + normed + 4.0 * (4 + v.heads))
    casts = _casts(recipe, v.block_matrices)
    working = n * (2 * v.inner + 2 * v.width) * e
    gradient = _gradient(recipe, Part.VISION, v.block_matrices + v.block_vectors, sides[Part.VISION] / v.depth)
    places = WEIGHT * float(v.patch_numbers)
    patches = Node(
        "patches",
        kept=n * (4.0 * 12 + (2.0 * v.patch_values if recipe.half else 0.0)) if tower else 0.0,
        forward=4.0 * 5 * n * v.width * (v.places > 0),  # four neighbours in the table of places, and their mean
        gradient=places if recipe.trained[Part.VISION] else 0.0,
    )
    if not tower:
        blocks = [Node("vision", forward=block + casts)]
    elif recipe.recompute:
        backward = block + casts + working
        until = casts * recipe.trained[Part.VISION]
        blocks = [Node("vision", n * v.width * e, casts, backward, gradient, until_turn=until)] * v.depth
    else:
        blocks = [Node("vision", block + casts, working / 2, working, gradient)] * v.depth
    tokens = n / v.merge**2
    kept = tokens * v.merged * 3 * e
    if not recipe.image_gradients:
        return [patches, *blocks, Node("merger", forward=kept)]
    held = kept + tokens * v.merged * norm_in + _casts(recipe, v.merger_matrices)
    numbers = v.merger_matrices + 3 * v.merged + v.out
    learnt = _gradient(recipe, Part.MERGER, numbers, sides[Part.MERGER] / v.mergers)
    merger = Node("merger", held, tokens * v.out * 4, 2 * tokens * v.merged * e, learnt)
    return [patches, *blocks, *[merger] * v.mergers]


def _casts(recipe: Recipe, numbers: float) -> float:
    """Copies of weights in bf16 that autocast makes; shared layers are gathered in bf16 as it is."""
    return 2.0 * numbers if recipe.half and not recipe.shared else 0.0


def _gradient(recipe: Recipe, part: Part, numbers: float, sides: float) -> float:
    """Gradients of one layer of a part: of its weights, or of the adapters beside them.

    Args:
        recipe: Says which.
        part: It is of.
        numbers: Its parameters.
        sides: Inputs and outputs of its linear layers, added up.
    """
    learnt = numbers if recipe.trained[part] else recipe.rank * sides if part in recipe.adapted else 0.0
    return WEIGHT * learnt / recipe.shards


def _layers(shape: ModelShape, work: Work, recipe: Recipe, name: str, *, later: bool, last: bool = True) -> list[Node]:
    """The language model's layers in one pass."""
    t, trained = shape.language, recipe.trained[Part.LANGUAGE]
    queries, keys = (work.again if later else work.length), work.length
    rows = work.samples * queries
    masked = (later or work.padded) and not recipe.flash
    kept, working = _layer_bytes(shape, work, recipe, queries, keys, masked)
    # Copies of trained weights are made once for all passes, those of frozen ones in each.
    casts = 0.0 if later and trained else _casts(recipe, t.layer_matrices)
    numbers, sides = t.layer_numbers, shape.linear_sides()[Part.LANGUAGE]
    gradient = 0.0 if later else _gradient(recipe, Part.LANGUAGE, numbers, sides / t.layers)
    # A later pass hands gradients to the keys and values before it; they wait for the first pass.
    handed = 2.0 * 4 * work.samples * keys * t.key_width
    leaves, takes = handed * (later and last), handed * (recipe.passes > 1 and not later)
    stored = 2.0 * 4 * rows * t.key_width  # keys and values that wait for later passes, where nothing else keeps them
    if recipe.recompute:
        waits = recipe.passes > 1 and not later
        backward = kept + working + _casts(recipe, t.layer_matrices)
        # Autocast keeps its copies of trained weights until the turn; those of frozen ones go with the layer.
        until = casts * trained + (0.0 if waits or later else stored)
        node = Node(name, 4.0 * rows * t.width + stored * waits, kept + casts, backward, gradient, until, leaves, takes)
    else:
        until = stored / 2 if recipe.half and not later else 0.0  # rotated keys in float32; values are kept anyway
        node = Node(name, kept + casts, 2.0 * 4 * rows * t.width, working, gradient, until, leaves, takes)
    return [node] * t.layers


def _layer_bytes(
    shape: ModelShape, work: Work, recipe: Recipe, queries: int, keys: int, masked: bool
) -> tuple[float, float]:
    """What a layer keeps, and the most that its backward pass holds beyond that."""
    t, e, trained = shape.language, recipe.compute_bytes, recipe.trained[Part.LANGUAGE]
    adapted = Part.LANGUAGE in recipe.adapted
    rows, all_keys = work.samples * queries, work.samples * keys
    # Two norms: input and, for the weight, what it is multiplied with, in float32. Their outputs are the inputs of
    # three and two products: one tensor in float32, a copy for each product under autocast.
    norms = 2 * 4 * t.width * (1 + trained)
    inputs = (5 * 2 if recipe.half else 2 * 4) * t.width * (trained or adapted)
    # Adapters in bf16 keep copies of what the other two products read, and all of what they make of their inputs.
    inputs += adapted * (2 * recipe.half * (t.query_width + t.inner) + 7 * e * recipe.rank)
    # Queries and keys: before and in their own norms (float32 inside), then rotated; and attention's output.
    own = (4 + e * trained) * (t.query_width + t.key_width) * t.normed + 2 * e * t.query_width
    mlp = (3 + (trained or (adapted and not recipe.half))) * e * t.inner
    statistics = 4 * (2 + 2 * t.heads + t.kv_heads)
    wide = t.query_width if masked else t.key_width  # with a mask, keys and values are repeated for every query head
    attended = 2.0 * e * all_keys * wide
    pairs = (work.samples if work.padded else 1) * queries * keys * e if masked else 0.0
    kept = rows * (norms + inputs + own + mlp + statistics) + attended + pairs
    in_mlp = rows * (2 * e * t.inner + 2 * 4 * t.width)
    freed = rows * (mlp + norms / 2 + 4 * t.width)
    in_attention = rows * e * t.query_width + attended + 2.0 * 4 * all_keys * t.key_width + pairs - freed
    return kept, max(in_mlp, in_attention)


def _norm(shape: ModelShape, work: Work, rows: int, name: str) -> Node:
    """The norm behind the last layer; the rows are cut from its output, which stays whole."""
    width = shape.language.width
    whole = work.length if name == "norm" else rows
    return Node(name, kept=4.0 * work.samples * width * (whole + 2 * rows))


def _head(shape: ModelShape, work: Work, recipe: Recipe, rows: int, *, full_slots: bool, first: bool) -> Node:
    """Logits and losses of one pass.

    Args:
        shape: Of the model.
        work: The micro-batch.
        recipe: What is done with it.
        rows: Text rows, R.
        full_slots: Whether slots have logits of the whole vocabulary.
        first: Whether this is the head whose backward pass comes first: the table's gradient is there from then on.
    """
    t, vocabulary, trained = shape.language, shape.language.vocabulary, recipe.trained[Part.COORD]
    slots = work.slots if full_slots else 0
    text, gated = 4.0 * vocabulary * rows, 4.0 * vocabulary * slots
    curves = 4.0 * NUM_BINS * work.slots
    hidden = recipe.compute_bytes * t.width * (rows + slots)
    table = float(WEIGHT * t.table) if trained else 0.0
    gradient = table if first else 0.0
    if first and recipe.rows:
        gradient = float(WEIGHT * shape.coordinate_rows())
    # A copy of a trained table is made once and freed with autocast's others; of a frozen one each use keeps its own.
    copies = 2.0 * t.table * recipe.half
    own = 0.0 if trained else copies * (1 + (slots > 0))
    # Log-probabilities stay, logits go; the mass gate keeps its logits. A text gate keeps the text's as well.
    kept = text * (1 + recipe.text_gate) + gated + CURVES_KEPT * curves + hidden + own
    # In the backward pass: two gradients of all text logits at once; then those of the slots beside the text's; then
    # that of the table, once for the text and once for the slots, beside the text's.
    half_text = text / 2 if recipe.half else 0.0
    both = max(2 * text - gradient, 3 * gated - gradient, half_text - gated + table * (slots > 0 or not first))
    return Node(
        "logits",
        kept=kept,
        forward=text + CURVES_WORKING * curves,
        backward=max(both, 0.0),
        gradient=gradient,
        until_turn=copies if trained and first else 0.0,
        logits=True,
    )
