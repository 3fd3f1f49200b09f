"""Which optimizer steps are Channel-B's."""

from __future__ import annotations

import pytest

from apiece.channels.schedule import is_b_step


@pytest.mark.parametrize(
    ("ratio", "steps"),
    [
        (0.0, "AAAAAAAA"),
        (1.0, "BBBBBBBB"),
        (0.5, "ABABABAB"),
        (0.25, "AAABAAAB"),
        (0.75, "ABBBABBB"),
        (0.3, "AAABAABAABAAAB"),
        (0.05, "A" * 19 + "B"),
    ],
)
def test_the_schedule(ratio: float, steps: str) -> None:
    assert "".join("AB"[is_b_step(s, ratio)] for s in range(len(steps))) == steps


@pytest.mark.parametrize("hundredths", range(101))
def test_of_the_first_n_steps_the_whole_part_of_n_times_the_ratio(hundredths: int) -> None:
    """Also where the float is a little less than what was written: 0.29 x 100 is below 29."""
    done = 0
    for step in range(300):
        done += is_b_step(step, hundredths / 100)
        assert done == (step + 1) * hundredths // 100
