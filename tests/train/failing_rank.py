"""One of two processes of a run, of which the second fails in its third step; run by test_failing_rank.py.

torchrun failing_rank.py CONFIG HOW STAMP     HOW: error, killed; STAMP gets the time at which it failed
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from apiece.cli import main
from apiece.errors import UserError
from apiece.train import loop


def fail(how: str, stamp: Path) -> None:
    stamp.write_text(str(time.time()))
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("this photo is gone", where="photo.png")


def run(config: str, how: str, stamp: str) -> None:
    real, calls = loop.train_step, 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 and os.environ["RANK"] == "1":
            fail(how, Path(stamp))
        return real(*args, **kwargs)

    loop.train_step = step
    sys.argv = ["apiece", "train", config]
    main()


if __name__ == "__main__":
    run(*sys.argv[1:])
