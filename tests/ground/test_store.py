"""The store keeps what was committed, whatever happens to the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from couloir.errors import DataError, StoreError
from couloir.store import Store, text_array, text_value

WRITER = """
import sys, numpy as np
from couloir.store import Store
store = Store(sys.argv[1])
for i in range(store.count("a"), 10**6):
    store.append({"a": {"x": np.full(100, i)}, "b": {"y": np.arange(i % 7)}})
    print(i, flush=True)
"""


def test_chunks_come_back_in_order_and_series_are_apart(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db")
    store.append({"w/0": {"x": np.arange(3.0), "n": np.array(7)}})
    store.append({"w/0": {"x": np.arange(2.0)}, "w/1": {"x": np.ones((2, 2), dtype=np.float32)}})
    assert store.series("w/") == ["w/0", "w/1"]
    assert [len(c["x"]) for c in store.chunks("w/0")] == [3, 2]
    assert store.chunk("w/1", -1)["x"].dtype == np.float32
    store["plan"] = {"n": 3}
    assert Store(tmp_path / "s.db", read_only=True).get("plan") == {"n": 3}


def test_append_is_all_or_nothing() -> None:
    store = Store()
    with pytest.raises(DataError, match="'x' holds object, not numbers"):
        store.append({"a": {"x": np.zeros(2)}, "b": {"x": np.array([object()])}})
    assert store.series() == []


def test_arrays_come_back_with_their_types_and_shapes() -> None:
    arrays = {
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3)),
        "number": np.array(3.5),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10, dtype=np.float32)[::3],
        "text": text_array([["a", "é"], []]),
    }
    store = Store()
    store.append({"a": arrays})
    back = store.chunk("a", 0)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
        assert back[name].shape == array.shape
    assert text_value(back["text"]) == [["a", "é"], []]


def test_digest_sees_every_byte() -> None:
    first, second = Store(), Store()
    for store, last in ((first, 1.0), (second, 1.0 + 1e-15)):
        store.append({"a": {"x": np.array([0.0, last])}})
    assert first.digest() != second.digest()


def test_a_killed_writer_loses_nothing_committed(tmp_path: Path) -> None:
    path, rng = tmp_path / "s.db", np.random.default_rng(3)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        seen = int(process.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        seen = max([seen] + [int(line) for line in rest[:-1] if line])
        process.wait()
        with Store(path) as store:
            assert store.count("a") == store.count("b") > seen
            assert [int(c["x"][0]) for c in store.chunks("a")] == list(range(store.count("a")))


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_bytes(b"not a database at all, but long enough to be read as one" * 30)
    with pytest.raises(StoreError, match="not a Couloir store"):
        Store(tmp_path / "junk.db")
    with pytest.raises(StoreError, match="no store"):
        Store(tmp_path / "missing.db", read_only=True)


def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db")
    store.append({"a": {"x": np.zeros(10)}})
    store._db.execute("PRAGMA max_page_count = 10")
    with pytest.raises(StoreError, match="disk is full"):
        store.append({"a": {"x": np.zeros(10**6)}})
    assert store.count("a") == 1
