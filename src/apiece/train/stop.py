"""Being asked to stop: Ctrl-C, and SIGTERM as a cluster sends it before it takes a machine away.

The first signal asks: the step in progress is finished and saved; an evaluation or a dump is cut short, since it can be
made again. A second signal ends the process at once, by the operating system, whatever it is doing.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


class CutShortError(Exception):
    """What goes on is to be left: it can be made again, and the process was asked to stop."""


@dataclass
class StopFlag:
    """Whether this process was asked to stop.

    Attributes:
        signal: The signal that asked; `None` if none did.
    """

    signal: int | None = None
    _cut: bool = field(default=False, repr=False)

    @property
    def now(self) -> bool:
        """Whether one did."""
        return self.signal is not None

    def ask(self, number: int, _: FrameType | None = None) -> None:
        """Take the first signal; the next one of either kind ends the process."""
        self.signal = number
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)
        self.check()

    def check(self) -> None:
        """Leave the block that may be cut short, if this process was asked to stop."""
        if self.now and self._cut:
            raise CutShortError

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Leave the block as soon as a signal comes; what it does must be free to be left at any point."""
        self._cut = True
        try:
            try:
                yield
            finally:
                self._cut = False
        except CutShortError:
            pass


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Signals ask the flag while the block runs."""
    flag = StopFlag()
    before = {s: signal.signal(s, flag.ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
