"""What tests of whole chains share: run files of a molecule, ways to complete a run and to break it off."""

import pytest
from run_files import couloir, edited

from couloir.pipeline import execute
from couloir.run import Run
from couloir.store import Store

MOLECULE = """
seed = 5
[system]
name = "alanine_dipeptide"
solvent = "vacuum"
[engine]
platform = "Reference"
workers = 1
[cv.phi]
type = "phi"
residue = 2
[cv.slow]
type = "diffusion_map"
features = ["torsions"]
landmarks = 60
[explore]
duration = "30 ps"
stride = "0.1 ps"
[model]
label = "slow"
steps = 20
width = 16
depth = 1
[umbrella]
along = "slow"
windows = 3
seeds_per_window = 1
duration = "1 ps"
record_stride = "0.02 ps"
[surface]
along = ["slow", "phi"]
bins = 12
bootstrap = 2
"""
PHI = edited(
    MOLECULE[: MOLECULE.index("[cv.slow]")] + MOLECULE[MOLECULE.index("[explore]") :],
    ('label = "slow"', 'label = "phi"'),
    ('along = "slow"', 'along = "phi"'),
    ('along = ["slow", "phi"]', 'along = "phi"'),
)


def completed(folder, text, name="a"):
    """Run a run file to its end and return its run directory."""
    file = folder / f"{name}.toml"
    file.write_text(text)
    assert couloir("run", file) == 0
    return file.with_suffix(".run")


def digests(run):
    with Store(run / "store.db", read_only=True) as store:
        return {prefix: store.digest(prefix) for prefix in ("explore", "frontier", "seeds", "umbrella")}


class Stop(Exception):
    """What interrupts a run in this process."""


def break_off_training(monkeypatch, file, after):
    """Run until training has written ``after`` checkpoints, then break off."""
    from couloir.generative import training

    save, count = training.save_tensors, iter(range(after))

    def failing(*arguments):
        save(*arguments)
        if next(count, None) is None:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_tensors", failing)
        with Run.create(file) as run, pytest.raises(Stop):
            execute(run, say=lambda text: None)
