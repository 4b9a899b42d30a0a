"""Status, export, doctor and init: what stands beside ``couloir run``."""

import io
import os
import re
import tomllib
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from rich.console import Console

from couloir.analysis.samples import BiasedSamples
from couloir.build import build_cvs, build_engine, build_windows
from couloir.config import SystemTable, read_config
from couloir.doctor import examine
from couloir.errors import ConfigError
from couloir.export import export_run
from couloir.init import write_run_file
from couloir.pipeline import execute
from couloir.preflight import check
from couloir.report import system_name
from couloir.run import Run
from couloir.sampling import systems
from couloir.status import status_table

MOLECULE = """
[system]
name = "alanine_dipeptide"
[engine]
platform = "Reference"
workers = 1
[cv.phi]
type = "phi"
residue = 2
[cv.psi]
type = "psi"
residue = 2
[explore]
duration = "0.4 ps"
stride = "0.1 ps"
[umbrella]
along = "phi"
windows = 3
seeds_per_window = 1
seeding = "dragged"
force_constant = 20
duration = "5 ps"
record_stride = "0.1 ps"
[surface]
bootstrap = 2
bins = 12
"""


def shown(*tables):
    console = Console(file=io.StringIO(), width=200)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    file = tmp_path_factory.mktemp("companions") / "ala.toml"
    file.write_text(MOLECULE)
    with Run.create(file) as opened:
        execute(opened, say=lambda text: None)
    return file.with_suffix(".run")


def test_status_tells_what_every_stage_holds(run):
    with Run.open(run) as opened:
        text = shown(status_table(opened))
    assert re.search(r"explore .* done .* 10 of 0.4 ps per walker; 1 walkers, 100 records, 100 frames", text)
    assert re.search(r"model .* not asked for", text)
    assert re.search(r"seeds .* done .* 3 in 3 windows \(3 dragged\)", text)
    assert re.search(r"umbrella .* done .* 5 of 5 ps per walker; 3 walkers, 150 records, 15 frames", text)
    assert re.search(r"umbrella .* [\d.]+ round trips by exchange \([\d.]+ per replica\)", text)
    assert "[few-round-trips]" in text
    assert re.search(r"surfaces .* done .* phi", text)
    assert "[few-effective-samples]" in text


def test_status_can_be_asked_while_the_run_is_written(tmp_path):
    (tmp_path / "ala.toml").write_text(MOLECULE)
    with Run.create(tmp_path / "ala.toml"), Run.open(tmp_path / "ala.toml") as reader:
        text = shown(status_table(reader))
    assert re.search(r"explore .* waiting .* 0.4 ps per walker asked for", text)
    assert re.search(r"umbrella .* waiting", text)


@pytest.mark.parametrize("format", ["dcd", "xtc"])
def test_exported_trajectories_agree_with_exported_cvs(run, tmp_path, format):
    with Run.open(run) as opened:
        written = export_run(opened, tmp_path, format)
        time_of_frames = 10 * 0.1
        phi = build_cvs(opened, build_engine(opened)[0].topology)["phi"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    frames = mdtraj.load(str(tmp_path / f"umbrella_w0001_000.{format}"), top=str(tmp_path / "topology.pdb"))
    colvar = np.loadtxt(tmp_path / "umbrella_w0001_000.colvar")
    at = [int(np.argmin(np.abs(colvar[:, 0] - time_of_frames * k))) for k in range(1, 6)]
    np.testing.assert_allclose(phi.evaluate(frames.xyz), colvar[at, 1], atol=0.02)


def test_exported_windows_can_be_read_back(run, tmp_path):
    with Run.open(run) as opened:
        export_run(opened, tmp_path)
    original = BiasedSamples.load(run / "results" / "samples.npz")
    period = (2 * np.pi,)
    back = BiasedSamples.from_plumed(tmp_path / "umbrella.meta", "300 K", names=("phi",), units=("rad",), periods=period)
    np.testing.assert_allclose(back["phi"], original["phi"], atol=1e-6)
    np.testing.assert_allclose(back.bias_energies(), original.bias_energies(), atol=1e-4)
    fields = (tmp_path / "umbrella_w0000_000.colvar").read_text().splitlines()[0]
    assert fields == "#! FIELDS time phi psi potential umbrella.bias"
    bias = np.loadtxt(tmp_path / "umbrella_w0000_000.colvar")[:, 4]
    np.testing.assert_allclose(bias, original.bias_energies()[0][original.window == 0], atol=1e-4)


def test_an_export_over_an_older_one_replaces_it(run, tmp_path):
    (tmp_path / "umbrella.meta").write_text("old")
    with Run.open(run) as opened:
        export_run(opened, tmp_path)
        first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        export_run(opened, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".pdb"} == {k: v for k, v in first.items() if "pdb" not in k}
    assert not list(tmp_path.glob(".partial*"))


def test_doctor_names_versions_and_speeds():
    text = shown(*examine())
    for word in ("couloir", "openmm", "cores", "torch device", "writable", "Reference", "ns/day", "obc2"):
        assert word in text


@pytest.mark.parametrize("name", ["alanine_dipeptide.pdb", "alanine_tetrapeptide.pdb", "alanine_dipeptide_tip3p.pdb.gz"])
def test_init_writes_a_file_that_run_accepts(tmp_path, name):
    pdb = tmp_path / name
    pdb.write_bytes(systems.structure_file(name).read_bytes())
    file = write_run_file(pdb)
    assert file == tmp_path / (name.split(".")[0] + ".toml")
    config = read_config(file)
    assert config.umbrella is not None
    assert config.umbrella.along == ("phi",)
    assert "TO BE SETTLED" not in file.read_text()
    with Run.create(file) as opened:
        engine, _ = build_engine(opened)
        cvs = build_cvs(opened, engine.topology)
        check(config, engine, cvs)
        assert len(build_windows(opened, engine, cvs)) == 36
    assert list(cvs) == ["phi", "psi", "end_to_end"]
    assert (config.explore is None) == ("tip3p" in name)


def test_init_takes_the_middle_residue(tmp_path):
    file = write_run_file(systems.structure_file("alanine_tetrapeptide.pdb"), tmp_path / "t.toml")
    data = tomllib.loads(file.read_text())
    assert data["cv"]["phi"]["select"] == ["ALA2:C", "ALA3:N", "ALA3:CA", "ALA3:C"]
    assert (tmp_path / data["system"]["pdb"]).resolve() == systems.structure_file("alanine_tetrapeptide.pdb").resolve()


def test_init_asks_for_hydrogens_where_they_are_missing(tmp_path):
    structure = mdtraj.load(str(systems.structure_file("alanine_dipeptide.pdb")))
    structure.atom_slice(structure.topology.select("element != H")).save_pdb(str(tmp_path / "bare.pdb"))
    assert read_config(write_run_file(tmp_path / "bare.pdb")).system.add_hydrogens


def test_init_finds_the_central_torsion_of_other_molecules_and_says_what_is_missing(tmp_path):
    butane = systems.butane()
    mdtraj.Trajectory(butane.state.positions[None], butane.topology).save_pdb(str(tmp_path / "butane.pdb"))
    file = write_run_file(tmp_path / "butane.pdb")
    data = tomllib.loads(file.read_text())
    assert data["umbrella"]["along"] == "torsion"
    assert len(data["cv"]["torsion"]["select"]) == 4
    assert "does not fit the force field" in file.read_text()


def test_init_overwrites_nothing_and_export_checks_its_format(run, tmp_path):
    (tmp_path / "x.toml").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        write_run_file(systems.structure_file("alanine_dipeptide.pdb"), tmp_path / "x.toml")
    with Run.open(run) as opened, pytest.raises(ConfigError, match="did you mean 'xtc'"):
        export_run(opened, tmp_path / "out", "xtcc")
    assert os.listdir(tmp_path) == ["x.toml"]
    assert Path(tmp_path / "x.toml").read_text() == "mine"


@pytest.mark.parametrize("file", ["pdb", "prmtop", "top"])
def test_a_report_is_named_after_the_file_and_not_after_where_it_lies(file):
    table = SystemTable.model_construct(**{"solvent": "vacuum", file: f"/far/away/my_protein.{file}"})
    assert system_name(table) == "my protein in vacuum"
