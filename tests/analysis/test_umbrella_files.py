import numpy as np
import pytest
from exact_systems import KT, double_well, umbrella

from couloir.analysis import BiasedSamples, wham
from couloir.errors import DataError


@pytest.fixture
def folder(tmp_path):
    samples = umbrella(double_well, np.linspace(-1, 1, 5), 60 * KT, 200)
    lines = ["# windows"]
    for k, bias in enumerate(samples.biases):
        rows = samples.window == k
        table = np.column_stack([samples.time[rows], samples.values[rows]])
        np.savetxt(tmp_path / f"w{k}.dat", table, header="! FIELDS time x" if k % 2 else "", fmt="%.17g")
        lines.append(f"w{k}.dat {bias.centers[0]!r} {bias.force_constants[0]!r} 1.0")
    (tmp_path / "meta").write_text("\n".join(lines) + "\n")
    return tmp_path, samples


def test_windows_come_back_from_a_metafile_with_and_without_field_names(folder):
    path, samples = folder
    (path / "w1.dat").write_text((path / "w1.dat").read_text().replace("# ! FIELDS", "#! FIELDS"))
    back = BiasedSamples.from_plumed(path / "meta", "300 K", names=("x",), units=("nm",))
    assert np.array_equal(back.values, samples.values)
    assert np.allclose(wham(back).free_energies, wham(samples).free_energies, atol=1e-9)


def test_mistakes_in_a_metafile_are_named(folder):
    path, _ = folder
    with pytest.raises(DataError, match="cannot read"):
        BiasedSamples.from_plumed(path / "none", 300)
    (path / "meta").write_text("w0.dat 0.1\n")
    with pytest.raises(DataError, match="line 1: expected 1 centres"):
        BiasedSamples.from_plumed(path / "meta", 300)
    (path / "meta").write_text("w0.dat 0.1 many\n")
    with pytest.raises(DataError, match="line 1"):
        BiasedSamples.from_plumed(path / "meta", 300)
    (path / "meta").write_text("w0.dat 0.1 10\n")
    (path / "w0.dat").write_text("#! FIELDS time phi\n0 1\n")
    with pytest.raises(DataError, match="no column 'ph'; did you mean 'phi'"):
        BiasedSamples.from_plumed(path / "meta", 300, names=("ph",))
    (path / "w0.dat").write_text("0 1\n1\n")
    with pytest.raises(DataError, match="is not a table"):
        BiasedSamples.from_plumed(path / "meta", 300)


def metafile(path, *, header="", center=60.0, constant=0.01, values=(50.0, -170.0, 190.0)):
    (path / "a.dat").write_text(header + "".join(f"{i} {x}\n" for i, x in enumerate(values)))
    (path / "meta").write_text(f"a.dat {center} {constant}\n")
    return path / "meta"


ANGLE = {"names": ("phi",), "units": ("rad",), "periods": (2 * np.pi,)}


def test_degrees_and_kilocalories_become_radians_and_kilojoules(tmp_path):
    read = BiasedSamples.from_plumed(metafile(tmp_path), 300, **ANGLE, energy_unit="kcal/mol", angle_unit="deg")
    assert np.allclose(np.degrees(read["phi"]), [50, -170, -170])
    assert read.biases[0].centers == pytest.approx((np.pi / 3,))
    # The energy of a row does not depend on the unit that its angle is written in: 0.5 k 10 deg^2, and 130 deg^2 on the near side.
    assert np.allclose(read.bias_energies()[0], 0.5 * 0.01 * 4.184 * np.array([10.0, 130.0, 130.0]) ** 2)


def test_lengths_are_left_alone_by_the_unit_of_angles(tmp_path):
    read = BiasedSamples.from_plumed(metafile(tmp_path), 300, names=("d",), units=("nm",), angle_unit="deg")
    assert np.array_equal(read["d"], [50, -170, 190])
    assert read.biases[0].force_constants == (0.01,)


@pytest.mark.parametrize(
    ("header", "options", "match"),
    [
        ("", {"periods": (360.0,)}, "more than a full turn"),
        ("", {"periods": (-1.0,)}, "has the period -1"),
        ("", {"units": ("deg",)}, "angles are in radians once read"),
        ("", {"angle_unit": "grad"}, "did you mean 'rad'"),
        ("", {"energy_unit": "kcal"}, "did you mean 'kcal/mol'"),
        ("#! SET min_phi -pi\n#! SET max_phi pi\n", {"periods": (None,)}, "period 6.28319"),
        ("#! SET min_phi -pi\n#! SET max_phi pi\n", {"angle_unit": "deg"}, "check angle_unit"),
        ("#! SET min_phi -180\n#! SET max_phi 180\n", {}, "check angle_unit"),
    ],
)
def test_contradictory_units_and_periods_are_refused(tmp_path, header, options, match):
    with pytest.raises(DataError, match=match):
        BiasedSamples.from_plumed(metafile(tmp_path, header=header), 300, **{**ANGLE, **options})


def test_periods_that_plumed_wrote_are_checked_and_accepted(tmp_path):
    header = "#! FIELDS time phi\n#! SET min_phi -pi\n#! SET max_phi pi\n"
    assert len(BiasedSamples.from_plumed(metafile(tmp_path, header=header, center=1.0, values=(1.0, 2.0)), 300, **ANGLE)) == 2


def test_a_damaged_row_of_a_series_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.dat: row 1 of the table"):
        BiasedSamples.from_plumed(metafile(tmp_path, values=(1.0, float("nan"))), 300, **ANGLE)
