"""Rows of float32 in a .npy file that is appended to, and read back block by block.

A file that is being written has the header of an empty array, so nobody takes it for a whole one;
`finish` puts the true number of rows in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_ROWS = 8192  # of a block: with 384 dimensions 13 MB, with 1,024 of them 34 MB


class VectorWriter:
    """Appends rows to the file at `path`, made with the first of them."""

    def __init__(self, path: Path):
        self._path = path
        self._file: IO[bytes] | None = None
        self._rows = self._width = 0

    def resume(self, rows: int) -> int:
        """Keep the first `rows` rows of an earlier attempt, drop the rest; how many were kept."""
        opened = _opened(self._path)
        if opened is None:
            return 0
        start, _, self._width = opened
        there = (self._path.stat().st_size - start) // (4 * self._width)
        self._rows = min(rows, there)
        self._file = self._path.open("r+b")
        self._file.truncate(start + self._rows * 4 * self._width)
        self._file.seek(0, os.SEEK_END)
        return self._rows

    def append(self, rows: np.ndarray) -> None:
        """On disk on return. ValueError where rows have another width than those before."""
        import numpy as np

        if self._file is None:
            self._width = rows.shape[1]
            self._file = self._path.open("w+b")
            self._write_header(self._file, 0)
        if rows.shape[1] != self._width:
            raise ValueError(f"rows of {rows.shape[1]} numbers after such of {self._width}")
        self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._rows += len(rows)

    def finish(self) -> None:
        """From now on it is an array of all rows."""
        if self._file is not None:
            self._file.seek(0)
            self._write_header(self._file, self._rows)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write_header(self, file: IO[bytes], rows: int) -> None:
        """numpy leaves room in it for a first dimension of any length, so its size stays."""
        import numpy as np

        described = {"descr": "<f4", "fortran_order": False, "shape": (rows, self._width)}
        np.lib.format.write_array_header_1_0(file, described)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _opened(path: Path) -> tuple[int, int, int] | None:
    """(where the rows begin, how many, width), None where that cannot be read."""
    import numpy as np

    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            return (file.tell(), *shape) if len(shape) == 2 and shape[1] else None
    except (OSError, ValueError):
        return None


class VectorFile:
    """A finished file of rows; reads what is asked for and keeps nothing. ValueError if torn."""

    def __init__(self, path: Path):
        opened = _opened(path)
        if opened is None:
            raise ValueError(f"{path}: not a file of vectors")
        self._path = path
        self._start, self.rows, self.width = opened

    def _read(self, first: int, rows: int) -> np.ndarray:
        import numpy as np

        offset = self._start + first * 4 * self.width
        block = np.fromfile(self._path, np.dtype("<f4"), rows * self.width, offset=offset)
        return block.reshape(rows, self.width)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of everything, in order."""
        for first in range(0, self.rows, _ROWS):
            yield first, self._read(first, min(_ROWS, self.rows - first))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of these numbers, in their order."""
        import numpy as np

        mapped = np.load(self._path, mmap_mode="r", allow_pickle=False)
        return np.array(mapped[numbers], np.float32)
