"""Score policies: each by hand, and what becomes of them where the engine does not know enough."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from apiece.errors import UserError
from apiece.evaluate.answers import ScorePolicy, chosen_policy, common_policy, score_objects, split_scores
from apiece.types import FinishReason, ParsedObject, Rollout

# Tokens: 0 syntax, 1 and 2 the name, 3..6 the coordinates, 7 syntax.
PROBABILITIES = [1e-6, 0.9, 0.4, 0.5, 0.25, 1.0, 0.125, 1e-6]
MASSES = [math.nan] * 3 + [0.6, 0.9, 1.0, 0.4] + [math.nan]
ITEM = ParsedObject("hot dog", (1, 2, 30, 40), (0, 1), (3, 4, 5, 6))
ROLLOUT = Rollout(
    "s",
    np.arange(8),
    np.log(PROBABILITIES).astype(np.float32),
    "",
    FinishReason.EOS,
    np.array(MASSES, dtype=np.float32),
)


def scores(rollout: Rollout = ROLLOUT) -> dict[str, float]:
    return {name: values[0] for name, values in score_objects(rollout, [ITEM], [(1, 2)]).items()}


def test_each_policy() -> None:
    coord, desc = (0.5 * 0.25 * 1.0 * 0.125) ** 0.25, (0.9 * 0.4) ** 0.5
    assert scores() == pytest.approx(
        {
            "constant": 1.0,
            "coord_logprob": coord,
            "coord_mass": (0.6 * 0.9 * 1.0 * 0.4) ** 0.25,
            "desc_logprob": desc,
            "product": coord * desc,
        }
    )
    assert list(scores()) == list(ScorePolicy)


def test_without_the_distribution_there_is_no_mass() -> None:
    assert set(scores(replace(ROLLOUT, near_mass=None))) == set(ScorePolicy) - {ScorePolicy.COORD_MASS}


@pytest.mark.parametrize(
    ("unknown", "left"),
    [
        ([3], {"constant", "coord_mass", "desc_logprob"}),  # a coordinate
        ([2], {"constant", "coord_mass", "coord_logprob"}),  # a part of the name
        ([0, 7], set(ScorePolicy)),  # syntax: nobody asks
        (range(8), {"constant", "coord_mass"}),
    ],
)
def test_what_is_not_known_is_not_made_up(unknown, left) -> None:
    logprobs = ROLLOUT.logprobs.copy()
    logprobs[list(unknown)] = np.nan
    assert set(scores(replace(ROLLOUT, logprobs=logprobs))) == left


def test_impossible_tokens_and_rounding_stay_in_range() -> None:
    logprobs = ROLLOUT.logprobs.copy()
    logprobs[4] = -np.inf
    mass = ROLLOUT.near_mass.copy()
    mass[3:7] = 1.0000001
    found = scores(replace(ROLLOUT, logprobs=logprobs, near_mass=mass))
    assert (found["coord_logprob"], found["product"], found["coord_mass"]) == (0.0, 0.0, 1.0)


def test_an_answer_without_objects_stands_in_no_policys_way() -> None:
    blind = replace(ROLLOUT, logprobs=np.full(8, np.nan, dtype=np.float32), near_mass=None)
    nothing = score_objects(blind, [], [])
    assert set(nothing) == set(ScorePolicy)
    known = score_objects(ROLLOUT, [ITEM], [(1, 2)])
    assert common_policy([known, nothing], "product") == "product"
    assert common_policy([known, score_objects(blind, [ITEM], [(1, 2)])], "product") == "constant"
    assert common_policy([], "product") == "product"


def test_scores_of_a_split_are_in_order_and_only_of_what_all_have() -> None:
    two = score_objects(ROLLOUT, [ITEM, ITEM], [(1, 2), (1,)])
    one = score_objects(replace(ROLLOUT, near_mass=None), [ITEM], [(1, 2)])
    found = split_scores([two, one])
    assert set(found) == set(ScorePolicy) - {ScorePolicy.COORD_MASS}
    assert found["desc_logprob"].tolist() == pytest.approx([0.6, 0.9, 0.6])


def test_unknown_policy() -> None:
    assert chosen_policy("coord_mass") is ScorePolicy.COORD_MASS
    known = "constant, coord_logprob, coord_mass, desc_logprob, product"
    with pytest.raises(
        UserError, match=rf"unknown score policy 'coord_mas' \(did you mean 'coord_mass'\?\); known: {known}"
    ):
        chosen_policy("coord_mas")


def test_rollouts_of_unequal_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have one length, got \[5, 8\]"):
        replace(ROLLOUT, near_mass=np.zeros(5, dtype=np.float32))
