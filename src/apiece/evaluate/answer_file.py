"""`predictions.jsonl` of a long run: written line by line under another name, so that nothing done is ever lost.

While a run goes on, its answers are in `predictions.jsonl.part`; at the end the file takes its name. An interrupted run
is gone on with under the same protocol (checkpoint, prompt, generation), which `protocol.json` keeps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from apiece.errors import UserError
from apiece.evaluate.answers import Answer
from apiece.files import read_json_object, write_json

PREDICTIONS_FILE = "predictions.jsonl"
PART_FILE = "predictions.jsonl.part"
PROTOCOL_FILE = "protocol.json"

_FREE = {"batch_size", "device", "url"}
"""Settings that may change between a run and its resumption: they decide how fast, not what."""


def check_out(out: Path, *, resume: bool) -> None:
    """Raise a `UserError` unless a run may write to `out`: new or empty, or one to go on with."""
    if out.exists() and not out.is_dir():
        raise UserError("expected a folder, found a file", where=out, exit_code=2)
    if not out.exists() or not any(out.iterdir()):
        return
    has_run = (out / PROTOCOL_FILE).is_file()
    if resume and not has_run:
        raise UserError(
            f"there is no run to go on with: the folder is not empty and holds no {PROTOCOL_FILE}",
            where=out,
            fix="name the folder of an earlier run, or a new one",
            exit_code=2,
        )
    if not resume:
        fix = "choose another --out" + (", or add --resume to go on with the run in it" if has_run else "")
        raise UserError("the folder is not empty, and nothing in it is overwritten", where=out, fix=fix, exit_code=2)


class AnswerFile:
    """The answers of one run; made by `open_answers`.

    Attributes:
        done: Ids of the samples that are answered.
        objects: Objects in all answers.
        dropped: Records dropped from all answers.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.done: set[str] = set()
        self.objects = 0
        self.dropped = 0

    def write(self, answer: Answer) -> None:
        """Append an answer; once this returns, it survives the end of the process."""
        record = answer.record()
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            message = f"cannot write: {error.strerror}; what is done is kept"
            raise UserError(message, where=self._file.name, fix="free some space, then add --resume") from error
        self._count(record)

    def read_back(self) -> None:
        """Take up the lines of an earlier run; a last line that was cut off is dropped and done again.

        Raises:
            UserError: Another line is broken: to go on from there would lose what follows.
        """
        end = 0
        for number, raw in enumerate(self._file, 1):
            record = _record(raw)
            if record is None:
                if self._file.read(1):
                    where, fix = f"{self._file.name}:{number}", "delete this line; its photo is then done again"
                    raise UserError("expected an answer, found something else", where=where, fix=fix)
                break
            self._count(record)
            end += len(raw)
        self._file.seek(end)
        self._file.truncate()

    def _count(self, record: Mapping[str, Any]) -> None:
        self.done.add(record["id"])
        self.objects += len(record["objects"])
        self.dropped += sum(record["dropped"].values())


@contextmanager
def open_answers(out: Path, protocol: Mapping[str, Any], *, resume: bool) -> Iterator[AnswerFile]:
    """The answers in `out`: those of an earlier run first where `resume` is set, then what is written.

    When the block ends without an error, `predictions.jsonl` is complete. When it does not, what was written stays in
    `predictions.jsonl.part` for the next time.

    Raises:
        UserError: `out` may not be written to (`check_out`), or the earlier run had another protocol.
    """
    check_out(out, resume=resume)
    part, final, settings = out / PART_FILE, out / PREDICTIONS_FILE, out / PROTOCOL_FILE
    if settings.is_file():
        _require_same(settings, protocol)
    write_json(settings, protocol)
    if final.exists() and not part.exists():
        final.replace(part)
    with open(part, "r+b" if part.exists() else "w+b") as file:
        answers = AnswerFile(file)
        answers.read_back()
        yield answers
        os.fsync(file.fileno())
    part.replace(final)


def discard_run(out: Path, *, existed: bool) -> None:
    """Take away the files of a run that answered nothing, and its folder unless that `existed` before."""
    for name in (PREDICTIONS_FILE, PROTOCOL_FILE):
        (out / name).unlink(missing_ok=True)
    if not existed:
        out.rmdir()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `predictions.jsonl`, one at a time."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _record(raw: bytes) -> dict[str, Any] | None:
    """A complete line as a record, `None` for one that was cut off or is none."""
    if not raw.endswith(b"\n"):
        return None
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    match value:
        case {"id": str(), "width": int(), "height": int(), "objects": list(), "dropped": dict()}:
            return dict(value)
    return None


def _require_same(path: Path, protocol: Mapping[str, Any]) -> None:
    before = read_json_object(path, "the settings of a run", fix="choose a new folder")
    old, new = _settings(before), _settings(protocol)
    changed = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            f"the run in this folder had other settings: {'; '.join(changed)}",
            where=path,
            fix="go on with the same settings, or choose a new folder",
            exit_code=2,
        )


def _settings(protocol: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted name, without those that may change."""
    flat: dict[str, Any] = {}
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            flat |= _settings(value, f"{above}{key}.")
        elif key not in _FREE:
            flat[f"{above}{key}"] = value
    return flat
