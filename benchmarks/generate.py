"""How fast are answers written, and where does the time go?

    python benchmarks/generate.py
    python benchmarks/generate.py --cases batch-8 --arms hf forced_refill --json generate.json

An untrained model never stops, and a trained one writes what it likes, so every arm is made to write the same: the true
answers of generated scenes, of 0 to 60 objects. The real head computes its logits; then the logit of the next token of
the given answer is raised above all others. Everything else runs as it always does, and every arm must return exactly
the given ids, which is checked. Arms take turns on the same images; medians over the repeats.

Arms: `hf` is `model.generate` of Hugging Face (greedy, cached), which gives ids alone; `hf_logprobs` also adds up the
vocabulary at each step, the least that log-probabilities of its tokens would take. The others are
`apiece.rollout.generate.LocalEngine`, restricted to the answer format: `token` feeds one token at a time, `forced`
feeds what the format forces, and guesses at what comes next, with the decision before them, `forced_refill` also gives
the place of an answer that has ended to the next image: what `apiece` does. `forced_only` is `forced` without guesses,
`no_forced_logprobs` is `forced_refill` without the log-probabilities of forced tokens (those of what was decided stay).
All of ours give log-probabilities with and without what the format forbids, and the mass near coordinates. So
compare `forced_refill` with `hf_logprobs`; `hf` gives less than any of ours.

Cases: `batch-1`, `batch-8`, `batch-32` run the checkpoint; `qwen-8`, `qwen-32` a narrow random model with the real
tokenizer of Qwen3, where an object costs 25 tokens and the head is 152,669 rows, on images of at most 12 objects
(`--tokenizer`; left out if it is not there).

- boxes/s, tokens/s (answer tokens, the end token included): without hooks, loading and encoding images not included.
  With `--cpu-time`, seconds are those of the process: on a machine that is busy with other work.
- forwards/object: rows that go through the language model after the prefix, over objects written. An answer's first
  decisions come with its prefix. `tokens/object` and `choices/object` are for comparison: an engine that runs every
  token needs as many forwards as an object has tokens. The tokens of a name, its end, the coordinates and "continue or
  stop" are the only choices, the rest is forced by the format: an engine that skips what is forced could do with
  `choices/object`, and one whose guesses are right with fewer.
- padding share: positions computed by the language model for padding, for answers that had ended, or for wrong guesses.
- Parts, in further runs with laps (`common.forward_laps`, `dictated.TimedModel`): `vision`, `prefix`, `answer`
  (language model after the prefix), `head`, `other` (choosing, bookkeeping, caches). `data` is loading and encoding
  the images in one process.
- Floor: FLOPs at the speed of a matrix product. For `answer` the larger of that and of reading, at the speed of a copy,
  the layers' weights once a step and each row's keys and values; for `head` likewise. `steps` in the title is how often
  the language model ran after the prefix.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apiece.config.schema import GenerateSection, Part
from apiece.data.collate import EncodedSample
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.load import TextSide, load_model, load_text_side, pick_device
from apiece.model.prompt import PROMPTS
from apiece.rollout.generate import LocalEngine
from apiece.rollout.plain import PlainModel
from apiece.types import Role, Sample
from common import (
    Floor,
    PartTimer,
    Row,
    Speed,
    checkpoint_or_fresh,
    conditions,
    counts_of,
    forward_laps,
    machine_speed,
    median,
    median_parts,
    now,
    parser,
    part_rows,
    print_conditions,
    print_rows,
    scene_samples,
    write_report,
)
from dictated import ScriptedEngine, TimedModel, hugging_face, narrow_qwen, scripted

CASES = {"batch-1": 1, "batch-8": 8, "batch-32": 32}
"""Name to images answered at once."""
QWEN_CASES = {"qwen-8": 8, "qwen-32": 32}
FEWEST_IMAGES = 8
TOKENIZER = Path(__file__).parents[2] / "shared" / "data" / "qwen3-tokenizer"

ENGINES: dict[str, dict[str, bool]] = {
    "token": {"skip": False, "guess": False, "refill": False},
    "forced_only": {"guess": False, "refill": False},
    "forced": {"refill": False},
    "forced_refill": {},
    "no_forced_logprobs": {},
}
LIBRARY = ("hf", "hf_logprobs")
ARMS = (*LIBRARY, *ENGINES)


def ours(arm: str, model: Any, side: TextSide, work: Work, timed: PlainModel | None) -> list[list[int]]:
    """Our engine on all images."""
    longest = max(map(len, work.answers))
    settings = GenerateSection(
        batch_size=work.batch_size,
        max_objects=10**6,
        max_new_tokens=longest,
        forced_logprobs=arm != "no_forced_logprobs",
        ordered_boxes=False,
    )
    engine = ScriptedEngine(model, side, settings, **ENGINES[arm], answers=work.answers, timed=timed)
    return [rollout.ids.tolist() for rollout in engine.generate(work.questions)]


@dataclass
class Passes:
    """What went through the language model."""

    positions: int = 0
    rows_behind_prefix: int = 0
    steps: int = 0
    keys_read: int = 0
    _rows: int = field(default=0, repr=False)

    def prefix(self, *_: object) -> None:
        """Hook before the vision tower: the next pass is one of the prefix."""
        self._rows = 0

    def count(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before the language model's first layer."""
        rows, length = (args[0] if args else kwargs["hidden_states"]).shape[:2]
        self.positions += rows * length
        if not self._rows:
            self._rows = rows
            return
        self.rows_behind_prefix += rows
        self.steps += 1
        mask = kwargs["attention_mask"]
        cache = kwargs["past_key_values"]
        self.keys_read += rows * (cache.get_seq_length() if mask is None else mask.shape[-1])


@dataclass(frozen=True)
class Work:
    """Images with the answers that they get, cut into batches of equal size."""

    questions: list[EncodedSample]
    answers: list[list[int]]
    objects: int
    choices: int
    batch_size: int
    data_seconds: float

    @classmethod
    def of(cls, samples: Sequence[Sample], encoder: SampleEncoder, batch_size: int) -> Work:
        """Encode samples; their answers are the truth."""
        before = time.perf_counter()
        questions = [encoder.question(sample) for sample in samples]
        seconds = time.perf_counter() - before
        # As the engine orders a batch, so that rows and answers correspond.
        truth = [encoder.training(sample, Augmentation(), 0).answer for sample in samples]
        order = sorted(range(len(samples)), key=lambda i: len(questions[i].prefix_ids))
        encoded = [a for a in (truth[i] for i in order) if a is not None]
        objects = sum(len(a.slots) // 4 for a in encoded)
        roles = [role for a in encoded for role in a.roles.tolist()]
        # Each name and coordinate token, the end of the name, and "continue or stop" before every object and last.
        choices = sum(role in (Role.DESC, Role.COORD) for role in roles) + 2 * objects + len(encoded)
        answers = [a.ids.tolist() for a in encoded]
        return cls([questions[i] for i in order], answers, objects, choices, batch_size, seconds)

    @property
    def tokens(self) -> int:
        """Answer tokens in all."""
        return sum(map(len, self.answers))

    def batches(self) -> Iterator[tuple[list[EncodedSample], list[list[int]]]]:
        """Questions and answers, a batch at a time."""
        for start in range(0, len(self.questions), self.batch_size):
            stop = start + self.batch_size
            yield self.questions[start:stop], self.answers[start:stop]


def loaded(checkpoint: str) -> tuple[TextSide, Any]:
    """A checkpoint."""
    return load_text_side(checkpoint), load_model(checkpoint)


def run_arm(arm: str, model: Any, side: TextSide, work: Work, timed: PlainModel | None = None) -> None:
    """Answer all images; the answers must come out as they were given."""
    if arm in LIBRARY:
        written, longest = [], max(map(len, work.answers))
        for questions, answers in work.batches():
            with scripted(model, answers, logprobs=arm == "hf_logprobs"):
                written += hugging_face(model, side, questions, longest)
    else:
        written = ours(arm, model, side, work, timed)
    assert written == work.answers, f"{arm} did not return the ids it was made to write"


def parts_of(arm: str, model: Any, side: TextSide, work: Work, device: torch.device) -> dict[str, float]:
    """Seconds of one run by part."""
    timer = PartTimer(device)
    # Taken before there are hooks, which would have the engine go through `model(...)`.
    timed = TimedModel(LocalEngine(model, side, GenerateSection()).text_model(), timer.lap)
    # The timer's hook on the head comes first, so raising a logit counts as `other`.
    behind = min(len(q.prefix_ids) for q in work.questions)
    with torch.no_grad(), forward_laps(timer, model, lambda length: "prefix" if length >= behind else "answer"):
        timer.start()
        run_arm(arm, model, side, work, timed)
        timer.lap("other")
    return dict(timer.seconds)


def passes_of(arm: str, model: Any, side: TextSide, work: Work) -> Passes:
    """What one run sends through the language model."""
    passes = Passes()
    first_layer = model.model.language_model.layers[0]
    handles = [
        model.model.visual.register_forward_pre_hook(passes.prefix),
        first_layer.register_forward_pre_hook(passes.count, with_kwargs=True),
    ]
    try:
        run_arm(arm, model, side, work)
    finally:
        for handle in handles:
            handle.remove()
    return passes


def floors(arm: str, model: Any, work: Work, passes: Passes, speed: Speed) -> dict[str, Floor]:
    """The least time that each part can take, with as many steps as the arm made."""
    counts = counts_of(model)
    config = model.config.text_config
    prefixes = [len(q.prefix_ids) for q in work.questions]
    answer = sum(counts.language(len(a) - 1, p) for a, p in zip(work.answers, prefixes, strict=True))
    # Keys and values of a position, the matrices of all layers, and the head's; float32.
    kept = 4 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    matrices = counts.shape.matrices
    weights, head = 4 * matrices[Part.LANGUAGE], 4 * matrices[Part.COORD]
    # The library reads the head at each step and after each prefix, we for many tokens at once.
    calls = passes.steps + -(-len(work.questions) // work.batch_size) if arm in LIBRARY else 1
    moved = {"answer": weights * passes.steps + kept * passes.keys_read, "head": head * calls}
    flops = {
        "vision": counts.vision([q.grid_thw for q in work.questions]),
        "prefix": sum(counts.language(p, 0) for p in prefixes),
        "answer": answer,
        "head": counts.head(work.tokens),
    }
    least = {name: Floor.of_flops(value, speed) for name, value in flops.items()}
    return least | {name: max(least[name], Floor.of_bytes(value, speed)) for name, value in moved.items()}


@dataclass(frozen=True)
class Measuring:
    """How to measure: where, how often, by which clock."""

    device: torch.device
    repeats: int
    speed: Speed
    cpu_time: bool
    parts: bool

    def clock(self) -> float:
        """Seconds."""
        return time.process_time() if self.cpu_time else now(self.device)


def measure(work: Work, arms: Sequence[str], model: Any, side: TextSide, how: Measuring) -> list[Row]:
    """All arms on one batch size, in turn."""
    passes = {arm: passes_of(arm, model, side, work) for arm in arms}  # warms up as well
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    parts: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(how.repeats):
        for arm in arms:
            before = how.clock()
            run_arm(arm, model, side, work)
            seconds[arm].append(how.clock() - before)
            if how.parts:
                parts[arm].append(parts_of(arm, model, side, work, how.device))
    useful = sum(len(q.prefix_ids) for q in work.questions) + work.tokens - len(work.answers)
    rows = []
    for arm in arms:
        took = median(seconds[arm])
        shares = median_parts(parts[arm]) | {"data": work.data_seconds} if how.parts else {}
        rows.append(
            {
                "arm": arm,
                "batch": work.batch_size,
                "ms_per_image": 1e3 * took / len(work.questions),
                "boxes_per_s": work.objects / took,
                "tokens_per_s": work.tokens / took,
                "forwards_per_object": passes[arm].rows_behind_prefix / work.objects,
                "tokens_per_object": work.tokens / work.objects,
                "choices_per_object": work.choices / work.objects,
                "padding_share": 1 - useful / passes[arm].positions,
                "steps": passes[arm].steps,
                "parts": part_rows(shares, floors(arm, model, work, passes[arm], how.speed)) if how.parts else [],
            }
        )
    return rows


def main() -> None:
    p = parser((__doc__ or "").strip(), [*CASES, *QWEN_CASES], list(ARMS))
    p.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of Qwen3's tokenizer")
    p.add_argument("--images", type=int, help="how many; twice the batch if not given")
    p.add_argument("--objects", type=int, help="at most, an image; 60, and 12 with Qwen's tokenizer, if not given")
    p.add_argument("--no-parts", action="store_true", help="leave out where the time goes, which takes as long again")
    p.add_argument("--cpu-time", action="store_true", help="seconds of the process, not of the clock")
    options = p.parse_args()
    cases = {"quick": 2} if options.quick else {n: (CASES | QWEN_CASES)[n] for n in options.cases}
    device = pick_device(options.device)
    repeats = 1 if options.quick else options.repeats
    how = Measuring(device, repeats, machine_speed(device), options.cpu_time, not options.no_parts)
    where = conditions(device, how.speed)
    print_conditions(where)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_or_fresh(options.checkpoint, Path(folder))
        for name, size in cases.items():
            if name in QWEN_CASES and not options.tokenizer.is_dir():
                print(f"{name}: left out, there is no tokenizer at {options.tokenizer}")
                continue
            side, model = narrow_qwen(options.tokenizer) if name in QWEN_CASES else loaded(checkpoint)
            model.to(device)
            longest = model.config.text_config.max_position_embeddings
            encoder = SampleEncoder(side, PromptTokens.of(side, PROMPTS["plain"]), longest)
            # Enough for places to be refilled.
            images = options.images or (size if options.quick else max(2 * size, FEWEST_IMAGES))
            most = options.objects or (8 if options.quick else 12 if name in QWEN_CASES else 60)
            samples = scene_samples(Path(folder) / name, images, seed=options.seed, most=most)
            work = Work.of(samples, encoder, size)
            rows = measure(work, options.arms, model, side, how)
            hidden = ("parts", "steps", "batch")
            print_rows(
                f"{name}: {images} images, {work.objects} objects",
                [{k: v for k, v in r.items() if k not in hidden} for r in rows],
            )
            for row in rows if how.parts else []:
                print_rows(f"{name}, {row['arm']}: where the time goes, {row['steps']} steps", row["parts"])
            results += [{"case": name, "images": images, "repeats": how.repeats, **row} for row in rows]
    write_report(options.json, "generate", where | {"cpu_time": options.cpu_time}, results)


if __name__ == "__main__":
    main()
