"""Fuzzing for as long as you like: spoilt configs, data, answers, checkpoints, runs; only `UserError` may come out.

    python tests/fuzz/run.py --minutes 10 [--only checkpoint]

Inputs that failed are kept in `.hypothesis/fuzz` and tried first the next time. Exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from targets import Target, targets  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
ROUND_S = 15.0
"""About how long one target is run before it is the next one's turn."""


def run_round(target: Target, number: int, count: list[int], until: float) -> str | None:
    """Run a target for a while; the traceback of what failed, if anything did."""

    @seed(number)
    @given(target.inputs)
    @settings(
        max_examples=100_000,
        deadline=None,
        database=DirectoryBasedExampleDatabase(REPOSITORY / ".hypothesis" / "fuzz"),
        suppress_health_check=list(HealthCheck),
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
        print_blob=True,
    )
    def check(given_input: Any) -> None:
        if time.monotonic() > until:
            raise TimeIsUpError
        count[0] += 1
        with tempfile.TemporaryDirectory() as folder:
            target.check(Path(folder), given_input)

    caught = Caught()
    with caught:
        check()
    return caught.told


class Caught:
    """Keeps the traceback of whatever is raised: that is what is looked for."""

    told: str | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if isinstance(error, Exception):
            self.told = "".join(traceback.format_exception(error))
        return isinstance(error, Exception | TimeIsUpError)


class TimeIsUpError(BaseException):
    """Not an `Exception`: hypothesis would take it for a failure and look for a smaller one."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", help="name of one target")
    options = parser.parse_args()
    chosen = [target for target in targets() if options.only in (None, target.name)]
    if not chosen:
        parser.error(f"--only: no such target; there are {', '.join(target.name for target in targets())}")
    counts = {target.name: [0] for target in chosen}
    failed: dict[str, str] = {}
    end, number = time.monotonic() + 60 * options.minutes, int(time.time())
    while time.monotonic() < end and len(failed) < len(chosen):
        for target in chosen:
            if target.name in failed or time.monotonic() > end:
                continue
            number += 1
            told = run_round(target, number, counts[target.name], min(end, time.monotonic() + ROUND_S))
            if told is not None:
                failed[target.name] = told
                print(f"--- {target.name} ---\n{told}", flush=True)
    for name, (count,) in counts.items():
        print(f"{name:<14} {count:>9,} inputs   {'FAILED' if name in failed else 'only user errors'}")
    print(f"{'all':<14} {sum(count for (count,) in counts.values()):>9,} inputs in {options.minutes:g} minutes")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
