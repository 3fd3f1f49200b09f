"""Outcomes as evaluation reads them: those of `apiece.outcomes`, which Channel-B shares."""

from apiece.outcomes import COVERED, INSIDE, MISSES, NEAR, NONE, Fate, Outcome, Outcomes, label_outcomes

__all__ = ["COVERED", "INSIDE", "MISSES", "NEAR", "NONE", "Fate", "Outcome", "Outcomes", "label_outcomes"]
