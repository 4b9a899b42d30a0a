"""Whole chains from a run file to surfaces: discovered CVs, frontier rounds, two dimensions, targets, a break between stages."""

import re

import numpy as np
import pytest
from chain_files import MOLECULE, PHI, Stop, break_off_training, completed, digests
from run_files import couloir, edited

from couloir.analysis import FreeEnergySurface
from couloir.analysis.samples import BiasedSamples
from couloir.cv import Dihedral, FunctionCV
from couloir.pipeline import execute
from couloir.run import Run
from couloir.sampling import systems
from couloir.sampling.openmm_engine import OpenMMEngine
from couloir.sampling.potentials import double_well, mueller_brown
from couloir.sampling.umbrella import UmbrellaSampling
from couloir.store import Store

WELL = """
seed = 3
[system]
name = "double_well"
parameters = { barrier = 2.0, harmonic = 20.0 }
[engine]
time_step = 0.005
workers = 1
[cv.x]
type = "coordinate"
index = 0
[cv.slow]
type = "diffusion_map"
features = ["coordinates"]
landmarks = 100
[cv.slope]
type = "linear"
of = ["x", "slow"]
coefficients = [1.0, 1.0]
[explore]
duration = "400 ps"
stride = 0.2
[model]
label = "slow"
steps = 150
width = 24
depth = 2
[umbrella]
along = "slow"
windows = 5
seeds_per_window = 1
duration = "100 ps"
record_stride = 0.1
[surface]
along = ["slow", "x", "slope"]
bins = 24
bootstrap = 40
[surface.basins]
left = "slow < 0"
right = "slow > 0"
"""


def fact(run, key, default=None):
    with Store(run / "store.db", read_only=True) as store:
        return store.get(key, default)


def assert_agrees(surface, exact, sigmas=5.0, slack=0.15, cells=0.3):
    """Every well sampled cell below 5 kT lies within ``sigmas`` standard errors (and the bin's curvature) of the exact surface."""
    exact = np.asarray(exact)
    use = np.isfinite(surface.standard_error) & (exact - exact.min() < 5 * surface.kT) & (surface.n_effective > 15)
    assert use.sum() >= cells * use.size
    delta = surface.free_energy - exact
    delta -= np.average(delta[use], weights=np.exp(-exact[use] / surface.kT))
    np.testing.assert_array_less(np.abs(delta[use]), sigmas * surface.standard_error[use] + slack * surface.kT)


def interrupted(file, pattern):
    """Run until it says something that matches ``pattern``, then break off."""

    def say(text):
        if re.search(pattern, text):
            raise Stop

    with Run.create(file) as run, pytest.raises(Stop):
        execute(run, say=say)


# -- discovered CVs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def discovered(tmp_path_factory):
    return completed(tmp_path_factory.mktemp("discovered"), WELL)


def test_a_discovered_cv_is_biased_over_the_range_that_was_explored_and_gives_the_exact_surface(discovered):
    surface = FreeEnergySurface.load(discovered / "results/free_energy_x.npz")
    assert_agrees(surface, double_well(2.0, 20.0).exact_free_energy(surface.grid[0]))
    slow = FreeEnergySurface.load(discovered / "results/free_energy_slow.npz")
    assert np.isfinite(slow.free_energy).sum() > 15
    samples = BiasedSamples.load(discovered / "results/samples.npz")
    centers = [bias.centers[0] for bias in samples.biases]
    assert centers == sorted(centers)
    assert centers[0] < -0.8
    assert centers[-1] > 0.8
    assert fact(discovered, "explored-range/slow") == pytest.approx([centers[0], centers[-1]])


def test_a_cv_made_of_a_discovered_one_is_recorded_and_its_surface_made(discovered):
    samples = BiasedSamples.load(discovered / "results/samples.npz")
    columns = {name: samples.values[:, samples.column(name)] for name in ("x", "slow", "slope")}
    np.testing.assert_allclose(columns["slope"], columns["x"] + columns["slow"], atol=1e-9)
    assert np.isfinite(FreeEnergySurface.load(discovered / "results/free_energy_slope.npz").free_energy).sum() > 15


def test_status_report_and_export_know_the_discovered_cv(discovered, capsys):
    for command in ("status", "report", "export"):
        assert couloir(command, discovered) == 0
    assert "could not" not in (discovered / "report.html").read_text()
    fields = (discovered / "export/umbrella_w0002_000.colvar").read_text().splitlines()[0]
    assert fields.split()[2:6] == ["time", "slow", "x", "slope"]
    assert "Diffusion map of 2000 frames" in (discovered / "run.log").read_text()


def test_a_discovered_cv_may_be_the_only_one(tmp_path):
    text = WELL[: WELL.index("[cv.x]")] + WELL[WELL.index("[cv.slow]") : WELL.index("[cv.slope]")] + WELL[WELL.index("[explore]") :]
    quick = (('along = ["slow", "x", "slope"]', 'along = "slow"'), ('"100 ps"', '"5 ps"'), ("bootstrap = 40", "bootstrap = 2"))
    run = completed(tmp_path, edited(text, *quick))
    assert FreeEnergySurface.load(run / "results/free_energy_slow.npz").names == ("slow",)
    assert couloir("report", run) == 0


def test_without_range_and_without_data_the_missing_range_is_named(tmp_path, capsys):
    text = edited(WELL, ('label = "slow"', 'label = "x"'), ('along = "slow"', 'along = "x"\nseeding = "dragged"'))
    text = text[: text.index("[explore]")] + text[text.index("[umbrella]") :]
    (tmp_path / "a.toml").write_text(text)
    assert couloir("run", tmp_path / "a.toml") == 2
    told = capsys.readouterr().err
    assert "umbrella.range is missing" in told
    assert "add range = [low, high]" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('along = "slow"', 'along = "x"'), "model.label = 'slow' is not among umbrella.along = ['x']"),
        (("windows = 5", 'windows = 5\nfrontier = true\nseeding = "dragged"'), 'seeding = "dragged" uses none'),
        (("windows = 5", "windows = [5, 5]"), "umbrella.along has 1 CVs, windows 2"),
        (('left = "slow < 0"', 'left = "slw < 0"'), "did you mean 'slow'?"),
        (('of = ["x", "slow"]', 'of = ["x", "slw"]'), "[cv.slope]: it is made of the unknown CV 'slw'"),
    ],
)  # fmt: skip
def test_what_cannot_work_with_a_discovered_cv_is_told_before_anything_is_computed(tmp_path, capsys, change, told):
    (tmp_path / "a.toml").write_text(edited(WELL, change))
    assert couloir("run", tmp_path / "a.toml") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "a.run/store.db").exists() or not Store(tmp_path / "a.run/store.db").series()


@pytest.fixture(scope="module")
def peptide(tmp_path_factory):
    return completed(tmp_path_factory.mktemp("peptide"), MOLECULE)


def test_a_molecule_is_biased_along_a_diffusion_map_of_its_torsions(peptide):
    samples = BiasedSamples.load(peptide / "results/samples.npz")
    assert samples.names == ("slow", "phi")
    means = [samples.values[samples.window == w, 0].mean() for w in range(3)]
    assert means[2] - means[0] > 0.5
    with Store(peptide / "store.db", read_only=True) as store:
        assert sorted(set(store.chunk("seeds", -1)["windows"].tolist())) == [0, 1, 2]


def test_two_workers_bias_a_molecule_along_a_diffusion_map_exactly_as_one_does(peptide, tmp_path):
    run = completed(tmp_path, edited(MOLECULE, ("workers = 1", "workers = 2")))
    assert digests(run) == digests(peptide)


# -- frontier rounds ------------------------------------------------------------------------------------------------

FRONTIER = edited(
    WELL[: WELL.index("[cv.slow]")] + WELL[WELL.index("[cv.slope]") : WELL.index("[surface]")],
    ('of = ["x", "slow"]\ncoefficients = [1.0, 1.0]', 'of = ["x", "y"]\ncoefficients = [1.0, 0.3]'),
    ("[cv.slope]", '[cv.y]\ntype = "coordinate"\nindex = 1\n[cv.slope]'),
    ("barrier = 2.0", "barrier = 8.0"),
    ('label = "slow"', 'label = "slope"'),
    ('along = "slow"', 'along = "slope"\nrange = [-1.2, 1.2]\nforce_constant = 60.0\nfrontier = true'),
    ('"400 ps"', '"40 ps"'),
    ('"100 ps"', '"10 ps"'),
)  # fmt: skip


@pytest.fixture(scope="module")
def frontier(tmp_path_factory):
    return completed(tmp_path_factory.mktemp("frontier"), FRONTIER)


def test_frontier_rounds_of_a_label_that_cannot_be_imposed_reach_every_window(frontier, capsys):
    with Store(frontier / "store.db", read_only=True) as store:
        explored = np.concatenate([chunk["values"] for chunk in store.chunks("explore/x000")])[:, -1]
        rounds = [chunk["positions"] for chunk in store.chunks("frontier")]
        assert sorted(set(store.chunk("seeds", -1)["windows"].tolist())) == [0, 1, 2, 3, 4]
    side = float(np.sign(explored.mean()))
    assert np.ptp(np.sign(explored[np.abs(explored) > 0.5])) == 0
    assert len(rounds) >= 1
    reached = np.concatenate(rounds)[:, 0]
    slope = reached[:, 0] + 0.3 * reached[:, 1]
    assert (side * slope).min() < -0.9
    assert "frontier-stopped" not in (frontier / "report.html").read_text()


def test_a_run_broken_off_between_frontier_rounds_and_in_training_ends_the_same(frontier, tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text(FRONTIER)
    interrupted(tmp_path / "a.toml", "frontier round 1")
    break_off_training(monkeypatch, tmp_path / "a.toml", after=7)
    assert digests(completed(tmp_path, FRONTIER)) == digests(frontier)
    assert (tmp_path / "a.run/model/weights.safetensors").read_bytes() == (frontier / "model/weights.safetensors").read_bytes()


def test_windows_too_soft_to_hold_the_barrier_stop_the_frontier_and_are_reported(tmp_path, capsys):
    run = completed(tmp_path, edited(FRONTIER, ("force_constant = 60.0", "force_constant = 2.0"), ("steps = 150", "steps = 20")))
    rounds = re.findall(r"frontier round (\d+): (\d) of 5 windows hold data", capsys.readouterr().out)
    assert len(rounds) >= 3
    assert rounds[-1][1] == rounds[-3][1] != "5"
    assert couloir("status", run) == 0
    assert "frontier-stopped" in capsys.readouterr().out
    assert "frontier-stopped" in (run / "report.html").read_text()


def test_frontier_rounds_carry_a_molecule_around_phi(tmp_path):
    run = completed(tmp_path, edited(PHI, ("windows = 3", "windows = 4\nfrontier = true"), ("steps = 20", "steps = 200")))
    phi = Dihedral.phi(systems.alanine_dipeptide().topology, residue=2)
    with Store(run / "store.db", read_only=True) as store:
        explored = np.concatenate([chunk["positions"] for chunk in store.chunks("explore/x000")]).astype(float)
        reached = np.concatenate([chunk["positions"] for chunk in store.chunks("frontier")]).astype(float)
    quadrants = [set((phi.evaluate(x) // (np.pi / 2)).astype(int).tolist()) for x in (explored, reached)]
    assert len(quadrants[0]) < 4
    assert quadrants[0] | quadrants[1] == {-2, -1, 0, 1}


# -- two dimensions, targets ----------------------------------------------------------------------------------------

PLANE = """
seed = 2
[system]
name = "mueller_brown"
[engine]
kT = 15.0
time_step = 0.00004
[cv.x]
type = "coordinate"
index = 0
[cv.y]
type = "coordinate"
index = 1
[umbrella]
along = ["x", "y"]
windows = [5, 4]
range = [[-1.3, 0.9], [-0.2, 1.6]]
seeding = "dragged"
seeds_per_window = 1
duration = "10 ps"
[surface]
along = [["x", "y"], "x"]
bins = 20
bootstrap = 30
"""


def test_windows_in_two_dimensions_give_the_exact_surface(tmp_path):
    run = completed(tmp_path, PLANE)
    assert len(BiasedSamples.load(run / "results/samples.npz").biases) == 20
    surface = FreeEnergySurface.load(run / "results/free_energy_x_y.npz")
    # Cells are wide on this scale, so the exact surface is averaged over each.
    fine = tuple((x[:, None] + (x[1] - x[0]) * (np.arange(8) - 3.5) / 8).ravel() for x in surface.grid)
    weight = np.exp(-mueller_brown().exact_free_energy(fine, along=("x", "y"), kT=15.0) / 15.0)
    n = len(surface.grid[0])
    exact = -15.0 * np.log(weight.reshape(n, 8, n, 8).mean(axis=(1, 3)))
    assert_agrees(surface, exact, cells=0.05)
    profile = FreeEnergySurface.load(run / "results/free_energy_x.npz")
    assert_agrees(profile, mueller_brown().exact_free_energy(profile.grid[0], along="x", kT=15.0))


def test_a_model_labelled_by_every_coordinate_is_refused_and_one_label_is_enough(tmp_path, capsys):
    learn = '[explore]\nduration = "4 ps"\nstride = 0.02\n[model]\nsteps = 20\n[umbrella]'
    modelled = edited(PLANE, ('seeding = "dragged"\n', ""), ("[umbrella]", learn))
    (tmp_path / "a.toml").write_text(modelled)
    assert couloir("run", tmp_path / "a.toml") == 2
    told = capsys.readouterr().err
    assert "the labels x, y are all the coordinates there are" in told
    assert 'model.label = "x"' in told
    run = completed(tmp_path, edited(modelled, ("[model]", '[model]\nlabel = "x"'), ('"10 ps"', '"1 ps"')))
    with Store(run / "store.db", read_only=True) as store:
        assert len(set(store.chunk("seeds", -1)["windows"].tolist())) == 20


TARGET = edited(
    PLANE,
    ('along = ["x", "y"]\nwindows = [5, 4]\nrange = [[-1.3, 0.9], [-0.2, 1.6]]', 'along = "y"\nwindows = 6\nrange = [-0.2, 1.6]'),
    ('along = [["x", "y"], "x"]', 'along = "y"'),
)


def test_sampling_stops_when_the_error_asked_for_is_reached(tmp_path, capsys):
    run = completed(tmp_path, edited(TARGET, ('duration = "10 ps"', 'until = "1.0 kT"')))
    told = re.findall(r"at most ([\d.]+) ps per walker: largest standard error below 8 kT is ([\d.]+|inf) kT", capsys.readouterr().out)
    assert all(float(error) > 1.0 for _, error in told[:-1])
    assert float(told[-1][1]) <= 1.0
    samples = BiasedSamples.load(run / "results/samples.npz")
    assert samples.time.max() == pytest.approx(float(told[-1][0]), rel=0.02)
    assert "target-not-reached" not in (run / "report.html").read_text()
    before = digests(run)
    assert digests(completed(tmp_path, (tmp_path / "a.toml").read_text())) == before


def test_a_target_out_of_reach_is_a_finding_until_it_is_reached(tmp_path, capsys):
    text = edited(TARGET, ('duration = "10 ps"', 'until = "0.05 kT"\nmax_duration = "6 ps"'))
    run = completed(tmp_path, text)
    assert BiasedSamples.load(run / "results/samples.npz").time.max() == pytest.approx(6.0)
    assert couloir("status", run) == 0
    assert "[target-not-reached]" in capsys.readouterr().out
    assert "target-not-reached" in (run / "report.html").read_text()
    completed(tmp_path, text.replace("0.05 kT", "4 kT"))
    report = (run / "report.html").read_text()
    assert "target-not-reached" not in report
    assert "partial: the run is not finished" not in report


# -- CVs written by the user ----------------------------------------------------------------------------------------


def end_to_end(x):
    """Distance of two atoms, in torch."""
    return (x[:, 0] - x[:, 1]).norm(dim=1)


@pytest.mark.parametrize("kind", ["function of a module", "closure"])
def test_a_python_function_is_recorded_biased_and_a_label(tmp_path, kind):
    from couloir.analysis import free_energy_surface
    from couloir.cv import Distance
    from couloir.generative import ConditionalSGM, InternalCoordinates, TrainingPlan
    from couloir.sampling import seed_windows

    scale = 1.0
    function = end_to_end if kind == "function of a module" else lambda x: scale * (x[:, 0] - x[:, 1]).norm(dim=1)
    atoms = (4, 16)
    mine, same = FunctionCV(function, "mine", "nm", atoms=atoms), Distance(atoms=atoms, name="same")
    molecule = systems.alanine_dipeptide(solvent="vacuum")
    engine = OpenMMEngine(molecule, platform="Reference", workers=2)
    (md,) = engine.propagate(engine.minimize(molecule.state), duration="10 ps", stride="0.1 ps", record=[mine, same], seed=1)
    np.testing.assert_allclose(md.series.values[:, 0], md.series.values[:, 1], atol=1e-12)
    untrained = ConditionalSGM(InternalCoordinates(molecule.topology), label=mine, width=16, depth=1)
    model = untrained.fit(md, seed=1, plan=TrainingPlan(steps=20))
    model.save(tmp_path / "model")
    model = ConditionalSGM.load(tmp_path / "model", label=mine)
    windows = UmbrellaSampling.grid(mine, 2, 2000.0, range=(0.44, 0.54))
    seeds = seed_windows(model, engine, windows, 1, seed=1, oversample=1, thermalization="0.1 ps", fallback={0: [molecule.state]})
    samples = windows.run(engine, seeds, "0.4 ps", seed=1, record=[same], record_stride="4 fs", store=Store(tmp_path / "store.db"))
    np.testing.assert_allclose(samples.values[:, 0], samples.values[:, 1], atol=1e-12)
    means = [samples.values[(samples.window == w) & (samples.time > 0.2), 0].mean() for w in (0, 1)]
    assert means[1] - means[0] > 0.04
    native = UmbrellaSampling.grid(same, 2, 2000.0, range=(0.44, 0.54))
    native = native.run(engine, seeds, "8 fs", seed=1, record=[mine], record_stride="4 fs")
    mine_first = samples.values[np.isclose(samples.time, 0.004) | np.isclose(samples.time, 0.008), 0]
    np.testing.assert_allclose(native.values[:, 0], mine_first, atol=1e-6)
    assert np.isfinite(free_energy_surface(samples, along=mine, bins=5, n_bootstrap=2).free_energy).any()
