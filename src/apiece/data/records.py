"""The records of a data file, each read when it is asked for: a file of any length takes no memory but its index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from apiece.data.derived import state_of
from apiece.data.index import RecordIndex, index_of
from apiece.data.jsonl import parse_line
from apiece.errors import UserError
from apiece.types import IntArray, Sample


class Records(Sequence[Sample]):
    """Samples of a data file, or some of them, read from it one by one.

    Args:
        path: The JSONL file. Image paths are joined to its folder.
        table: The index of the file.
        rows: Which of its records, in this order; all if `None`.
    """

    def __init__(self, path: Path, table: RecordIndex, rows: IntArray | None = None) -> None:
        self.path, self.table = path, table
        self.rows = np.arange(len(table.start)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Records: ...
    def __getitem__(self, place: int | slice) -> Sample | Records:
        if isinstance(place, slice):
            return self.select(np.arange(len(self))[place])
        return self._read(int(self.rows[place]))

    def select(self, places: IntArray) -> Records:
        """Some of these records, in the order given."""
        return Records(self.path, self.table, self.rows[places])

    @property
    def num_objects(self) -> IntArray:
        """`[N]` objects of each, crowd regions not counted; nothing is read for it."""
        return self.table.num_objects[self.rows]

    @property
    def size_wh(self) -> IntArray:
        """`[N, 2]` pixels of each image."""
        return self.table.size_wh[self.rows]

    def sums_over_names(self, value: IntArray) -> IntArray:
        """`[N]` for each record the sum over its objects (crowd regions left out) of a value that its name has.

        Args:
            value: `[names]` one for each of `table.names`.
        """
        table = self.table
        total = np.concatenate([[0], np.cumsum(value[table.name])])
        return (total[table.first[1:]] - total[table.first[:-1]])[self.rows]

    def _read(self, row: int) -> Sample:
        start, size = int(self.table.start[row]), int(self.table.size[row])
        with open(self.path, "rb", buffering=0) as file:
            if state_of(file) != self.table.file_state:
                raise UserError(
                    "the file has changed since its records were found in it", where=self.path, fix="start again"
                )
            file.seek(start)
            raw = file.read(size)
        line = parse_line(raw, folder=self.path.parent, number=1 if start == 0 else 2, where=str(self.path))
        if line.sample is None or line.errors:
            number = self._line_number(start)
            where = f"{self.path}:{number}"
            first = parse_line(raw, folder=self.path.parent, number=number, where=where).errors[0]
            raise UserError(first.message, where=where, fix=f"see all errors with `apiece data check {self.path}`")
        return line.sample

    def _line_number(self, start: int) -> int:
        """Number, from 1, of the line that begins at a byte."""
        number = 1
        with open(self.path, "rb") as file:
            while start > 0 and (chunk := file.read(min(start, 1 << 24))):
                number += chunk.count(b"\n")
                start -= len(chunk)
        return number


def open_records(path: Path) -> Records:
    """The records of a data file, which is held against the contract, but not kept in memory.

    Raises:
        UserError: The file is missing or empty, or some lines are wrong.
    """
    return Records(Path(path), index_of(path))
