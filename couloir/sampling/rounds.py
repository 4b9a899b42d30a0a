"""Rounds: in which order chunks of many walkers were run when some walkers run longer than others.

In one round every member runs one chunk, and exchange happens between members just before it.  All walkers are members
until some have all the time they were given; then the others go on without them.  Exchange among members alone leaves
the joint distribution unchanged: it samples their permutation given everything else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rounds:
    """Who took part in every round: ``entries`` (first round, its members) hold until the next entry; none: all walkers do."""

    n_walkers: int
    entries: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @classmethod
    def from_list(cls, n_walkers: int, stored: Sequence[Any] | None) -> Rounds:
        """Return what :meth:`to_list` gave; None for rounds of all walkers."""
        return cls(n_walkers, tuple((int(first), tuple(members)) for first, members in stored or ()))

    def to_list(self) -> list[Any]:
        """Return plain lists, as a store keeps them."""
        return [[first, list(members)] for first, members in self.entries]

    @cached_property
    def _spans(self) -> list[tuple[int, tuple[int, ...], Ints]]:
        """First round, members, and every walker's chunks when it begins, for each stretch of rounds with the same members."""
        begins = [entry for entry in self.entries if entry[0] == 0] or [(0, tuple(range(self.n_walkers)))]
        begins += [entry for entry in self.entries if entry[0] > 0]
        out, counts = [], np.zeros(self.n_walkers, dtype=np.int64)
        for (first, members), (end, _) in pairwise([*begins, (begins[-1][0], ())]):
            out.append((first, members, counts.copy()))
            counts[list(members)] += end - first
        return out

    def _span(self, number: int) -> tuple[int, tuple[int, ...], Ints]:
        return self._spans[bisect_right(self._spans, number, key=lambda span: span[0]) - 1]

    def members(self, number: int) -> tuple[int, ...]:
        """Return the walkers that take part in round ``number``."""
        return self._span(number)[1]

    def chunks_before(self, number: int) -> Ints:
        """Return how many chunks each walker has when round ``number`` begins, (n_walkers,)."""
        first, members, counts = self._span(number)
        out = counts.copy()
        out[list(members)] += number - first
        return out

    def current(self, done: Sequence[int]) -> int:
        """Return the first round that some member has not finished, given every walker's chunks."""
        ends = [*(first for first, _, _ in self._spans[1:]), None]
        for (first, members, counts), end in zip(self._spans, ends, strict=True):
            finished = first + int((np.asarray(done) - counts)[list(members)].min())
            if end is None or finished < end:
                return finished
        raise AssertionError("the last stretch has no end")

    def then(self, number: int, members: Sequence[int]) -> Rounds:
        """Return these rounds with other members from round ``number`` on."""
        kept = tuple(entry for entry in self.entries if entry[0] < number)
        before = Rounds(self.n_walkers, kept)
        if number > 0 and before.members(number) == tuple(members):
            return before
        return Rounds(self.n_walkers, (*kept, (number, tuple(members))))
