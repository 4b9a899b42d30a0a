"""What ``paths.committor`` asks for: how often candidates for transition states, taken from paths, go on to B before A."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from couloir.cv import CollectiveVariable, Region
from couloir.errors import DataError, Finding
from couloir.run import Run
from couloir.sampling.committors import committor
from couloir.store import text_array, text_value
from couloir.streams import integer_seed
from couloir.trajectory import Array, Trajectory

if TYPE_CHECKING:
    import pandas as pd

    from couloir.analysis.path_ensemble import PathEnsemble

TARGET = 0.1
"""Standard error that every p_B is shot to."""
NEAR_HALF = 0.25
"""A candidate counts as a transition state when its p_B is this near to 1/2 or nearer."""
_SERIES, _STAGE = "transition-states", "committor"


@dataclass(frozen=True, eq=False)
class Candidates:
    """Structures from which shots were made.

    Attributes
    ----------
    positions : (n, n_atoms, n_dim) nm.
    p, standard_error : (n,) the share of shots that reached B before A, NaN where none finished.
    n_shots : (n,) how many were made.
    force_evaluations : steps of dynamics that were spent.
    boxes : (n, 3, 3) nm; None where the system has none.
    findings : where the answer is doubtful.
    """

    positions: Array
    p: Array
    standard_error: Array
    n_shots: npt.NDArray[np.int64]
    force_evaluations: int
    boxes: Array | None = None
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.p)

    @property
    def transition_states(self) -> npt.NDArray[np.int64]:
        """Which of them have p_B between 1/4 and 3/4."""
        return np.flatnonzero(np.abs(self.p - 0.5) <= NEAR_HALF)

    def to_dataframe(self, cvs: Mapping[str, CollectiveVariable]) -> pd.DataFrame:
        """Return one row per structure: the value of every CV, then what the shots say."""
        import pandas as pd

        values = {name: cv.evaluate(self.positions) for name, cv in cvs.items()}
        return pd.DataFrame({**values, "p_B": self.p, "standard_error": self.standard_error, "n_shots": self.n_shots})


def shoot_candidates(
    run: Run, engine: Any, paths: PathEnsemble, a: Region, b: Region, cvs: Mapping[str, CollectiveVariable], say: Callable[[str], None]
) -> None:
    """Shoot from as many candidates as the run file asks for, unless the store has them, and write ``results``.

    Candidates follow from the paths, so shots are made again when there are more paths or more candidates are asked for.
    Every batch of shots is in the store when it is done, so an interrupted run goes on with the next one.

    Parameters
    ----------
    say : told in one line what came of it.
    """
    table = run.config.paths
    assert table is not None
    if table.committor is None:
        run.note_findings(_STAGE, [])
        return
    asked = [table.committor, paths.n_steps]
    stored = run.store.chunk(_SERIES, -1) if run.store.count(_SERIES) else None
    if stored is None or stored["asked"].tolist() != asked:
        try:
            states = paths.transition_states(table.committor)
        except DataError as error:
            finding = Finding("no-candidates", f"no candidates for transition states: {error.message}", "sample more paths")
            run.note_findings(_STAGE, [finding])
            say(str(finding))
            return
        result = committor(
            engine, states, a, b, standard_error=TARGET, stride=paths.stride, seed=integer_seed(run.config.seed, _STAGE),
            # other candidates have other shots
            store=run.store, name=f"{_SERIES}/{table.committor}-of-{paths.n_steps}",
        )  # fmt: skip
        arrays: dict[str, Any] = {
            "asked": np.array(asked, dtype=np.int64), "positions": np.array([state.positions for state in states]),
            "p": result.p, "standard_error": result.standard_error, "n_shots": result.n_shots,
            "evaluations": np.array([result.force_evaluations], dtype=np.int64),
            "findings": text_array([[w.code, w.message, w.fix] for w in result.warnings]),
        }  # fmt: skip
        boxes = [state.box for state in states if state.box is not None]
        if len(boxes) == len(states):
            arrays["boxes"] = np.array(boxes)
        run.store.append({_SERIES: arrays})
    found = stored_candidates(run)
    assert found is not None
    run.note_findings(_STAGE, found.findings)
    _write(run, engine, found, cvs)
    say(f"committor: {len(found)} candidates, {len(found.transition_states)} with p_B between 1/4 and 3/4")


def stored_candidates(run: Run) -> Candidates | None:
    """Return the candidates that shots were last made from; None where there are none, or none are asked for."""
    if run.config.paths is None or run.config.paths.committor is None or not run.store.count(_SERIES):
        return None
    data = run.store.chunk(_SERIES, -1)
    kept = {name: data[name] for name in ("positions", "p", "standard_error", "n_shots")}
    findings = tuple(Finding(*row) for row in text_value(data["findings"]))
    return Candidates(**kept, force_evaluations=int(data["evaluations"][0]), boxes=data.get("boxes"), findings=findings)


def _write(run: Run, engine: Any, found: Candidates, cvs: Mapping[str, CollectiveVariable]) -> None:
    """Write what the store holds to ``results``: a table, the structures, and those near p_B = 1/2 of a molecule as PDB."""
    results = run.path / "results"
    found.to_dataframe(cvs).to_csv(results / "committor.csv", index=False)
    arrays: dict[str, Any] = {"positions": found.positions, "p": found.p, "standard_error": found.standard_error, "n_shots": found.n_shots}
    if found.boxes is not None:
        arrays["boxes"] = found.boxes
    np.savez_compressed(results / "transition_states.npz", **arrays)
    picture, rows = results / "transition_states.pdb", found.transition_states
    picture.unlink(missing_ok=True)  # of earlier shots
    if engine.topology is not None and len(rows):
        boxes = None if found.boxes is None else found.boxes[rows]
        Trajectory(found.positions[rows], 1.0, None, boxes, engine.topology).to_mdtraj().save_pdb(str(picture))
