"""Bad input: a message that names what, where and the remedy, exit code 2, and nothing computed or written over."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from couloir.cli import main
from couloir.errors import StoreError
from couloir.sampling import systems
from couloir.store import Store

TOY = """
[system]
name = "hidden_barrier"
[engine]
kT = 1.0
time_step = 0.001
[cv.x]
type = "coordinate"
index = 0
[cv.y]
type = "coordinate"
index = 1
[umbrella]
along = "x"
windows = 3
range = [-1.0, 1.0]
seeding = "dragged"
duration = "0.2 ps"
[surface]
bootstrap = 2
"""
MOLECULE = """
[system]
name = "alanine_dipeptide"
[engine]
platform = "Reference"
[cv.phi]
type = "dihedral"
select = ["ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:C"]
[cv.d]
type = "distance"
select = ["ACE1:C", "NME3:N"]
[umbrella]
along = "phi"
windows = 3
seeding = "dragged"
duration = "0.2 ps"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edited(text, *changes):
    """Return ``text`` with lines replaced; every change must hit, so that a test cannot pass by testing nothing."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def refused(capsys, *arguments):
    """Run the command line, demand exit code 2, and return the message."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured
    assert "Traceback" not in captured.err
    return captured.err


def message(capsys, text):
    Path("in.toml").write_text(text)
    told = refused(capsys, "run", "in.toml")
    if Path("in.run/store.db").exists():
        with Store("in.run/store.db", read_only=True) as store:
            assert store.series() == [], "dynamics was run before the mistake was found"
    return told


TOY_MISTAKES = {
    "not TOML": ([('name = "hidden_barrier"', "name = hidden_barrier")], ["in.toml is not valid TOML", "line 3", "quotes"]),
    "unknown section": ([("[umbrella]", "[umbrela]")], ["unknown key umbrela", "did you mean 'umbrella'?"]),
    "misspelt key": ([("time_step", "timestep")], ["unknown key engine.timestep", "did you mean 'time_step'?"]),
    "wrong unit": ([("time_step = 0.001", 'time_step = "2 nm"')], ["engine.time_step", "'2 nm'", "does not fit", "ps"]),
    "unknown unit": ([('"0.2 ps"', '"0.2 psec"')], ["umbrella.duration", "unknown unit 'psec'", "did you mean"]),
    "negative time": ([('"0.2 ps"', '"-0.2 ps"')], ["umbrella.duration", "-0.2 ps", "positive"]),
    "no number": ([('"0.2 ps"', '"long"')], ["umbrella.duration", "'long'", "not a number with a unit"]),
    "boolean for a time": ([('"0.2 ps"', "true")], ["umbrella.duration", "expected a number"]),
    "not finite": ([("time_step = 0.001", "time_step = nan")], ["engine.time_step", "not finite"]),
    "no system": ([('[system]\nname = "hidden_barrier"', "")], ["system is missing"]),
    "two systems": (
        [('name = "hidden_barrier"', 'name = "hidden_barrier"\npdb = "a.pdb"')],
        ["exactly one of name, pdb", "found name, pdb"],
    ),
    "options of a file with a name": (
        [('name = "hidden_barrier"', 'name = "hidden_barrier"\nhydrogen_mass = "3 amu"')],
        ["hydrogen_mass belongs to a system from a file"],
    ),
    "unknown system": ([("hidden_barrier", "hidden_barier")], ["system.name = 'hidden_barier'", "did you mean 'hidden_barrier'?"]),
    "toy parameters": ([("[engine]", "[system.parameters]\nheight = 3.0\n[engine]")], ["system.parameters", "hidden_barrier", "height"]),
    "unknown CV to bias": ([('along = "x"', 'along = "xx"')], ["umbrella.along names the unknown CV 'xx'"]),
    "unknown CV to record": ([("windows = 3", 'windows = 3\nrecord = ["z"]')], ["umbrella.record names the unknown CV 'z'"]),
    "unknown CV type": (
        [('[cv.y]\ntype = "coordinate"', '[cv.y]\ntype = "cordinate"')],
        ["[cv.y]", "cordinate", "did you mean 'coordinate'?"],
    ),
    "misspelt CV key": ([("index = 1", "indx = 1")], ["[cv.y] has the unknown key 'indx'", "did you mean 'index'?"]),
    "CV without type": ([('[cv.y]\ntype = "coordinate"', "[cv.y]")], ["[cv.y] has no type", "coordinate"]),
    "CV without key": ([("index = 1", "")], ["[cv.y]", "lacks index"]),
    "CV name": ([("[cv.y]", '[cv."my y"]')], ["'my y'", "identifier"]),
    "coordinate that does not exist": ([("index = 1", "index = 7")], ["[cv.y]", "7", "2"]),
    "atoms of a toy": ([('type = "coordinate"\nindex = 1', 'type = "distance"\nselect = [0, 1]')], ["[cv.y]", "no atoms", "coordinate"]),
    "no range": ([("range = [-1.0, 1.0]", "")], ["x has no period", "range"]),
    "empty range": ([("[-1.0, 1.0]", "[1.0, 1.0]")], ["range 1 ... 1 of x is empty"]),
    "range unit": ([("[-1.0, 1.0]", '["0 deg", "9 deg"]')], ["range", "0 deg", "nm"]),
    "no window": ([("windows = 3", "windows = 0")], ["umbrella.windows.0 = 0", "greater than 0"]),
    "one window without constant": ([("windows = 3", "windows = 1")], ["single window along x", "force_constant"]),
    "windows per CV": ([("windows = 3", "windows = [3, 3]")], ["umbrella.along has 1 CVs", "windows 2"]),
    "negative constant": ([("windows = 3", "windows = 3\nforce_constant = -1")], ["force_constant", "-1", "positive"]),
    "constant unit": (
        [("windows = 3", 'windows = 3\nforce_constant = "5 kJ/mol/rad^2"')],
        ["force_constant", "kJ/mol/rad^2", "kJ/mol/nm^2"],
    ),
    "duration and until": ([('"0.2 ps"', '"0.2 ps"\nuntil = "1 kT"')], ["umbrella", "either duration", "or until"]),
    "neither": ([('duration = "0.2 ps"', "")], ["umbrella", "either duration", "or until"]),
    "keys of until without it": (
        [('duration = "0.2 ps"', 'duration = "0.2 ps"\nmax_duration = "1 ps"')],
        ["umbrella", "max_duration", "belong to until"],
    ),
    "unit of until": ([('duration = "0.2 ps"', 'until = "1 ps"')], ["until = '1 ps'", "kT"]),
    "until not positive": ([('duration = "0.2 ps"', 'until = "0 kT"')], ["until", "positive"]),
    "model without data": ([('seeding = "dragged"\n', "")], ["seeding", "[explore]", "dragged"]),
    "nothing to generate": (
        [
            ('seeding = "dragged"', ""),
            ('along = "x"', 'along = ["x", "y"]'),
            ("[-1.0, 1.0]", "[[-1, 1], [-1, 1]]"),
            ("[surface]", '[explore]\nduration = "1 ps"\n[surface]'),
        ],
        ["x, y", "nothing to generate", "dragged"],
    ),
    "nothing to do": ([(TOY[TOY.index("[umbrella]") : TOY.index("[surface]")], "")], ["nothing to do", "[umbrella]", "[explore]"]),
    "choice": ([('"dragged"', '"draged"')], ["umbrella.seeding = 'draged'", "model, dragged", "did you mean 'dragged'?"]),
    "surface along unknown": ([("bootstrap = 2", 'along = "q"')], ["surface.along names the unknown CV 'q'"]),
    "surface along unrecorded": (
        [("windows = 3", 'windows = 3\nrecord = ["x"]'), ("bootstrap = 2", 'along = ["y"]')],
        ["surface.along", "'y', which is not recorded", "umbrella.record"],
    ),
    "surface of three": ([("bootstrap = 2", 'along = [["x", "y", "x"]]')], ["surface.along", "one CV or a pair"]),
    "basin syntax": ([("bootstrap = 2", '[surface.basins]\nleft = "x <"')], ["surface.basins.left", "cannot read the region 'x <'"]),
    "basin CV": ([("bootstrap = 2", '[surface.basins]\nleft = "xy < 0"')], ["surface.basins.left", "unknown CV 'xy'"]),
    "record stride": ([("windows = 3", "windows = 3\nrecord_stride = 0.0015")], ["umbrella.record_stride", "multiple of the time step"]),
    "explore stride": (
        [("[surface]", '[explore]\nduration = "1 ps"\nstride = "0.0005 ps"\n[surface]')],
        ["explore.stride", "multiple of the time step"],
    ),
    "files for a toy": ([("[surface]", '[explore]\nduration = "1 ps"\nfiles = ["a.dcd"]\n[surface]')], ["explore.files", "atoms"]),
    "seed": ([("[system]", "seed = -1\n[system]")], ["seed = -1", "greater than or equal to 0"]),
}


@pytest.mark.parametrize("mistake", TOY_MISTAKES)
def test_a_mistake_is_named_before_anything_is_computed(capsys, mistake):
    changes, expected = TOY_MISTAKES[mistake]
    told = message(capsys, edited(TOY, *changes))
    for part in expected:
        assert part in told, told


MOLECULE_MISTAKES = {
    "kT of a molecule": ([('platform = "Reference"', "kT = 1.0")], ["engine.kT", "toy", "temperature"]),
    "platform": ([('"Reference"', '"Referense"')], ["platform 'Referense'", "did you mean 'Reference'?"]),
    "solvent": ([('"alanine_dipeptide"', '"alanine_dipeptide"\nsolvent = "obc3"')], ["system.solvent = 'obc3'", "did you mean 'obc2'?"]),
    "no such atom": ([("ALA2:CA", "ALA2:CX")], ["[cv.phi]", "ALA2:CX", "no atom 'CX'", "did you mean"]),
    "no such residue": ([("NME3:N", "NMA3:N")], ["[cv.d]", "no residue is called 'NMA3'", "'NME3'"]),
    "three atoms of a dihedral": ([('"ACE1:C", "ALA2:N", ', '"ALA2:N", ')], ["[cv.phi]", "needs 4 different atoms, got [6, 8, 14]"]),
    "range outside the period": ([("windows = 3", "windows = 3\nrange = [-4.0, 4.0]")], ["range -4 ... 4", "period of phi"]),
    "time step": ([('"Reference"', '"Reference"\ntime_step = "-2 fs"')], ["engine.time_step", "positive"]),
}


@pytest.mark.parametrize("mistake", MOLECULE_MISTAKES)
def test_a_mistake_about_a_molecule_is_named_before_anything_is_computed(capsys, mistake):
    changes, expected = MOLECULE_MISTAKES[mistake]
    told = message(capsys, edited(MOLECULE, *changes))
    for part in expected:
        assert part in told, told


def with_pdb(lines, **keys):
    Path("in.pdb").write_text("".join(lines))
    extra = "".join(f"\n{key} = {value}" for key, value in keys.items())
    return edited(MOLECULE, ('name = "alanine_dipeptide"', 'pdb = "in.pdb"' + extra))


def dipeptide():
    return systems.structure_file("alanine_dipeptide.pdb").read_text().splitlines(keepends=True)


def test_unknown_force_field(capsys):
    told = message(capsys, with_pdb(dipeptide(), force_field='["amber14-al.xml"]'))
    assert "no such force field: 'amber14-al.xml'; did you mean 'amber14-all.xml'?" in told


def test_missing_structure(capsys):
    told = message(capsys, edited(MOLECULE, ('name = "alanine_dipeptide"', 'pdb = "nowhere.pdb"')))
    assert "no such file" in told
    assert "nowhere.pdb" in told


def test_empty_structure(capsys):
    told = message(capsys, with_pdb(["REMARK nothing\n", "END\n"]))
    assert "in.pdb has no atoms" in told


def test_coordinates_that_are_not_finite(capsys):
    lines = dipeptide()
    lines[9] = lines[9][:30] + "     nan" + lines[9][38:]
    told = message(capsys, with_pdb(lines))
    assert "in.pdb" in told
    assert "not finite" in told
    assert "ALA 2" in told


def test_unknown_residue(capsys):
    told = message(capsys, with_pdb([line.replace("ALA", "XYZ") for line in dipeptide()]))
    assert "XYZ 2" in told
    assert "does not fit the force field" in told


def test_missing_hydrogens(capsys):
    told = message(capsys, with_pdb([line for line in dipeptide() if line[76:78].strip() != "H" and not line.startswith("CONECT")]))
    assert "add_hydrogens" in told


def test_prmtop_without_inpcrd(capsys):
    told = message(capsys, edited(MOLECULE, ('name = "alanine_dipeptide"', 'prmtop = "a.prmtop"')))
    assert "prmtop and inpcrd belong together" in told


def test_frames_that_do_not_fit_the_system(capsys):
    import mdtraj

    other = mdtraj.load(str(systems.structure_file("alanine_tripeptide.pdb")))
    other.save_dcd("other.dcd")
    told = message(capsys, MOLECULE + '[explore]\nduration = "1 ps"\nfiles = ["other.dcd"]\n')
    assert "explore.files" in told
    assert "other.dcd does not fit the system" in told
    told = message(capsys, MOLECULE + '[explore]\nduration = "1 ps"\nfiles = ["gone.dcd"]\n')
    assert "explore.files: no such file" in told


def test_missing_run_file_names_the_nearest(capsys, folder):
    (folder / "alanine.toml").write_text(TOY)
    told = refused(capsys, "run", "alanin.toml")
    assert "no such run file: alanin.toml; did you mean 'alanine.toml'?" in told
    assert not (folder / "alanin.run").exists()


def test_a_run_file_that_is_a_folder(capsys, folder):
    (folder / "in.toml").mkdir()
    assert "cannot read in.toml" in refused(capsys, "run", "in.toml")


def test_several_mistakes_are_told_at_once(capsys):
    told = message(capsys, edited(TOY, ("time_step", "timestep"), ("windows = 3", "windows = -3"), ('along = "x"', "along = 5")))
    assert "3 mistakes" in told
    for key in ("engine.timestep", "umbrella.windows", "umbrella.along"):
        assert key in told


def started(text=TOY):
    """Make a run directory that has sampled something, without the time it takes."""
    Path("in.toml").write_text(text)
    Path("in.run").mkdir()
    Path("in.run/run.toml").write_text(text)
    with Store("in.run/store.db") as store:
        store.append({"seeds": {"positions": np.zeros(3)}})
        return store.digest()


def test_a_run_directory_of_another_configuration_is_left_alone(capsys):
    digest = started()
    told = message_of_changed(capsys, edited(TOY, ("kT = 1.0", "kT = 2.0"), ("windows = 3", "windows = 5")))
    assert "in.run holds a run that was asked for differently: engine.kT, umbrella.windows changed" in told
    assert Path("in.run/run.toml").read_text() == TOY
    with Store("in.run/store.db", read_only=True) as store:
        assert store.digest() == digest


def message_of_changed(capsys, text):
    Path("in.toml").write_text(text)
    return refused(capsys, "run", "in.toml")


def test_a_mistake_may_be_corrected_in_the_same_directory(capsys):
    message(capsys, edited(TOY, ("range = [-1.0, 1.0]", "")))
    told = message(capsys, edited(TOY, ("range = [-1.0, 1.0]", "range = [2, 1]")))
    assert "empty" in told


def test_a_store_that_is_no_database(capsys):
    started()
    Path("in.run/store.db").write_bytes(b"this is not a database, but it is long enough to be one" * 40)
    for command in (("run", "in.toml"), ("status", "in.run")):
        told = refused(capsys, *command)
        assert "store.db: not a Couloir store, or damaged" in told
        assert "backup" in told
    assert Path("in.run/store.db").read_bytes().startswith(b"this is not")


def test_a_directory_that_cannot_be_made(capsys):
    Path("in.toml").write_text(TOY)
    Path("file").write_text("I am a file")
    told = refused(capsys, "run", "in.toml", "--directory", "file/deep/run")
    assert "cannot make the run directory file/deep/run" in told
    assert "--directory" in told
    assert Path("file").read_text() == "I am a file"


def test_a_directory_that_another_process_works_on(capsys, folder):
    started()
    holder = "import fcntl,sys; f=open('in.run/.lock','w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", holder], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        told = refused(capsys, "run", "in.toml")
        other.stdin.close()
    assert "another process is working on in.run" in told
    assert "couloir status" in told


@pytest.mark.parametrize("command", ["status", "report", "export"])
@pytest.mark.parametrize("place", ["empty", "nowhere"])
def test_a_folder_that_is_no_run(capsys, command, place):
    Path("empty").mkdir()
    assert f"{place} is not a run directory" in refused(capsys, command, place)
    assert list(Path("empty").iterdir()) == []


def test_a_run_directory_without_store(capsys):
    Path("in.run").mkdir()
    Path("in.run/run.toml").write_text(TOY)
    assert "has the run been started?" in refused(capsys, "status", "in.run")


def test_export_in_an_unknown_format(capsys):
    started()
    assert "unknown trajectory format 'dcdd'; did you mean 'dcd'?" in refused(capsys, "export", "in.run", "--format", "dcdd")


def test_export_of_a_run_without_samples(capsys):
    started()
    assert "in.run holds no samples yet" in refused(capsys, "export", "in.run")


def test_init_on_a_missing_or_empty_structure(capsys):
    assert "no such file: gone.pdb" in refused(capsys, "init", "gone.pdb")
    Path("empty.pdb").write_text("END\n")
    assert "empty.pdb has no atoms" in refused(capsys, "init", "empty.pdb")
    assert not Path("empty.toml").exists()


def test_init_overwrites_nothing(capsys):
    Path("in.pdb").write_text("".join(dipeptide()))
    Path("in.toml").write_text("mine")
    told = refused(capsys, "init", "in.pdb")
    assert "in.toml exists already" in told
    assert "--output" in told
    assert Path("in.toml").read_text() == "mine"


def test_a_full_disk_is_told_and_keeps_what_was_committed(capsys, monkeypatch):
    open_store = Store.__init__

    def small(self, path=None, *, read_only=False):
        open_store(self, path, read_only=read_only)
        if not read_only:
            self._db.execute("PRAGMA max_page_count = 40")

    monkeypatch.setattr(Store, "__init__", small)
    Path("in.toml").write_text(edited(TOY, ('"0.2 ps"', '"500 ps"')))
    told = refused(capsys, "run", "in.toml")
    assert "store.db: the disk is full" in told
    assert "free some space and run again" in told
    with Store("in.run/store.db", read_only=True) as store:
        kept = store.series("umbrella")
        assert kept
        assert all(np.isfinite(chunk["values"]).all() for name in kept for chunk in store.chunks(name))
    with sqlite3.connect("in.run/store.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_lost_file_of_a_store_is_told(folder):
    with pytest.raises(StoreError, match="check that the folder exists"):
        Store(folder / "gone" / "store.db")
