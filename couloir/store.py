"""An append-only store of array chunks that survives ``kill -9`` at any instant.

One SQLite file in write-ahead mode with full synchronization.  A chunk (a few named arrays of one series) becomes
visible by one atomic commit; readers may look while a writer writes.  No pickles: arrays are stored as safetensors after
a CRC-32 that reveals damage.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from couloir.errors import DataError, StoreError

SCHEMA_VERSION = 2
_CHECKSUM = 4
"""Bytes before the arrays."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chunk (
    series TEXT NOT NULL, number INTEGER NOT NULL, arrays BLOB NOT NULL, PRIMARY KEY (series, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

Arrays = dict[str, npt.NDArray[Any]]


class Store:
    """Series of array chunks plus JSON facts, in one file (or in memory).

    Parameters
    ----------
    path : file to open or create; None keeps everything in memory.
    read_only : open an existing store without the right to write.

    Raises
    ------
    StoreError : the file cannot be opened, is not a Couloir store, or comes from a newer version.
    """

    def __init__(self, path: str | Path | None = None, *, read_only: bool = False) -> None:
        self.path = None if path is None else Path(path)
        if read_only and (self.path is None or not self.path.exists()):
            raise StoreError(f"no store at {self.path}", "has the run been started?")
        with self._guard("open"):
            if self.path is not None:
                mode = "ro" if read_only else "rwc"
                self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30.0)
            else:
                self._db = sqlite3.connect(":memory:", isolation_level=None)
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
                self._db.execute("INSERT OR IGNORE INTO fact VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
            version = int(self._db.execute("SELECT value FROM fact WHERE key='schema'").fetchone()[0])
        if version != SCHEMA_VERSION:
            fix = "upgrade Couloir" if version > SCHEMA_VERSION else "finish the run with the version that began it, or start anew"
            raise StoreError(f"{self.path} has schema {version}, this Couloir knows {SCHEMA_VERSION}", fix)

    @contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "full" in text:
                fix = "free some space and run again; nothing committed is lost"
                raise StoreError(f"cannot {action} {self.path}: the disk is full", fix) from error
            if "not a database" in text or "malformed" in text or "no such table" in text:
                fix = "restore it from a backup, or move it away to start anew"
                raise StoreError(f"cannot {action} {self.path}: not a Couloir store, or damaged ({text})", fix) from error
            raise StoreError(f"cannot {action} {self.path}: {text}", "check that the folder exists and may be written") from error

    def append(self, chunks: Mapping[str, Mapping[str, npt.NDArray[Any]]], *, replace: Collection[str] = ()) -> None:
        """Append one chunk to each of the named series, all or nothing.

        Parameters
        ----------
        replace : which of them lose all chunks that they had; what is removed leaves room for what is written next.

        Raises
        ------
        DataError : an array holds something other than numbers or truth values.
        StoreError : the disk is full, or the file cannot be written.
        """
        rows = [(name, name, _pack(arrays)) for name, arrays in chunks.items()]
        with self._guard("write to"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("DELETE FROM chunk WHERE series = ?", [(name,) for name in replace])
                self._db.executemany(
                    "INSERT INTO chunk VALUES (?, (SELECT COALESCE(MAX(number) + 1, 0) FROM chunk WHERE series = ?), ?)", rows
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def count(self, series: str) -> int:
        """Return how many chunks a series has (0 when there is no such series)."""
        with self._guard("read"):
            return int(self._db.execute("SELECT COUNT(*) FROM chunk WHERE series = ?", (series,)).fetchone()[0])

    def chunks(self, series: str) -> Iterator[Arrays]:
        """Yield the chunks of a series in the order they were appended."""
        for number in range(self.count(series)):
            yield self.chunk(series, number)

    def chunk(self, series: str, number: int) -> Arrays:
        """Return one chunk; negative numbers count from the end.  Raises StoreError when there is none."""
        number = number if number >= 0 else self.count(series) + number
        with self._guard("read"):
            row = self._db.execute("SELECT arrays FROM chunk WHERE series = ? AND number = ?", (series, number)).fetchone()
        if row is None:
            raise StoreError(f"{self.path} has no chunk {number} of {series!r}")
        return _unpack(row[0], self.path, series)

    def series(self, prefix: str = "") -> list[str]:
        """Return the sorted names of the series that start with ``prefix``."""
        with self._guard("read"):
            rows = self._db.execute("SELECT DISTINCT series FROM chunk ORDER BY series").fetchall()
        return [name for (name,) in rows if name.startswith(prefix)]

    def __setitem__(self, key: str, value: Any) -> None:
        with self._guard("write to"):
            self._db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", ("user:" + key, json.dumps(value)))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the JSON fact stored under ``key``, or ``default``."""
        with self._guard("read"):
            row = self._db.execute("SELECT value FROM fact WHERE key = ?", ("user:" + key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def digest(self, prefix: str = "") -> str:
        """Return a SHA-256 of every array, name and order under ``prefix``: equal digests, equal contents byte for byte."""
        total = hashlib.sha256()
        for name in self.series(prefix):
            for arrays in self.chunks(name):
                for key in sorted(arrays):
                    total.update(f"{name}/{key}/{arrays[key].dtype}/{arrays[key].shape}".encode())
                    total.update(np.ascontiguousarray(arrays[key]).tobytes())
        return total.hexdigest()

    def close(self) -> None:
        """Close the file; everything committed stays."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def text_array(value: Any) -> npt.NDArray[np.uint8]:
    """Return JSON-able ``value`` as an array that a chunk can hold."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def text_value(array: npt.NDArray[np.uint8]) -> Any:
    """Return what :func:`text_array` was given."""
    return json.loads(array.tobytes().decode())


def _pack(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    for name, array in arrays.items():
        if np.asarray(array).dtype.kind not in "biuf" or np.asarray(array).dtype.itemsize > 8:
            raise DataError(f"the array {name!r} holds {np.asarray(array).dtype}, not numbers", "store text by text_array")
    # The format sorts its tensors; numbered names keep the order.
    body: bytes = save({f"{i:04d}{name}": np.asarray(array, order="C") for i, (name, array) in enumerate(arrays.items())})
    return zlib.crc32(body).to_bytes(_CHECKSUM) + body


def _unpack(blob: bytes, path: Path | None, series: str) -> Arrays:
    body = blob[_CHECKSUM:]
    if zlib.crc32(body).to_bytes(_CHECKSUM) != blob[:_CHECKSUM]:
        raise StoreError(f"a chunk of {series!r} in {path} is damaged", "restore the store from a backup")
    return {name[4:]: array for name, array in sorted(load(body).items())}
