"""How fast are answers written, and where does the time go?

    python benchmarks/generate.py
    python benchmarks/generate.py --cases batch-8 --arms ours --json generate.json

An untrained model never stops, and a trained one writes what it likes, so every arm is made to write the same: the true
answers of generated scenes. The real head computes its logits; then the logit of the next token of the given answer is
raised above all others (`Script`). Everything else runs as it always does, and every arm must return exactly the given
ids, which is checked. Arms take turns on the same images; medians over the repeats.

Arms: `hf` is `model.generate` of Hugging Face (greedy, cached), `ours` is `apiece.rollout.generate.LocalEngine`, token
by token. Only ours also gives log-probabilities.

- boxes/s, tokens/s (answer tokens, the end token included): without hooks, loading and encoding images not included.
- forwards/object: rows that go through the language model behind the prefix, over objects written. `tokens/object` and
  `choices/object` stand beside it: an engine that runs every token needs as many forwards as an object has tokens;
  names, coordinates and "go on or stop" are the only choices, the rest is forced by the format, so an engine that skips
  what is forced could do with `choices/object`.
- padding share: positions computed by the language model for padding, or for answers that had ended.
- Parts, in further runs with hooks (`common.forward_laps`): `vision`, `prefix`, `answer` (language model, a token at a
  time), `head`, `other` (choosing, bookkeeping, caches). `data` is loading and encoding the images in one process.
- Floor: FLOPs at the speed of a matrix product. For `answer` the larger of that and of reading, at the speed of a copy,
  the layers' weights once a step and each row's keys and values; for `head` likewise. `steps` in the title is how often
  the language model ran behind the prefix.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apiece.config.schema import GenerateSection
from apiece.data.collate import EncodedSample, collate_prefix
from apiece.model.device import pick_device
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.load import TextSide, load_model, load_text_side
from apiece.model.prompts import PROMPTS
from apiece.rollout.generate import LocalEngine
from apiece.types import Role, Sample
from common import (
    Counts,
    Floor,
    PartTimer,
    Row,
    Speed,
    checkpoint_or_fresh,
    conditions,
    forward_laps,
    linear_weights,
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

CASES = {"batch-1": 1, "batch-8": 8, "batch-32": 32}
"""Name to images answered at once."""
FEWEST_IMAGES = 8

Arm = Callable[[Any, TextSide, Sequence[EncodedSample], int], list[list[int]]]


def ours(model: Any, side: TextSide, questions: Sequence[EncodedSample], longest: int) -> list[list[int]]:
    """Our engine, token by token."""
    settings = GenerateSection(batch_size=len(questions), max_objects=10**6, max_new_tokens=longest)
    return [rollout.ids.tolist() for rollout in LocalEngine(model, side, settings).generate(questions)]


def hugging_face(model: Any, side: TextSide, questions: Sequence[EncodedSample], longest: int) -> list[list[int]]:
    """`model.generate`."""
    device = next(model.parameters()).device
    pad, end = side.tokenizer.pad_token_id, side.tokenizer.eos_token_id
    prefix = collate_prefix(questions, pad, side.image_token_id).to(device)
    out = model.generate(
        input_ids=prefix.ids,
        attention_mask=prefix.mask.long(),
        pixel_values=prefix.pixel_values,
        image_grid_thw=prefix.grid_thw,
        mm_token_type_ids=prefix.image_mask.int(),
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=pad,
    )
    answers = out[:, prefix.ids.shape[1] :].tolist()
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in answers]


ARMS: dict[str, Arm] = {"hf": hugging_face, "ours": ours}


@dataclass
class Script:
    """Makes a model write given answers, by raising one logit of each row.

    Rows may leave the batch when their answer ends, or stay in it (Hugging Face pads them): both are recognised by the
    number of rows, and the ids that come out are compared with the answers in the end.
    """

    answers: Sequence[Sequence[int]]
    step: int = 0

    def write(self, _: nn.Module, __: object, logits: Tensor) -> None:
        """Forward hook of the head."""
        last_BV = logits if logits.ndim == 2 else logits[:, -1]
        going = [ids for ids in self.answers if len(ids) > self.step]
        rows = going if len(last_BV) == len(going) else list(self.answers)
        assert len(last_BV) == len(rows), f"expected logits of {len(going)} or {len(rows)} rows, got {len(last_BV)}"
        tokens = torch.tensor([ids[min(self.step, len(ids) - 1)] for ids in rows], device=logits.device)
        last_BV[torch.arange(len(rows), device=logits.device), tokens] += 1e4
        self.step += 1


@contextmanager
def scripted(model: Any, answers: Sequence[Sequence[int]]) -> Iterator[None]:
    """The model writes `answers`, one row each, while the block runs."""
    handle = model.lm_head.register_forward_hook(Script(answers).write)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class Passes:
    """What went through the language model."""

    positions: int = 0
    rows_behind_prefix: int = 0
    steps: int = 0
    keys_read: int = 0
    _length: int = field(default=0, repr=False)

    def count(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before the language model's first layer."""
        rows, length = (args[0] if args else kwargs["hidden_states"]).shape[:2]
        self.positions += rows * length
        if length > 1:
            self._length = length
        else:
            self._length += 1
            self.rows_behind_prefix += rows
            self.steps += 1
            self.keys_read += rows * self._length


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
        # Each name and coordinate token, and "go on or stop" before every object and at the end.
        choices = sum(role in (Role.DESC, Role.COORD) for role in roles) + objects + len(encoded)
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


def run_arm(arm: str, model: Any, side: TextSide, work: Work) -> None:
    """Answer all images; the answers must come out as they were given."""
    longest = max(map(len, work.answers))
    for questions, answers in work.batches():
        with scripted(model, answers):
            written = ARMS[arm](model, side, questions, longest)
        assert written == answers, f"{arm} did not return the ids it was made to write"


def parts_of(arm: str, model: Any, side: TextSide, work: Work, device: torch.device) -> dict[str, float]:
    """Seconds of one run by part."""
    timer = PartTimer(device)
    # The timer's hook on the head comes first, so raising a logit counts as `other`.
    with torch.no_grad(), forward_laps(timer, model, lambda length: "prefix" if length > 1 else "answer"):
        timer.start()
        run_arm(arm, model, side, work)
        timer.lap("other")
    return dict(timer.seconds)


def passes_of(arm: str, model: Any, side: TextSide, work: Work) -> Passes:
    """What one run sends through the language model."""
    passes = Passes()
    first_layer = model.model.language_model.layers[0]
    handle = first_layer.register_forward_pre_hook(passes.count, with_kwargs=True)
    try:
        run_arm(arm, model, side, work)
    finally:
        handle.remove()
    return passes


def floors(model: Any, work: Work, passes: Passes, speed: Speed) -> dict[str, Floor]:
    """The least time that each part can take, with as many steps as the arm made."""
    counts = Counts(model)
    language = model.model.language_model
    config = language.config
    prefixes = [len(q.prefix_ids) for q in work.questions]
    answer = sum(counts.language(len(a) - 1, p) for a, p in zip(work.answers, prefixes, strict=True))
    # Keys and values of a position, the matrices of all layers, and the head's; float32.
    kept = 4 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    weights, head = 4 * linear_weights(language.layers), 4 * model.lm_head.weight.numel()
    calls = passes.steps + -(-len(work.questions) // work.batch_size)
    moved = {"answer": weights * passes.steps + kept * passes.keys_read, "head": head * calls}
    flops = {
        "vision": counts.vision([q.grid_thw for q in work.questions]),
        "prefix": sum(counts.language(p, 0) for p in prefixes),
        "answer": answer,
        "head": counts.head(work.tokens),
    }
    least = {name: Floor.of_flops(value, speed) for name, value in flops.items()}
    return least | {name: max(least[name], Floor.of_bytes(value, speed)) for name, value in moved.items()}


def measure(
    work: Work, arms: Sequence[str], model: Any, side: TextSide, device: torch.device, repeats: int, speed: Speed
) -> list[Row]:
    """All arms on one batch size, in turn."""
    passes = {arm: passes_of(arm, model, side, work) for arm in arms}  # warms up as well
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    parts: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm in arms:
            before = now(device)
            run_arm(arm, model, side, work)
            seconds[arm].append(now(device) - before)
            parts[arm].append(parts_of(arm, model, side, work, device))
    useful = sum(len(q.prefix_ids) for q in work.questions) + work.tokens - len(work.answers)
    rows = []
    for arm in arms:
        took, shares = median(seconds[arm]), median_parts(parts[arm]) | {"data": work.data_seconds}
        rows.append(
            {
                "arm": arm,
                "ms_per_image": 1e3 * took / len(work.questions),
                "boxes_per_s": work.objects / took,
                "tokens_per_s": work.tokens / took,
                "forwards_per_object": passes[arm].rows_behind_prefix / work.objects,
                "tokens_per_object": work.tokens / work.objects,
                "choices_per_object": work.choices / work.objects,
                "padding_share": 1 - useful / passes[arm].positions,
                "steps": passes[arm].steps,
                "parts": part_rows(shares, floors(model, work, passes[arm], speed)),
            }
        )
    return rows


def main() -> None:
    p = parser((__doc__ or "").strip(), list(CASES), list(ARMS))
    options = p.parse_args()
    cases = {"quick": 2} if options.quick else {name: CASES[name] for name in options.cases}
    repeats = 1 if options.quick else options.repeats
    device = pick_device(options.device)
    speed = machine_speed(device)
    where = conditions(device, speed)
    print_conditions(where)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_or_fresh(options.checkpoint, Path(folder))
        side, model = load_text_side(checkpoint), load_model(checkpoint).to(device)
        encoder = SampleEncoder(
            side, PromptTokens.of(side, PROMPTS["plain"]), model.config.text_config.max_position_embeddings
        )
        for name, size in cases.items():
            images = size if options.quick else max(size, FEWEST_IMAGES)
            samples = scene_samples(Path(folder) / name, images, seed=options.seed, most=8 if options.quick else 60)
            work = Work.of(samples, encoder, size)
            rows = measure(work, options.arms, model, side, device, repeats, speed)
            hidden = ("parts", "steps")
            print_rows(
                f"{name}: {images} images, {work.objects} objects",
                [{k: v for k, v in r.items() if k not in hidden} for r in rows],
            )
            for row in rows:
                print_rows(f"{name}, {row['arm']}: where the time goes, {row['steps']} steps", row["parts"])
            results += [{"case": name, "images": images, "repeats": repeats, **row} for row in rows]
    write_report(options.json, "generate", where, results)


if __name__ == "__main__":
    main()
