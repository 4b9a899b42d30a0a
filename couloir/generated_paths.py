"""Paths that a model generated for the first paths of a run: kept with their scores in the store, and written to ``results/``."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from couloir.run import Run
    from couloir.sampling.reactive import ReactiveSeeds
    from couloir.store import Arrays

_SERIES = "first-paths/generated"


def keep_generated(run: Run, found: ReactiveSeeds, model: Any) -> None:
    """Keep generated paths in the store, unless it has them, and write ``results/generated_paths.npz`` and ``.csv``.

    The npz holds ``positions`` (n, frames, n_kept, 3), ``stride`` in ps, ``atoms`` (n_kept,) where the model generates some only, every
    score (n,), ``energies`` (n, frames) and ``passed_GATE`` (n,); the table has a row for each path with the gates it failed.
    """
    from couloir.generative.checkpoint import write_atomic

    scores = found.scores
    assert scores is not None, "first paths are scored against the dynamics that was learned from"
    if not run.store.count(_SERIES):
        calls = np.array(found.counts["network calls"])
        run.store.append({_SERIES: {"positions": found.generated, "passed": scores.passed_all, "network_calls": calls}})
    results = run.path / "results"
    results.mkdir(exist_ok=True)
    table = scores.to_dataframe()
    write_atomic(results / "generated_paths.csv", table.to_csv(index_label="path").encode())
    atoms = getattr(model.representation, "atoms", None)
    arrays = {name: table[name].to_numpy() for name in table if name != "failed"} | {"energies": scores.energies}
    arrays |= {f"passed_{gate}": ok for gate, ok in scores.passed.items()} | ({} if atoms is None else {"atoms": atoms})
    content = io.BytesIO()
    np.savez(content, positions=found.generated, stride=model.stride, **arrays)
    write_atomic(results / "generated_paths.npz", content.getvalue())


def stored_generated(run: Run) -> Arrays | None:
    """Return ``positions`` (n, frames, n_kept, 3), ``passed`` (n,) and ``network_calls`` of the generated paths; None without any."""
    return run.store.chunk(_SERIES, 0) if run.store.count(_SERIES) else None
