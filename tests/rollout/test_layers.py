"""Tokens behind the prefix: the short way gives what the library gives, and is taken only where nothing is missed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import toy
from apiece.config.schema import GenerateSection
from apiece.rollout.fast import FastModel, LeanLayers, is_plain
from apiece.rollout.generate import LocalEngine
from apiece.rollout.plain import PlainModel, RowCache


@pytest.fixture
def model(tiny_model):
    """In float64, so that what differs is not rounding."""
    return copy.deepcopy(tiny_model).double()


def filled(model, lengths) -> RowCache:
    """A cache whose rows have random keys and values."""
    config, generator = model.config.text_config, torch.Generator().manual_seed(0)
    cache = RowCache(config, len(lengths))
    shape = (config.num_key_value_heads, max(lengths) + 2, config.head_dim)
    dtype = next(model.parameters()).dtype
    for row, length in enumerate(lengths):
        keys, values = (
            [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(config.num_hidden_layers)]
            for _ in range(2)
        )
        cache.put(row, keys, values, length)
    return cache


@torch.no_grad()
def run(layers, cache, passes):
    """Hidden states of some passes, and what the cache then holds."""
    out = []
    for ids, positions in passes:
        out.append(layers(np.array(ids), np.array(positions), cache))
        cache.lengths[: len(ids)] += len(ids[0])
    return [hidden.numpy() for hidden in out], [kept.numpy() for kept in (*cache._keys, *cache._values)]


PASSES = {
    "one row, one token": ([5], [([[7]], [[9]])]),
    "one row, several": ([5], [([[7, 8, 9]], [[9, 10, 11]]), ([[3]], [[12]])]),
    "ragged rows": (
        [1, 70, 5],
        [([[7, 8], [3, 4], [5, 6]], [[2, 3], [71, 72], [6, 7]]), ([[1], [2], [3]], [[4], [73], [8]])],
    ),
    "far positions": ([3, 4], [([[7], [8]], [[3], [1500]]), ([[7], [8]], [[4], [4100]])]),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_short_way_is_the_librarys(model, name) -> None:
    lengths, passes = PASSES[name]
    found, kept = run(LeanLayers(model), filled(model, lengths), passes)
    expected, library_kept = run(PlainModel(model).read, filled(model, lengths), passes)
    for one, other in zip([*found, *kept], [*expected, *library_kept], strict=True):
        assert_allclose(one, other, atol=1e-6, rtol=0)  # norms round to float32, as the library has them do
    if name == "ragged rows":
        assert np.abs(found[0][0] - found[0][2]).max() > 0.01


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.bfloat16, 0.15)])
def test_in_less_precision(tiny_model, dtype, atol) -> None:
    model = copy.deepcopy(tiny_model).to(dtype)
    lengths, passes = PASSES["ragged rows"]
    with torch.no_grad():
        pairs = [
            layers(np.array(passes[0][0]), np.array(passes[0][1]), filled(model, lengths)).float()
            for layers in (LeanLayers(model), PlainModel(model).read)
        ]
    assert pairs[0].abs().max() > 1
    assert_allclose(pairs[0], pairs[1], atol=atol)


def test_biases_of_attention_are_in_it(tiny_model) -> None:
    model = copy.deepcopy(tiny_model).double()
    for layer in model.model.language_model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.v_proj, layer.self_attn.o_proj):
            part.bias = nn.Parameter(torch.linspace(-0.5, 0.5, part.out_features, dtype=torch.float64))
    found, _ = run(LeanLayers(model), filled(model, [4, 2]), PASSES["far positions"][1])
    expected, _ = run(PlainModel(model).read, filled(model, [4, 2]), PASSES["far positions"][1])
    assert_allclose(found, expected, atol=1e-6)


class Adapted(nn.Linear):
    """As an adapter takes the place of a layer."""


def adapt(model) -> None:
    model.model.language_model.layers[1].mlp.up_proj = Adapted(2, 2)


def listen(model) -> None:
    model.model.language_model.layers[0].register_forward_hook(lambda *_: None)


def scale_angles(model) -> None:
    model.model.language_model.rotary_emb.rope_type = "dynamic"


@pytest.mark.parametrize("change", [adapt, listen, scale_angles])
def test_anything_unusual_goes_through_the_model(tiny_model, change) -> None:
    model = copy.deepcopy(tiny_model)
    assert is_plain(model)
    assert FastModel(model)._layers is not None
    change(model)
    assert FastModel(model)._layers is None


def test_another_class_goes_through_the_model(tiny_model) -> None:
    class Own(type(tiny_model)):  # type: ignore[misc]
        pass

    model = copy.deepcopy(tiny_model)
    model.__class__ = Own
    assert not is_plain(model)


def test_who_listens_hears_every_pass_and_nothing_changes(model, tiny_side) -> None:
    asked = [toy.encoder(tiny_side).question(s) for s in toy.ALL]
    settings = GenerateSection(max_new_tokens=30, max_objects=4, temperature=1.0)
    expected = LocalEngine(model, tiny_side, settings).generate(asked)
    heard: list[int] = []
    handle = model.model.language_model.layers[0].register_forward_hook(lambda *_: heard.append(1))
    found = LocalEngine(model, tiny_side, settings).generate(asked)
    handle.remove()
    assert len(heard) > 3
    for one, other in zip(found, expected, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert_allclose(one.logprobs, other.logprobs, atol=1e-6)
