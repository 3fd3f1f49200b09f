"""Answers for the tests of the codec: by hand, drawn, and large."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from apiece.codec import NUM_BINS
from apiece.codec.render import DescBins, desc_problem
from apiece.model.prompt import COCO_80

# Two bins in order, both ends of the grid included.
SPANS = st.tuples(st.integers(0, NUM_BINS - 2), st.integers(1, NUM_BINS - 1)).filter(lambda s: s[0] < s[1])
BINS = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), SPANS, SPANS)
# Any name that may stand in an answer, the awkward ones included: brackets, commas, `<`, accents, emoji.
DESCS = st.text(min_size=1, max_size=12).filter(lambda text: desc_problem(text) is None)
AWKWARD_DESCS = st.text("ab ,:[]{}<|>coord_1é", min_size=1, max_size=12).filter(lambda t: desc_problem(t) is None)
OBJECTS = st.lists(st.tuples(st.one_of(DESCS, AWKWARD_DESCS), BINS), max_size=5)
COCO_OBJECTS = st.lists(st.tuples(st.sampled_from(COCO_80), BINS), max_size=6)

WORKED: list[DescBins] = [
    ("person", (12, 340, 96, 711)),
    ("hot dog", (0, 0, 999, 999)),
    ("person", (5, 6, 70, 80)),
]
WORKED_TEXT = (
    '{"objects": [{"desc": "person", "bbox_2d": [<|coord_12|>, <|coord_340|>, <|coord_96|>, <|coord_711|>]}, '
    '{"desc": "hot dog", "bbox_2d": [<|coord_0|>, <|coord_0|>, <|coord_999|>, <|coord_999|>]}, '
    '{"desc": "person", "bbox_2d": [<|coord_5|>, <|coord_6|>, <|coord_70|>, <|coord_80|>]}]}'
)


def many_objects(count: int) -> list[DescBins]:
    """A crowd: `count` random records."""
    rng = random.Random(count)
    spans = [sorted(rng.sample(range(NUM_BINS), 2)) for _ in range(2 * count)]
    return [(rng.choice(COCO_80), (x1, y1, x2, y2)) for (x1, x2), (y1, y2) in zip(spans[::2], spans[1::2], strict=True)]
