"""The tree of a chain of paths: what each accepted path keeps of the one before, and what was run anew from where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from couloir.sampling.path_moves import Direction, Trial
from couloir.sampling.path_store import PathLog, bare
from couloir.store import Store
from couloir.trajectory import Trajectory

Span = tuple[int, int]
"""The first frame, and one beyond the last."""


@dataclass(frozen=True)
class Branch:
    """One path of a chain, placed so that frames that it shares with others lie at the same number.

    Attributes
    ----------
    step : that made it; 0 for the path that the chain was started from.
    begin : number of its first frame; frame 0 is the first one of the chain's first path.
    length : frames.
    shooting : frame of this path that was shot from; -1 where nothing was.
    direction : in which direction of time dynamics was run; None where nothing was.
    kept : frames of this path that are those of the path before; empty for a two-way shot, whose velocities are new throughout.
    original : frames of this path that are still those of the first path; positions alone count, as for decorrelation.
    """

    step: int
    begin: int
    length: int
    shooting: int
    direction: Direction | None
    kept: Span
    original: Span

    def grow(self, trial: Trial, step: int) -> Branch:
        """Return the path that an accepted trial makes of this one."""
        assert trial.path is not None
        length, shift = len(trial.path), trial.frame_new - trial.frame_old
        kept = (0, 0)
        if trial.shared is not None:
            kept = (trial.shared[0] + shift, trial.shared[1] + 1 + shift)
        same = kept if trial.shared is not None else (trial.frame_new, trial.frame_new + 1) if trial.frame_old >= 0 else (0, 0)
        first, end = max(same[0], self.original[0] + shift), min(same[1], self.original[1] + shift)
        original = (first, end) if first < end else (0, 0)
        return Branch(step, self.begin - shift, length, trial.frame_new, trial.direction, kept, original)


def path_tree(first: Trajectory, trials: Iterable[Trial]) -> Iterator[Branch]:
    """Yield the first path of a chain and every path that it was at afterwards.

    Parameters
    ----------
    trials : of the chain, one per step from the first on; the rejected ones are only counted.
    """
    branch = Branch(0, 0, len(first), -1, None, (0, 0), (0, len(first)))
    yield branch
    for step, trial in enumerate(trials, start=1):
        if trial.accepted:
            branch = branch.grow(trial, step)
            yield branch


def stored_tree(store: Store, name: str, starts: Sequence[Trajectory], *, chain: int = 0, most: int = 40) -> list[Branch]:
    """Return the first path of a chain and its first accepted ones, at most ``most``, from what path sampling wrote down.

    Parameters
    ----------
    name : prefix of the series, such as ``"paths"``.
    starts : the paths that the chains were started from, one per chain.

    Raises
    ------
    StoreError : steps are stored out of order.
    """
    tree: list[Branch] = []
    plan = store.get(f"{name}/plan")
    for branch in path_tree(starts[chain], _of_chain(PathLog(store, name, plan), starts, chain) if plan is not None else ()):
        tree.append(branch)
        if len(tree) > most:
            break
    return tree


def _of_chain(log: PathLog, starts: Sequence[Trajectory], chain: int) -> Iterator[Trial]:
    paths = list(starts)
    for trials in log.replay(paths):
        for c, trial in enumerate(trials):
            if trial.path is not None:
                paths[c] = bare(trial.path)
        yield trials[chain]
