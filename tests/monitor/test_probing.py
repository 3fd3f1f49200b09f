"""The prober against whole forwards of the library's model: same beliefs, same swaps, for any number of objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import toy
from apiece.codec import Bins, objects_to_bins
from apiece.codec.vocab import decode_exact
from apiece.config.schema import Config, ContextEmbedMode, ObjectOrder
from apiece.evaluate.answers import read_answer
from apiece.monitor import probing
from apiece.monitor.probing import Prober, ProbeSettings
from apiece.probes.labels import NONE, neighbours
from apiece.types import FinishReason, Instance, Rollout, Sample

CROWD = toy.sample(
    "crowd", (80, 64),
    ("book", (38, 1, 61, 63)), ("book", (0, 0, 20, 60)), ("person", (5, 5, 70, 30)), ("book", (20, 2, 38, 62)),
    ("book", (60, 30, 80, 64)),
)  # fmt: skip
ALL = (toy.NONE, CROWD, toy.ONE, toy.THREE, toy.NONE)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    """A tiny model with opinions: at the initial scale what stands in the input would hardly matter."""
    from apiece.model.load import load_model

    model = load_model(str(tiny_checkpoint), attention="sdpa")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name and "visual" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)
    return model


def prober(model: Any, side: Any, **settings: Any) -> Prober:
    return Prober(model, toy.encoder(side), ProbeSettings(**settings))


class Whole:
    """A sample's answer, and whole forwards over it."""

    def __init__(self, model: Any, side: Any, sample: Sample, order: ObjectOrder = ObjectOrder.SORTED) -> None:
        self.model, self.side = model, side
        augment = replace(toy.PLAIN, order=order)
        encoded = toy.encoder(side).training(sample, augment, 0)
        assert encoded.answer is not None
        self.encoded, self.prefix = encoded, len(encoded.prefix_ids)
        self.slots = encoded.answer.slots.position.reshape(-1, 4) + self.prefix
        self.truth = encoded.answer.slots.target_bin.reshape(-1, 4)
        self.ids = torch.tensor([*encoded.prefix_ids.tolist(), *encoded.answer.ids.tolist()])

    @torch.no_grad()
    def beliefs(self, changes: dict[int, Any]) -> NDArray[np.float32]:
        """Distributions `[N, 4, K]` with other bins (or embeddings) at some places of the sequence."""
        table = self.model.get_input_embeddings().weight
        embeds = table[self.ids].clone()
        for place, new in changes.items():
            embeds[place] = table[self.side.vocab.first_id + new] if isinstance(new, int) else new
        kinds = (self.ids == self.side.image_token_id).int()[None]
        grid = torch.tensor([self.encoded.grid_thw])
        positions, _ = self.model.model.get_rope_index(
            self.ids[None], kinds, image_grid_thw=grid, attention_mask=torch.ones_like(self.ids[None])
        )
        pixels = torch.from_numpy(self.encoded.pixel_values)
        logits = self.model(
            input_ids=None, inputs_embeds=embeds[None], pixel_values=pixels, image_grid_thw=grid,
            position_ids=positions, use_cache=False,
        ).logits[0]  # fmt: skip
        first = self.side.vocab.first_id
        rows = logits[torch.from_numpy(self.slots.ravel() - 1), first : first + 1000]
        return rows.softmax(-1).view(-1, 4, 1000).numpy()


WRITTEN = (1, 0, 3, 2, 4)
"""The objects of CROWD by (y1, x1)."""


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("mode", list(ContextEmbedMode))
def test_beliefs_are_those_of_whole_forwards(model: Any, tiny_side: Any, passes: int, mode: ContextEmbedMode) -> None:
    found = prober(model, tiny_side, passes=passes, embed_mode=mode, temperature=1.5).labels([CROWD])[0]
    assert found is not None
    whole = Whole(model, tiny_side, CROWD)
    order = np.argsort(WRITTEN)
    seen = a1 = whole.beliefs({})
    table = model.get_input_embeddings().weight.detach()
    rows = table[tiny_side.vocab.first_id : tiny_side.vocab.first_id + 1000]
    for _ in range(2, passes + 1):
        soft = torch.from_numpy(seen) ** (1 / 1.5)
        soft = soft / soft.sum(-1, keepdim=True) @ rows
        hard = rows[torch.from_numpy(seen.argmax(-1))]
        new = soft if mode is ContextEmbedMode.SOFT else hard
        seen = whole.beliefs({int(p): new[n, c] for n, row in enumerate(whole.slots) for c, p in enumerate(row)})
    assert found.objects.tolist() == [0, 1, 2, 3, 4]
    assert found.target_N4.tolist() == whole.truth[order].tolist()
    assert found.target_N4[1].tolist() == [0, 0, 250, 937]
    np.testing.assert_allclose(found.a1_N4K, a1[order], atol=1e-5)
    np.testing.assert_allclose(found.last_N4K, seen[order], atol=2e-5)
    assert np.abs(found.last_N4K - found.a1_N4K).max() > 0.01  # the context matters to this model
    assert found.drift_N4.tolist() == np.abs(found.last_N4K.argmax(-1) - found.a1_N4K.argmax(-1)).tolist()


def test_follow_is_that_of_whole_forwards(model: Any, tiny_side: Any) -> None:
    sigma = 4.0
    found = prober(model, tiny_side, sigma=sigma, batch_size=3).labels([toy.NONE, toy.THREE, CROWD])[2]
    assert found is not None
    whole = Whole(model, tiny_side, CROWD)
    group = np.array([0, 0, 0, 1, 0])
    rows = []
    for own, other in enumerate(neighbours(whole.truth, group, 12).tolist()):
        if other == NONE:
            continue
        x1, y1, x2, _ = (int(p) for p in whole.slots[own])
        changes = {x1: int(whole.truth[other, 0]), y1: int(whole.truth[other, 1])}
        first = whole.beliefs(changes)[own, 2]
        second = whole.beliefs(changes | {x2: int(first.argmax())})[own, 3]
        for coordinate, p in ((2, first), (3, second)):
            near = [p[max(0, t - 12) : t + 13].sum() for t in whole.truth[[own, other], coordinate]]
            if abs(int(whole.truth[own, coordinate]) - int(whole.truth[other, coordinate])) > 24:
                rows.append((WRITTEN[own], WRITTEN[other], coordinate, *near))
    rows.sort()
    follow = found.as_json()["follow"]
    assert len(rows) >= 4
    assert [(f["object"], f["neighbour"], f["coordinate"]) for f in follow] == [row[:3] for row in rows]
    assert [f["near_own"] for f in follow] == pytest.approx([row[3] for row in rows], abs=2e-4)
    assert [f["near_neighbour"] for f in follow] == pytest.approx([row[4] for row in rows], abs=2e-4)


def test_a_batch_changes_nothing(model: Any, tiny_side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    together = prober(model, tiny_side, batch_size=5).labels(ALL)
    alone = [prober(model, tiny_side).labels([s])[0] for s in ALL]
    monkeypatch.setattr(probing, "TOKENS_AT_ONCE", 1)
    singly = prober(model, tiny_side, batch_size=5).labels(ALL)
    for a, b, c in zip(together, alone, singly, strict=True):
        assert a is not None and b is not None and c is not None
        for other in (b, c):
            np.testing.assert_allclose(a.a1_N4K, other.a1_N4K, atol=1e-5)
            np.testing.assert_allclose(a.last_N4K, other.last_N4K, atol=1e-4)
            np.testing.assert_allclose(a.follow.near_own, other.follow.near_own, atol=1e-4)
            assert a.as_json()["follow"] is not other.as_json()["follow"]


@pytest.mark.parametrize("order", list(ObjectOrder))
def test_rows_are_in_the_order_of_the_labels(model: Any, tiny_side: Any, order: ObjectOrder) -> None:
    thin = Instance("book", (40, 10, 40.01, 30))
    crowd = Instance("book", (0, 0, 80, 64), iscrowd=True)
    sample = replace(CROWD, objects=(crowd, *CROWD.objects[:2], thin, *CROWD.objects[2:]))
    found = prober(model, tiny_side, order=order, seed=3).labels([sample])[0]
    assert found is not None
    assert found.objects.tolist() == [1, 2, 4, 5, 6]
    boxes = [sample.objects[i].bbox_xyxy for i in found.objects]
    assert found.target_N4.tolist() == Bins().to_bins(boxes, sample.size_wh).tolist()
    record = found.as_json()
    assert record["slots"]["object"][:5] == [1, 1, 1, 1, 2]
    assert record["slots"]["coordinate"][:5] == [0, 1, 2, 3, 0]
    assert record["objects"]["object"] == [1, 2, 4, 5, 6]
    assert {f["object"] for f in record["follow"]} <= {1, 2, 5, 6}
    assert record["slots"]["last"]["argmax"] == found.last_N4K.argmax(-1).ravel().tolist()
    # No probability mass is lost between the arrays and the columns.
    whole = Whole(model, tiny_side, replace(sample, objects=CROWD.objects), order)
    if order is not ObjectOrder.RANDOM:
        place = [whole.truth.tolist().index(t) for t in found.target_N4.tolist()]
        np.testing.assert_allclose(found.a1_N4K, whole.beliefs({})[place], atol=1e-5)


def test_samples_without_objects_run_nothing(model: Any, tiny_side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "first_pass", None)
    only_crowd = replace(toy.NONE, objects=(Instance("book", (0, 0, 20, 20), iscrowd=True),))
    for found in prober(model, tiny_side).labels([toy.NONE, only_crowd]):
        assert found is not None
        assert found.a1_N4K.shape == (0, 4, 1000)
        record = found.as_json()
        assert (record["slots"]["object"], record["objects"]["flip"], record["follow"]) == ([], [], [])


def test_sixty_objects(model: Any, tiny_side: Any) -> None:
    boxes = [(10.0 * (i % 12), 20.0 * (i // 12), 10.0 * (i % 12) + 9, 20.0 * (i // 12) + 18) for i in range(60)]
    sample = toy.sample("sixty", (120, 100), *(("book", box) for box in boxes))
    found = prober(model, tiny_side).labels([sample])[0]
    assert found is not None
    assert found.last_N4K.shape == (60, 4, 1000)
    np.testing.assert_allclose(found.last_N4K.sum(-1), 1, atol=1e-4)
    assert set(found.follow.object.tolist()) == set(range(60))


def test_labels_that_do_not_fit_are_left_out(model: Any, tiny_side: Any) -> None:
    encoded = toy.encode(tiny_side, CROWD)[0]
    assert encoded.answer is not None
    short = replace(toy.encoder(tiny_side), max_length=len(encoded.prefix_ids) + len(encoded.answer.ids) - 1)
    found = Prober(model, short, ProbeSettings()).labels([CROWD, toy.ONE])
    assert found[0] is None
    assert found[1] is not None


def test_mode_of_the_model_is_kept(model: Any, tiny_side: Any) -> None:
    try:
        for training in (True, False):
            model.train(training)
            found = prober(model, tiny_side).labels([toy.ONE])[0]
            assert model.training is training
            assert found is not None
    finally:
        model.eval()
    assert all(p.grad is None for p in model.parameters())


def answer_of(side: Any, sample: Sample, cut: int | None = None) -> Any:
    """The labels of a sample, in the order given, as if they had been generated."""
    boxes, descs = [o.bbox_xyxy for o in sample.objects], [o.desc for o in sample.objects]
    ids = side.renderer.render(objects_to_bins(boxes, descs, sample.size_wh, Bins())).ids[:cut]
    text = decode_exact(side.tokenizer, ids.tolist())
    rollout = Rollout(sample.id, ids, np.zeros(len(ids), dtype=np.float32), text, FinishReason.LENGTH)
    return read_answer(sample, rollout, side.tokenizer, side.vocab)


def test_answers_are_read_as_they_were_written(model: Any, tiny_side: Any) -> None:
    sorted_crowd = replace(CROWD, objects=tuple(CROWD.objects[i] for i in WRITTEN))
    given = [toy.NONE, sorted_crowd, toy.NONE, toy.ONE]
    answers = [answer_of(tiny_side, s) for s in given]
    found = prober(model, tiny_side).answers(answers)
    labels = prober(model, tiny_side).labels(given)
    assert [len(p) for p in found] == [0, 5, 0, 1]
    for p, label in zip(found, labels, strict=True):
        assert label is not None
        np.testing.assert_allclose(p, label.a1_N4K, atol=1e-5)


def test_answer_that_was_cut_off(model: Any, tiny_side: Any) -> None:
    whole = answer_of(tiny_side, toy.THREE)
    end = whole.parsed.objects[1].coord_positions[3] + 2
    cut = answer_of(tiny_side, toy.THREE, end)
    assert [len(p) for p in prober(model, tiny_side).answers([cut])] == [len(cut.parsed.objects)]
    kept = len(cut.parsed.objects)
    assert kept
    found = [prober(model, tiny_side).answers([a])[0] for a in (whole, cut)]
    np.testing.assert_allclose(found[0][:kept], found[1], atol=1e-5)


def test_settings_of_a_run() -> None:
    settings = ProbeSettings.of(Config())
    assert (settings.passes, settings.sigma, settings.order) == (2, 2.0, ObjectOrder.SORTED)
    assert settings.protocol() == {
        "passes": 2, "embed_mode": "st", "temperature": 1.0, "sigma": 2.0, "object_order": "sorted",
    }  # fmt: skip
    other = Config.model_validate(
        {"stage2_ab": {"n_softctx_iter": 4, "softctx_temperature": 0.5}, "data": {"object_order": "random"}, "seed": 7},
        strict=False,
    )
    settings = ProbeSettings.of(other)
    assert (settings.passes, settings.temperature, settings.order, settings.seed) == (4, 0.5, ObjectOrder.RANDOM, 7)
