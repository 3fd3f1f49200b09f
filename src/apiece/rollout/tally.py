"""What the answers of a step were, in counts that add up over samples, steps and processes, and the figures of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from apiece.outcomes import Outcome
from apiece.rollout.targets import Judged
from apiece.types import FinishReason, ParseStatus

KEYS = (
    *("answers", "tokens", "objects", "labels", "matched", "ignored", "missed", "iou", "records"),
    *("kept", "appended", "redundant", "generate_s", "update_s", "steps"),
    *(f"outcome/{outcome.label}" for outcome in Outcome if outcome is not Outcome.UNLABELLED),
    *(f"finish/{reason}" for reason in FinishReason),
    *(f"dropped/{status}" for status in ParseStatus),
)
"""Every count there is: processes add theirs up in this order."""


def tally(judged: Sequence[Judged], generate_s: float) -> dict[str, float]:
    """The counts of some answers, a value for every one of `KEYS`.

    Args:
        judged: The answers.
        generate_s: Seconds that it took to write them.
    """
    counts: Counter[str] = Counter()
    for one in judged:
        counts["answers"] += 1
        counts["tokens"] += len(one.rollout.ids)
        counts["objects"] += len(one.parsed.objects)
        counts["records"] += one.parsed.num_records
        counts["labels"] += len(one.match.pairs) + len(one.match.misses)
        counts["matched"] += len(one.match.pairs)
        counts["missed"] += len(one.match.misses)
        counts["ignored"] += len(one.match.ignored)
        counts["kept"] += one.target.num_kept
        counts["appended"] += one.target.num_appended
        counts["redundant"] += len(one.target.committing)
        counts[f"finish/{one.rollout.finish_reason}"] += 1
        counts.update({f"outcome/{name}": count for name, count in one.outcomes.counts().items()})
        counts.update({f"dropped/{status}": count for status, count in one.parsed.dropped.items()})
    known = counts | {"iou": float(sum(one.match.iou.sum() for one in judged)), "generate_s": generate_s}
    return {key: float(known[key]) if key in known else 0.0 for key in KEYS}


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    """The figures named `b/...` of some steps.

    Args:
        sums: By `KEYS`; `update_s` and `steps` are put in by the caller.
    """

    def of(part: str, whole: str) -> float:
        return _ratio(sums[part], sums[whole])

    out = {
        "objects_per_answer": of("objects", "answers"),
        "labels_per_image": of("labels", "answers"),
        "tokens_per_answer": of("tokens", "answers"),
        "precision": _ratio(sums["matched"], sums["objects"] - sums["ignored"]),
        "recall": of("matched", "labels"),
        "f1": _ratio(2 * sums["matched"], sums["objects"] - sums["ignored"] + sums["labels"]),
        "mean_iou": of("iou", "matched"),
        "truncated": _ratio(sums["answers"] - sums[f"finish/{FinishReason.EOS}"], sums["answers"]),
        "kept_share": of("kept", "objects"),
        "appended_share": _ratio(sums["appended"], sums["kept"] + sums["appended"]),
        "redundant_per_answer": of("redundant", "answers"),
        "generate_s": of("generate_s", "steps"),
        "update_s": of("update_s", "steps"),
        "generate_time_share": _ratio(sums["generate_s"], sums["generate_s"] + sums["update_s"]),
    }
    per = {"outcome": "objects", "finish": "answers", "dropped": "records"}
    out |= {key: of(key, per[kind]) for key in KEYS for kind, slash, _ in [key.partition("/")] if slash}
    return {f"b/{name}": value for name, value in out.items()}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
