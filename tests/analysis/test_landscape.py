import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from couloir.analysis import FreeEnergySurface, landscape, minimum_free_energy_path
from couloir.errors import DataError
from couloir.sampling.potentials import mueller_brown

MINIMA = [(-0.558, 1.442), (0.623, 0.028), (-0.050, 0.467)]
SADDLES = [(-0.822, 0.624), (0.212, 0.293)]
ENERGIES = {"A": -146.700, "B": -108.167, "C": -80.768}  # of the published minima
PASSES = [-40.665, -72.249]
PERIOD = 2 * np.pi
NO_PERIODS = (None, None)


def surface_of(f, grid, periods=NO_PERIODS, kT=1.0, replicas=None, basins=None):
    f = f - np.nanmin(f)
    replicas = np.empty((0, *f.shape)) if replicas is None else replicas
    n = f.ndim
    return FreeEnergySurface(
        ("x", "y")[:n], ("nm",) * n, periods[:n], grid, f, np.zeros_like(f), kT, "exact", replicas, np.ones_like(f), basins=basins or {}
    )


def mueller(n=80, basins=None, noise=0.0, seed=0, wall=None, kT=15.0):
    grid = (np.linspace(-1.5, 1.2, n), np.linspace(-0.3, 2.0, n))
    x, y = np.meshgrid(*grid, indexing="ij")
    f = mueller_brown().energy(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(n, n)
    f = f + noise * np.random.default_rng(seed).standard_normal(f.shape)
    if wall is not None:
        f[wall(x, y)] = np.nan
    return surface_of(f, grid, kT=kT, basins=basins)


def torus(n=36, height=5.0):
    x = (np.arange(n) + 0.5) / n * PERIOD - np.pi
    a, b = np.meshgrid(x, x, indexing="ij")
    return surface_of(-height * np.cos(a + 1) * np.cos(b), (x, x), (PERIOD, PERIOD))


def double_well(n=101, tilt=0.5, noise=0.0, n_replicas=0, seed=0):
    x = np.linspace(-1.6, 1.6, n)
    f = 6 * (x**2 - 1) ** 2 + tilt * x
    rng = np.random.default_rng(seed)
    replicas = f + noise * rng.standard_normal((n_replicas, 1)) * x
    return surface_of(f, (x,), replicas=replicas)


def near(place, target, grid):
    return all(abs(p - t) <= x[1] - x[0] for p, t, x in zip(place, target, grid, strict=True))


def test_mueller_brown_has_its_published_minima_and_saddles_within_a_cell():
    surface = mueller()
    found = landscape(surface, depth=0.5)  # the intermediate lies 8.5 kJ/mol = 0.57 kT deep
    assert found.labels == ("A", "B", "C")
    for basin, place in zip(found.basins, MINIMA, strict=True):
        assert near(basin.place, place, surface.grid)
    assert [s.between for s in found.saddles] == [("B", "C"), ("A", "C")]
    for saddle, place in zip(found.saddles, SADDLES[::-1], strict=True):
        assert near(saddle.place, place, surface.grid)
    saddle = found.saddle("A", "C")
    assert saddle.heights[0].value == pytest.approx(PASSES[0] - ENERGIES["A"], abs=2.0)
    assert saddle.heights[1].value == pytest.approx(PASSES[0] - ENERGIES["C"], abs=2.0)


def test_a_basin_shallower_than_depth_belongs_to_its_neighbour_across_the_lowest_saddle():
    fine, coarse = landscape(mueller(), depth=0.5), landscape(mueller(), depth=1.0)
    assert coarse.labels == ("A", "B")
    assert np.array_equal(coarse.mask("B"), fine.mask("B") | fine.mask("C"))
    assert near(coarse.saddle("A", "B").place, SADDLES[0], mueller().grid)


def test_basin_energies_and_populations_are_those_of_the_surface():
    surface = mueller()
    found = surface.landscape(0.5)
    assert sum(b.population.value for b in found.basins) == pytest.approx(1.0)
    for basin in found.basins:
        assert basin.population.value == pytest.approx(surface.probability[found.mask(basin.label)].sum())
        assert basin.free_energy.value == pytest.approx(ENERGIES[basin.label] - ENERGIES["A"], abs=1.0)
    assert found.basin("C").depth == pytest.approx(PASSES[1] - ENERGIES["C"], abs=1.0)


def test_the_mueller_brown_path_passes_both_saddles_and_is_steepest_descent():
    path = minimum_free_energy_path(mueller(), "A", "B", n_images=100)
    assert np.allclose(path.saddles, SADDLES, atol=1e-3)
    assert np.allclose(path.images[[0, -1]], MINIMA[:2], atol=1e-3)
    for place in (*SADDLES, MINIMA[2]):
        assert np.linalg.norm(path.images - place, axis=1).min() < 0.6 * path.arc_length[1]
    assert np.allclose(np.diff(path.arc_length), path.arc_length[1], rtol=1e-2)
    assert path.barrier.value == pytest.approx(PASSES[0] - ENERGIES["A"], abs=0.25)
    assert path.reverse_barrier.value == pytest.approx(PASSES[0] - ENERGIES["B"], abs=0.25)
    gradient = mueller_brown().gradient(path.images)
    tangent = np.gradient(path.images, path.arc_length, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    aside = np.linalg.norm(gradient - (gradient * tangent).sum(axis=1, keepdims=True) * tangent, axis=1)
    assert aside.max() < 0.01 * np.linalg.norm(gradient, axis=1).max()
    assert path.perpendicular_gradient < 1e-3 * np.linalg.norm(gradient, axis=1).max()


def test_smoothing_takes_noise_off_the_path():
    surface = mueller(100, noise=3.0, seed=2)  # 0.2 kT per cell
    found = landscape(surface, depth=1.2)
    rough, smooth = (minimum_free_energy_path(surface, *found.labels, smoothing=s) for s in (0.0, 2.0))
    assert len(smooth.saddles) < len(rough.saddles)
    exact = minimum_free_energy_path(mueller(100), "A", "B")
    for place in exact.images:  # within about two cells
        assert np.linalg.norm(smooth.images - place, axis=1).min() < 0.07
    assert smooth.barrier.value == pytest.approx(exact.barrier.value, abs=6.0)
    assert smooth.perpendicular_gradient < 0.1 * rough.perpendicular_gradient


def test_a_torus_has_two_basins_and_four_saddles_across_its_seams():
    surface = torus()
    found = landscape(surface)
    assert len(found.basins) == 2
    assert len(found.saddles) == 4
    exact = {(round(np.pi / 2 * i - 1, 6), round(np.pi / 2 * j, 6)) for i in (-1, 1) for j in (-1, 1)}
    for x, y in exact:
        assert any(near(s.place, (x, y), surface.grid) for s in found.saddles)
    assert [b.population.value for b in found.basins] == pytest.approx([0.5, 0.5])


def test_a_path_across_the_seam_is_the_short_one():
    surface = torus().with_basins(home=np.hypot(*np.meshgrid(torus().grid[0] + 1, torus().grid[1], indexing="ij")) < 1)
    other = next(b for b in landscape(surface).basins if b.label != "home")
    path = surface.minimum_free_energy_path("home", other.label)
    assert path.arc_length[-1] == pytest.approx(np.sqrt(2) * np.pi, rel=1e-4)
    assert path.barrier.value == pytest.approx(5.0, abs=1e-3)
    assert np.abs(path.images).max() <= np.pi
    assert np.abs(np.diff(path.images, axis=0)).max() > 6  # it does wrap
    assert path.perpendicular_gradient < 1e-2


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_a_third_of_kT_makes_no_basins(seed):
    found = landscape(mueller(60, noise=0.3 * 10, seed=seed, kT=10.0), depth=2.0)
    assert len(found.basins) == 2
    assert len(found.saddles) == 1
    raw = landscape(mueller(60, noise=0.3 * 10, seed=seed, kT=10.0), depth=0.0)
    assert len(raw.basins) > 10


def test_a_double_well_in_one_dimension():
    surface = double_well()
    found = landscape(surface)
    assert [b.place[0] for b in found.basins] == pytest.approx([-1.01, 0.99], abs=0.032)
    (saddle,) = found.saddles
    assert saddle.place[0] == pytest.approx(0.02, abs=0.032)
    path = minimum_free_energy_path(surface, "A", "B")
    x = np.sort(np.roots([24, 0, -24, 0.5]).real)
    f = 6 * (x**2 - 1) ** 2 + 0.5 * x
    assert path.saddle[0] == pytest.approx(x[1], abs=1e-3)
    assert path.images[[0, -1], 0] == pytest.approx(x[[0, 2]], abs=1e-3)
    assert path.barrier.value == pytest.approx(f[1] - f[0], abs=1e-3)
    assert path.reverse_barrier.value == pytest.approx(f[1] - f[2], abs=1e-3)


def test_errors_are_those_of_the_replicas():
    surface = double_well(noise=0.2, n_replicas=400, seed=3)  # replicas tilt by 0.2 kT per nm
    found, path = landscape(surface), minimum_free_energy_path(surface, "A", "B")
    (saddle,) = found.saddles
    for height, basin in zip(saddle.heights, found.basins, strict=True):
        assert height.standard_error == pytest.approx(0.2 * abs(saddle.place[0] - basin.place[0]), rel=0.15)
    assert path.barrier.standard_error == pytest.approx(0.2 * abs(path.saddle[0] - path.images[0, 0]), rel=0.15)
    p = found.basin("A").population
    assert p.standard_error == pytest.approx(p.value * (1 - p.value) * 0.4, rel=0.2)  # d ln(P_A / P_B) = 2 x 0.2
    at = np.interp(found.basin("B").place[0], path.images[:, 0], path.standard_error)
    assert at == pytest.approx(found.basin("B").free_energy.standard_error, rel=0.05)


def test_unsampled_cells_are_walls():
    left = landscape(mueller()).mask("A")
    border = binary_dilation(left, np.ones((3, 3))) & ~left
    surface = mueller(wall=lambda x, y: border)
    found = landscape(surface)
    assert found.labels == ("A", "B")
    assert found.saddles == ()
    assert (found.cells[np.isnan(surface.free_energy)] == -1).all()
    assert sum(b.population.value for b in found.basins) == pytest.approx(1.0)
    with pytest.raises(DataError, match="block every path"):
        minimum_free_energy_path(surface, "A", "B")
    with pytest.raises(DataError, match="no saddle joins"):
        found.saddle("A", "B")


def test_a_path_pushed_into_unsampled_cells_is_refused():
    surface = mueller(wall=lambda x, y: np.hypot(x + 0.822, y - 0.624) < 0.2)
    with pytest.raises(DataError, match="unsampled cells block"):
        minimum_free_energy_path(surface, "A", "B")


def test_unsampled_cells_far_off_do_not_move_the_path():
    whole, cut = mueller(), mueller(wall=lambda x, y: mueller_brown().energy(np.stack([x.ravel(), y.ravel()], 1)).reshape(x.shape) > 30)
    a, b = (minimum_free_energy_path(s, "A", "B") for s in (whole, cut))
    assert np.abs(a.images - b.images).max() < 0.01
    assert a.barrier.value == pytest.approx(b.barrier.value, abs=0.1)


def test_a_shallow_island_counts_to_the_nearest_basin():
    surface = double_well()
    f = surface.free_energy.copy()
    f[:5] = np.nan
    f[1] = 12.0  # one cell beyond a gap: no depth
    found = landscape(surface_of(f, surface.grid))
    assert found.labels == ("A", "B")
    assert found.cells[1] == 0
    assert sum(b.population.value for b in found.basins) == pytest.approx(1.0)
    f[1:4] = [12.0, 10.0, 12.0]  # deep enough to be one of its own, with no way out
    found = landscape(surface_of(f, surface.grid))
    assert found.labels == ("A", "B", "C")
    assert [s.between for s in found.saddles] == [("A", "B")]


def test_named_basins_keep_their_names():
    surface = double_well().with_basins(right=(0.5, 1.5), A=(5.0, 6.0))
    found = landscape(surface)
    assert found.labels == ("B", "right")
    assert "right" in str(found)
    assert found.saddle("right", "B").between == ("B", "right")
    path = minimum_free_energy_path(surface, "B", "right")
    assert path.images[0, 0] < path.images[-1, 0]


def test_letters_go_on_after_z():
    f = np.tile([0.0, 5.0], 400) + 1e-3 * np.arange(800)
    labels = landscape(surface_of(f, (np.linspace(0, 1, 800),))).labels
    assert len(set(labels)) == 400
    assert labels[25:28] == ("Z", "AA", "AB")


def test_the_table_has_a_row_per_basin_and_saddle():
    found = landscape(mueller(), depth=0.5)
    table = found.to_dataframe()
    assert list(table["kind"]) == ["basin"] * 3 + ["saddle"] * 2
    assert list(table["label"]) == ["A", "B", "C", "B-C", "A-C"]
    assert table["x"][0] == found.basins[0].place[0]
    text = str(found).splitlines()
    assert len(text) == 1 + 1 + 3 + 1 + 2
    assert "x [nm], y [nm]" in text[1]


@pytest.mark.parametrize("depth", [-1.0, np.nan])
def test_a_depth_that_is_no_height_is_refused(depth):
    with pytest.raises(DataError, match="depth"):
        landscape(double_well(), depth)


def test_a_path_needs_two_basins():
    with pytest.raises(DataError, match="same minimum"):
        minimum_free_energy_path(double_well(), (-1.5, -0.5), (-1.2, -0.8))
    with pytest.raises(DataError, match="same minimum"):  # the second range has its lowest cell at its edge, on the same slope
        minimum_free_energy_path(double_well(), (-1.5, -0.5), (-0.6, -0.3))
    with pytest.raises(DataError, match="labelled 'Z'"):
        minimum_free_energy_path(double_well(), "A", "Z")


def test_marks_are_drawn_when_asked():
    flat, seam = mueller(), torus()
    for surface, basins in ((flat, 3), (seam, 2), (double_well(), 2)):
        found = landscape(surface, depth=0.5)
        path = minimum_free_energy_path(surface, "A", "B")
        ax = surface.plot(landscape=found, path=path)
        assert [t.get_text() for t in ax.texts] == list(found.labels)
        assert len(found.labels) == basins
        assert len([line for line in ax.lines if line.get_marker() == "x"]) == len(found.saddles)
        drawn = [line for line in ax.lines if line.get_label() == "path"]
        assert len(drawn) == (surface.free_energy.ndim == 2)
    assert len(flat.plot().texts) == 0
