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
