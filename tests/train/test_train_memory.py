"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from apiece.train import meter as memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_free_pages_between_kept_ones_are_given_back() -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    # Small enough to come from the heap; the last one keeps its end where it is.
    blocks = [bytearray(b"x" * 100_000) for _ in range(3000)]
    kept = blocks[-1]
    del blocks
    before = resident_mb()
    memory.give_back()
    assert before - resident_mb() > 100
    assert kept[0] == ord("x")


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(memory, "ctypes", None)
    memory.give_back()
