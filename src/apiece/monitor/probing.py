"""Runs a model for its probes: beliefs at the labels' own slots, and at the boxes that it wrote itself.

Only forward passes, without gradients, in bounded batches; the passes are Channel-A's own (`apiece.channels`).

Shapes: B samples, T answer tokens, N objects, P predictions, S slots, K bins, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apiece.channels.a_soft_context import context_inputs, self_context
from apiece.channels.answer import CoordRows, slot_logits
from apiece.config.schema import Config, ContextEmbedMode, ObjectOrder, SoftContextGrad, Stage2Section
from apiece.data.collate import Batch, EncodedSample, collate
from apiece.evaluate.answers import Answer
from apiece.losses.compose import at_least_float32
from apiece.model.encode import Augmentation, SampleEncoder, TooLongError, written_objects
from apiece.model.prefix import FirstPass, first_pass, later_pass, window_pass
from apiece.probes.labels import NONE, LabelProbes, follow, neighbours, probe_labels
from apiece.probes.slots import reach
from apiece.types import Encoded, IntArray, Role, Sample, Slots

T = TypeVar("T")
TOKENS_AT_ONCE = 16_384
"""Most tokens of one batch, padding included; a single sample may be longer."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What the figures depend on.

    Attributes:
        passes: At least 2, so that there is a context of beliefs.
        embed_mode: How a belief becomes an input.
        temperature: Divides the logits before they become an input; the figures themselves are at temperature 1.
        sigma: Width of the training target, bins.
        order: In which labels are written.
        seed: For a random order.
        batch_size: Samples at once.
    """

    passes: int = 2
    embed_mode: ContextEmbedMode = ContextEmbedMode.ST
    temperature: float = 1.0
    sigma: float = 2.0
    order: ObjectOrder = ObjectOrder.SORTED
    seed: int = 0
    batch_size: int = 8

    @classmethod
    def of(cls, config: Config) -> Self:
        """Those of a run: its own passes (at least two) and order, every slot replaced."""
        stage2 = config.stage2_ab
        return cls(
            passes=max(2, stage2.n_softctx_iter),
            embed_mode=stage2.coord_ctx_embed_mode,
            temperature=stage2.softctx_temperature,
            sigma=config.objective.coord_reg.config.target_sigma,
            order=config.data.object_order,
            seed=config.seed,
        )

    def protocol(self) -> dict[str, Any]:
        """As it stands in a dump's protocol."""
        return {
            "passes": self.passes,
            "embed_mode": str(self.embed_mode),
            "temperature": self.temperature,
            "sigma": self.sigma,
            "object_order": str(self.order),
        }


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A sample with its labels as an answer, and which objects that answer names, in its order."""

    written: IntArray
    encoded: EncodedSample


class Prober:
    """Probes a model (not wrapped), in the weights' own precision as evaluation, and leaves it in its mode."""

    def __init__(self, model: Any, encoder: SampleEncoder, settings: ProbeSettings | None = None) -> None:
        self.model = model
        self.encoder = encoder
        self.settings = settings or ProbeSettings()
        self._stage2 = Stage2Section(
            n_softctx_iter=self.settings.passes,
            coord_ctx_embed_mode=self.settings.embed_mode,
            softctx_temperature=self.settings.temperature,
            softctx_grad_mode=SoftContextGrad.EM_DETACH,
        )

    def labels(self, samples: Iterable[Sample]) -> list[LabelProbes | None]:
        """`iter_labels` at once: a few MB a sample."""
        return list(self.iter_labels(samples))

    def iter_labels(self, samples: Iterable[Sample]) -> Iterator[LabelProbes | None]:
        """Probes at the labels' own slots, one per sample in order, a batch at a time.

        `None` for a sample whose labels do not fit into the model's context.
        """
        labelled = map(self._labelled, samples)
        size = self.settings.batch_size
        for group in _batches(labelled, size, lambda item: None if item is None else item.encoded):
            yield from self._label_batch(group)

    def answers(self, answers: Iterable[Answer]) -> list[NDArray[np.float32]]:
        """The distributions `[P, 4, K]` at the coordinates of each answer's kept objects.

        The ids go in as they were generated, token for token.
        """
        bins = self.encoder.side.vocab.num_bins
        found: list[NDArray[np.float32]] = []
        for group in _batches(map(self._written, answers), self.settings.batch_size, lambda encoded: encoded):
            given = [encoded for encoded in group if encoded is not None]
            beliefs: Iterator[NDArray[np.float32]] = iter(())
            if given:
                with self._evaluating():
                    batch = self._collate(given)
                    hidden_BTD = first_pass(self.model, batch).hidden_BTD
                    p_N4K = _beliefs(slot_logits(hidden_BTD, batch.slots, self._rows()))
                beliefs = iter(np.split(p_N4K, np.cumsum([len(_answer(e).slots) // 4 for e in given])[:-1]))
            none = np.zeros((0, 4, bins), dtype=np.float32)
            found += [none if encoded is None else next(beliefs) for encoded in group]
        return found

    def _labelled(self, sample: Sample) -> _Labelled | None:
        order, seed = self.settings.order, self.settings.seed
        try:
            encoded = self.encoder.training(sample, Augmentation(order=order, seed=seed), 0)
        except TooLongError:
            return None
        return _Labelled(written_objects(sample, order, seed), encoded)

    def _written(self, answer: Answer) -> EncodedSample | None:
        """An answer as it was generated, as if it were a target; `None` where it has no box."""
        if not answer.parsed.objects:
            return None
        question = self.encoder.question(answer.sample)
        ids = answer.rollout.ids
        objects = answer.parsed.objects
        position = np.array([o.coord_positions for o in objects], dtype=np.int64).ravel()
        bins = np.array([o.bins_xyxy for o in objects], dtype=np.int64).ravel()
        roles = np.full(len(ids), Role.STRUCT, dtype=np.int8)
        roles[position] = Role.COORD
        slots = Slots(position, np.tile(np.arange(4), len(objects)), np.repeat(np.arange(len(objects)), 4), bins)
        return EncodedSample(
            question.sample_id,
            question.prefix_ids,
            question.pixel_values,
            question.grid_thw,
            Encoded(ids, roles, slots),
        )

    def _label_batch(self, group: Sequence[_Labelled | None]) -> Iterator[LabelProbes | None]:
        given = [item for item in group if item is not None and len(item.written)]
        found = iter(self._probed(given) if given else ())
        bins = self.encoder.side.vocab.num_bins
        none, boxes = np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.int64)
        beliefs = np.zeros((0, 4, bins), dtype=np.float32)
        for item in group:
            if item is None:
                yield None
            elif len(item.written):
                yield next(found)
            else:
                yield self._one(item, boxes, boxes, none, beliefs, beliefs, none, none, beliefs[:, :2])

    def _probed(self, items: Sequence[_Labelled]) -> list[LabelProbes]:
        with self._evaluating():
            batch = self._collate([item.encoded for item in items])
            first, rows = first_pass(self.model, batch), self._rows()
            slots, truth_S = batch.slots, batch.slots.target_bin
            logits_SK = slot_logits(first.hidden_BTD, slots, rows)
            a1 = _beliefs(logits_SK)
            for _ in range(2, self.settings.passes + 1):
                context = self_context(logits_SK, truth_S, rows.table_KD, self._stage2)
                hidden_BTD = later_pass(self.model, first, context_inputs(first, slots, context))
                logits_SK = slot_logits(hidden_BTD, slots, rows)
            last = _beliefs(logits_SK)
            truth_N4, context_N4 = (x.view(-1, 4).cpu().numpy() for x in (truth_S, context.bins_S))
            group_N = batch.object_group.cpu().numpy()  # of one image and name: no neighbour is in another image
            neighbour_N = neighbours(truth_N4, group_N, reach(self.settings.sigma))
            own_F = np.flatnonzero(neighbour_N != NONE)
            seen_F2K = self._swapped(first, batch, rows, own_F, neighbour_N[own_F])
        found, begin = [], 0
        for item in items:
            end = begin + len(item.written)
            one = slice(begin, end)
            here = (begin <= own_F) & (own_F < end)
            own, other = own_F[here] - begin, neighbour_N[own_F[here]] - begin
            beliefs = a1[one], last[one]
            found.append(
                self._one(item, truth_N4[one], context_N4[one], group_N[one], *beliefs, own, other, seen_F2K[here])
            )
            begin = end
        return found

    def _one(
        self,
        item: _Labelled,
        truth_N4: IntArray,
        context_N4: IntArray,
        group_N: IntArray,
        a1_N4K: NDArray[np.float32],
        last_N4K: NDArray[np.float32],
        own_F: IntArray,
        other_F: IntArray,
        seen_F2K: NDArray[np.float32],
    ) -> LabelProbes:
        """One image, its objects from the order written into the order of its labels."""
        order = np.argsort(item.written)
        place = np.argsort(order)  # of the object written n-th, among the labels
        truth_N4 = truth_N4[order]
        sigma = self.settings.sigma
        by_label = np.argsort(place[own_F])
        own_F, other_F = (place[x][by_label] for x in (own_F, other_F))
        return probe_labels(
            self.settings.passes,
            item.written[order],
            truth_N4,
            group_N[order],
            a1_N4K[order],
            last_N4K[order],
            context_N4[order],
            follow(seen_F2K[by_label], own_F, other_F, truth_N4, reach(sigma)),
            sigma=sigma,
        )

    def _swapped(
        self, first: FirstPass, batch: Batch, rows: CoordRows, own_F: IntArray, other_F: IntArray
    ) -> NDArray[np.float32]:
        """Distributions `[F, 2, K]` at x2 and y2 with a neighbour's x1, y1 in the input, one object at a time.

        x2 is read first; y2 is read after the most likely x2, as if the model had written it.
        """
        if not len(own_F):
            return np.zeros((0, 2, self.encoder.side.vocab.num_bins), dtype=np.float32)
        device = batch.answer_ids.device
        own, other = (torch.from_numpy(x).to(device) for x in (own_F, other_F))
        position_F4 = batch.slots.position.view(-1, 4)[own]
        truth_F4 = batch.slots.target_bin.view(-1, 4)[other]
        sample_F, start_F = batch.slots.sample.view(-1, 4)[own, 0], position_F4[:, 0]
        offset_F4 = position_F4 - start_F[:, None]
        length, index = int(offset_F4[:, 3].max()), torch.arange(len(own), device=device)
        at = (start_F[:, None] + torch.arange(length, device=device)).clamp_max(batch.answer_ids.shape[1] - 1)
        embeds = first.embeds_BTD[sample_F[:, None], at]
        table = rows.table_KD.to(embeds.dtype)
        for coordinate in (0, 1):
            embeds[index, offset_F4[:, coordinate]] = table[truth_F4[:, coordinate]]
        seen = []
        for coordinate in (2, 3):
            hidden = window_pass(self.model, first, embeds, sample_F, start_F)
            logits_FK = torch.nn.functional.linear(hidden[index, offset_F4[:, coordinate] - 1], rows.head_KD)
            seen.append(at_least_float32(logits_FK).softmax(-1))
            if coordinate == 2:
                embeds[index, offset_F4[:, 2]] = table[logits_FK.argmax(-1)]
        return torch.stack(seen, dim=1).float().cpu().numpy()

    def _rows(self) -> CoordRows:
        vocab = self.encoder.side.vocab
        return CoordRows.of(self.model, vocab.first_id, vocab.num_bins)

    def _collate(self, encoded: Sequence[EncodedSample]) -> Batch:
        side = self.encoder.side
        batch = collate(encoded, side.tokenizer.pad_token_id, side.image_token_id)
        return batch.to(next(self.model.parameters()).device)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), torch.autocast(next(self.model.parameters()).device.type, enabled=False):
                yield
        finally:
            self.model.train(was_training)


def _beliefs(logits_SK: Tensor) -> NDArray[np.float32]:
    """Distributions `[N, 4, K]` of the slots of N objects."""
    p_SK = at_least_float32(logits_SK).softmax(-1).float()
    return p_SK.view(-1, 4, p_SK.shape[-1]).cpu().numpy()


def _answer(encoded: EncodedSample) -> Encoded:
    assert encoded.answer is not None, "probes are of answers"
    return encoded.answer


def _batches(items: Iterable[T], size: int, encoded_of: Callable[[T], EncodedSample | None]) -> Iterator[list[T]]:
    """Items in order, `size` at a time, and fewer where they are long."""
    group: list[T] = []
    prefix = length = 0
    for item in items:
        encoded: EncodedSample | None = encoded_of(item)
        own = (0, 0) if encoded is None else (len(encoded.prefix_ids), len(_answer(encoded).ids))
        longest = max(prefix, own[0]) + max(length, own[1])
        if group and (len(group) == size or (len(group) + 1) * longest > TOKENS_AT_ONCE):
            yield group
            group, prefix, length = [], 0, 0
        group.append(item)
        prefix, length = max(prefix, own[0]), max(length, own[1])
    if group:
        yield group
