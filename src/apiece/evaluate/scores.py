"""Scores of boxes by named policies: how sure the model was of what it wrote, in the ways there are to say so.

AP ranks by score, so its figure belongs to a policy. All that can be computed from an answer are, side by side; one of
them gives the detections their score. Log-probabilities are those of the full softmax, as in the `Rollout`.

Shapes: N objects of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.errors import UserError, nearest
from apiece.types import ParsedObject, Rollout

Scores = Mapping[str, tuple[float, ...]]
"""Policy to the scores `[N]`; only the policies that can be computed for all N."""


class ScorePolicy(StrEnum):
    """How a box gets its score, in [0, 1]."""

    CONSTANT = "constant"
    """1 for every box: all that is left without log-probabilities."""
    COORD_LOGPROB = "coord_logprob"
    """exp of the mean log-probability of the four coordinate tokens."""
    COORD_MASS = "coord_mass"
    """Geometric mean over the four coordinates of the probability within `NEAR_BINS` bins of the bin written."""
    DESC_LOGPROB = "desc_logprob"
    """exp of the mean log-probability of the tokens of the name."""
    PRODUCT = "product"
    """`coord_logprob` times `desc_logprob`."""


DEFAULT_POLICY = ScorePolicy.COORD_LOGPROB


def chosen_policy(name: str) -> ScorePolicy:
    """The policy of a name.

    Raises:
        UserError: There is none.
    """
    if name not in list(ScorePolicy):
        known = ", ".join(ScorePolicy)
        raise UserError(f"unknown score policy '{name}'{nearest(name, list(ScorePolicy))}; known: {known}", exit_code=2)
    return ScorePolicy(name)


def score_objects(
    rollout: Rollout, objects: Sequence[ParsedObject], desc_positions: Sequence[Sequence[int]]
) -> dict[str, tuple[float, ...]]:
    """Scores of the objects of an answer by every policy that can be computed for all of them.

    Args:
        rollout: The answer.
        objects: What it says, read from ids.
        desc_positions: `[N]` positions of the tokens of each name.
    """
    slots = [list(item.coord_positions or ()) for item in objects]
    coord = [_geometric_mean(rollout.logprobs[p]) for p in slots]
    desc = [_geometric_mean(rollout.logprobs[list(p)]) for p in desc_positions]
    scores = {
        ScorePolicy.CONSTANT: [1.0] * len(objects),
        ScorePolicy.COORD_LOGPROB: coord,
        ScorePolicy.DESC_LOGPROB: desc,
        ScorePolicy.PRODUCT: [a * b for a, b in zip(coord, desc, strict=True)],
    }
    if rollout.near_mass is not None or not objects:
        mass = rollout.logprobs if rollout.near_mass is None else rollout.near_mass  # the former for no object at all
        scores[ScorePolicy.COORD_MASS] = [float(mass[p].astype(np.float64).prod() ** (1 / len(p))) for p in slots]
    return {
        str(policy): tuple(min(v, 1.0) for v in scores[policy])
        for policy in ScorePolicy
        if policy in scores and not np.isnan(scores[policy]).any()
    }


def common_policy(answers: Collection[Scores], asked: str) -> str:
    """The policy for the answers of a split: the one asked for if all have it, else `constant`.

    Scores of several policies in one ranking would mean nothing.
    """
    return asked if all(asked in scores for scores in answers) else str(ScorePolicy.CONSTANT)


def no_scores(asked: str, used: str) -> str:
    """What to tell where `common_policy` is not the one asked for."""
    return f"scores are {used}: not all answers have what {asked} needs (the engine keeps no log-probabilities)"


def split_scores(answers: Collection[Scores]) -> dict[str, FloatArray]:
    """The scores of all objects of all answers, in order, by every policy that all answers have."""
    return {
        str(policy): np.array([score for scores in answers for score in scores[policy]], dtype=np.float64)
        for policy in ScorePolicy
        if all(policy in scores for scores in answers)
    }


def _geometric_mean(logprobs: NDArray[np.float32]) -> float:
    """exp of the mean; NaN where one is NaN."""
    return math.exp(float(logprobs.mean())) if len(logprobs) else math.nan
