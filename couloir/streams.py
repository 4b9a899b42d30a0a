"""Random streams: one seed for a run, an independent stream for every window, chain, shot and training.

``stream(seed, "window", 3, "chunk", 7)`` is a pure function of its arguments, so results do not depend on the order
in which parallel work finishes, and a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import zlib

import numpy as np


def _sequence(seed: int, key: tuple[int | str, ...]) -> np.random.SeedSequence:
    path = tuple(zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in key)
    return np.random.SeedSequence(entropy=int(seed), spawn_key=path)


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """Return the generator that belongs to ``key`` (names and indices) under ``seed``."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, key)))


def integer_seed(seed: int, *key: int | str) -> int:
    """Return a seed in 1 ... 2**31 - 2 for libraries that take an integer (0 means 'random' to OpenMM)."""
    return int(_sequence(seed, key).generate_state(1)[0] % (2**31 - 2)) + 1
