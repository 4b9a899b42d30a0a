import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from couloir.analysis import wham, window_graph
from couloir.analysis.surface import FreeEnergySurface
from couloir.errors import DataError, Finding, StoreError
from couloir.molecule_picture import draw_molecule, picture_grid, superpose
from couloir.pipeline import execute
from couloir.report import write_report
from couloir.report_data import read_run, stored_samples
from couloir.run import Run
from couloir.sampling import systems
from couloir.store import Store

TOY = """
seed = 3
[system]
name = "hidden_barrier"
[engine]
kT = 2.5
[cv.x]
type = "coordinate"
index = 0
[cv.y]
type = "coordinate"
index = 1
[umbrella]
along = "x"
windows = 8
range = [-2.2, 2.2]
force_constant = 20
seeding = "dragged"
seeds_per_window = 2
duration = 6
record_stride = 0.02
[surface]
along = ["x", ["x", "y"]]
bootstrap = 10
[surface.basins]
left = "x < 0"
right = "x > 0"
"""
ALANINE = """
[system]
name = "alanine_dipeptide"
[engine]
platform = "Reference"
[cv.phi]
type = "dihedral"
select = ["ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:C"]
[umbrella]
along = "phi"
windows = 3
range = [-1.6, -1.0]
seeding = "dragged"
seeds_per_window = 1
duration = "2 ps"
record_stride = "0.02 ps"
[surface]
bootstrap = 5
"""
EXPLORE = """
[system]
name = "double_well"
[cv.x]
type = "coordinate"
index = 0
[explore]
duration = 20
walkers = 2
"""
SECTIONS = ("warnings", "surfaces", "windows", "exchange", "seeds", "convergence", "equilibration", "provenance")
VOID = {"meta", "img", "br", "hr"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects ids, headings, references and the text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.headings, self.references, self.text, self.tags = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
                if tag == "h2":
                    self.headings.append(value)
            if key in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.references.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    source = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(source)
    reader.close()
    assert reader.open == []
    reader.source, reader.words = source, " ".join(" ".join(reader.text).split())
    return reader


def made(folder, text, name="a run.toml"):
    file = folder / name
    file.write_text(text)
    with Run.create(file) as run:
        execute(run, say=lambda _: None)
    return file.with_suffix(".run")


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("toy"), TOY)


@pytest.fixture(scope="module")
def toy_page(toy_run):
    with Run.open(toy_run) as run:
        path = write_report(run)
    return read(path)


def test_a_report_has_every_section_in_order_and_warnings_come_first(toy_page):
    assert toy_page.headings == list(SECTIONS)
    assert toy_page.source.count("<svg") >= 8


def test_a_report_fetches_nothing(toy_page):
    assert not re.search(r"(https?:)?//[\w.]+\.\w+", re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", toy_page.source))
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in toy_page.references)
    assert not {"script", "link", "iframe", "object"} & set(toy_page.tags)


def test_a_report_is_small_and_its_ids_are_unique_and_resolve(toy_page):
    assert len(toy_page.source) < 3_000_000
    assert len(toy_page.ids) == len(set(toy_page.ids))
    used = {r[1:] for r in toy_page.references if r.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", toy_page.source))
    assert used
    assert used <= set(toy_page.ids)


def test_the_one_line_answer_gives_the_difference_of_the_named_basins_with_its_error(toy_run, toy_page):
    surface = FreeEnergySurface.load(toy_run / "results" / "free_energy_x.npz").with_basins(left=(-9.0, 0.0), right=(0.0, 9.0))
    difference = surface.difference("left", "right")
    expected = f"Free energy of right minus left along x: {difference.value:.3g} ± {difference.standard_error:.2g} kJ/mol"
    assert expected in toy_page.words
    assert toy_page.words.index(expected) < toy_page.words.index("Warnings")
    assert "finished" in toy_page.words
    assert "96 ps simulated in total" in toy_page.words


def test_every_finding_of_the_surfaces_is_shown_before_them(toy_run, toy_page):
    surface = FreeEnergySurface.load(toy_run / "results" / "free_energy_x_y.npz")
    assert surface.findings
    for finding in surface.findings:
        assert toy_page.words.index(finding.message) < toy_page.words.index("Free energy along x (WHAM)")
    assert "every check passed" not in toy_page.words


def test_the_report_compares_wham_and_mbar(toy_page):
    found = re.findall(r"WHAM and MBAR differ by at most ([\d.e-]+) kT", toy_page.words)
    assert len(found) == 2
    assert max(map(float, found)) < 0.1


def test_provenance_has_run_file_seed_versions_and_timings(toy_page):
    for text in ("seed 3", "numpy " + np.__version__, "type toy", "Wall-clock time", 'name = "hidden_barrier"'):
        assert text in toy_page.words


def test_the_same_run_gives_the_same_report_byte_for_byte(toy_run, toy_page, tmp_path):
    with Run.open(toy_run) as run:
        again = write_report(run, tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == toy_page.source


def test_the_exchange_section_says_what_was_exchanged_and_does_not_alarm_where_walkers_agree(toy_run, toy_page):
    with Run.open(toy_run) as run:
        found = read_run(run).exchange
    assert found.n_attempts == 2 * 29
    assert f"{found.round_trips.sum():g} round trips by exchange" in toy_page.words
    assert f"{found.n_attempts} attempts" in toy_page.words
    for (a, b), share in zip(found.neighbours, found.passed, strict=True):
        assert re.search(rf"{a} and {b} x = \S+ nm {100 * share:.1f} %", toy_page.words)
    assert [finding.code for finding in found.findings] == ["few-round-trips"]
    assert found.findings[0].message not in toy_page.words


def test_without_exchange_there_is_no_such_section(tmp_path):
    with Run.open(made(tmp_path, TOY.replace("duration = 6", "duration = 2\nexchange = false"))) as run:
        assert read_run(run).exchange is None
        page = read(write_report(run))
    assert page.headings == [name for name in SECTIONS if name != "exchange"]
    assert "few-round-trips" not in page.words


def test_windows_that_exchange_lacks_are_named_by_their_place(tmp_path):
    far = TOY.replace("windows = 8", "windows = 3").replace("force_constant = 20", "force_constant = 60")
    with Run.open(made(tmp_path, far)) as run:
        page = read(write_report(run))
    (fix,) = re.findall(r"few-round-trips.*?insert a window at (x = [-\d.]+ nm), between windows \d and \d", page.words)
    assert fix in {"x = -1.1 nm", "x = 1.1 nm"}
    assert page.words.index("few-round-trips") < page.words.index("Free energy along x (WHAM)")
    assert re.search(r"3 windows, .*sets that share no samples", page.words)


def test_diagnostics_are_shown_where_they_apply(toy_run, toy_page):
    with Run.open(toy_run) as run:
        data = read_run(run)
    graph = window_graph(data.kept, wham(data.kept))
    assert str(graph) in toy_page.words
    for (a, b), overlap in zip(graph.links, graph.overlap, strict=True):
        assert f"{a} and {b} {overlap:.3f}" in toy_page.words
    assert toy_page.words.count("Decorrelated samples behind each cell") == 2
    assert "first 25 % first 50 % first 75 % last 75 % last 50 % last 25 %" in toy_page.words
    assert toy_page.words.count("from the last part of every walker's time") == 2


def test_a_run_stopped_within_its_windows_gets_a_provisional_report(tmp_path):
    class Killed(Exception):
        pass

    file = tmp_path / "half.toml"
    file.write_text(TOY)

    def kill(text):
        if text.startswith("umbrella sampling"):
            raise Killed

    with Run.create(file) as run:
        with pytest.raises(Killed):
            execute(run, say=kill)
        # One walker is ahead of the others, as after a kill between two of them.
        run.store.append({"umbrella/w0003/001": run.store.chunk("umbrella/w0003/001", 0)})
    with Run.open(file.with_suffix(".run")) as run:
        samples = stored_samples(run, {})
        page = read(write_report(run))
    assert len(np.unique([np.sum(samples.walker == w) for w in np.unique(samples.walker)])) == 2
    assert page.headings == list(SECTIONS)
    assert "partial: the run is not finished" in page.words
    assert "Provisional" in page.words
    assert "Free energy along x (WHAM)" in page.words


def test_results_of_a_shorter_run_are_not_shown_beside_longer_sampling(toy_run, tmp_path):
    copy = tmp_path / "copy.run"
    shutil.copytree(toy_run, copy)
    with Run.open(copy) as run:
        assert read_run(run).finished
    with Store(copy / "store.db") as store:
        store.append({"umbrella/w0000/000": store.chunk("umbrella/w0000/000", 0)})
        store["finished"] = False
    with Run.open(copy) as run:
        data = read_run(run)
    assert data.provisional
    assert not data.finished
    assert len(data.samples) == 10 + len(read_run_samples(toy_run))


def read_run_samples(path):
    with Run.open(path) as run:
        return read_run(run).samples


def test_a_run_that_has_only_begun_says_so(tmp_path):
    file = tmp_path / "new.toml"
    file.write_text(TOY)
    with Run.create(file) as run:
        page = read(write_report(run))
    assert page.headings == list(SECTIONS)
    assert "No surface yet" in page.words
    assert "There are no seeds yet" in page.words
    assert "every check passed" not in page.words


def test_unbiased_dynamics_alone_shows_series_and_histograms(tmp_path):
    with Run.open(made(tmp_path, EXPLORE)) as run:
        page = read(write_report(run))
    assert page.headings == ["warnings", "explored", "provenance"]
    assert page.source.count("<svg") == 2
    assert "20 ps simulated in total" in page.words
    assert "every check passed" in page.words


def test_a_molecule_is_shown_with_pictures_of_its_seeds(tmp_path):
    with Run.open(made(tmp_path, ALANINE)) as run:
        page = read(write_report(run, tmp_path / "my report.html"))
    assert page.headings == list(SECTIONS)
    assert sum(r.startswith("data:image/png") and len(r) > 20_000 for r in page.references) >= 1
    assert "alanine dipeptide" in page.words
    assert "300 K" in page.words


def test_text_that_looks_like_markup_is_escaped(toy_run, tmp_path, monkeypatch):
    import couloir.report as module

    evil = '<script>alert("x")</script> & a$b$ <b>'

    def poisoned(run):
        data = read_run(run)
        surfaces = tuple(replace(s, names=(evil, *s.names[1:])) for s in data.surfaces[:1])
        return replace(data, findings=(Finding("evil", evil, evil),), notes=(evil,), surfaces=surfaces)

    monkeypatch.setattr(module, "read_run", poisoned)
    with Run.open(toy_run) as run:
        page = read(write_report(run, tmp_path / "evil.html"))
    assert "script" not in page.tags
    assert page.words.count('alert("x")') >= 4


def test_the_seed_table_says_how_many_candidates_failed_which_gate(toy_run, tmp_path, monkeypatch):
    import couloir.report as module

    tally = {"generated": np.full(8, 6), "clash": np.arange(8) % 2, "passed": 6 - np.arange(8) % 2}

    def from_model(run):
        data = read_run(run)
        return replace(data, seeds=replace(data.seeds, tally=tally, origins=("model",) * 15 + ("dragged",)), surfaces=())

    monkeypatch.setattr(module, "read_run", from_model)
    with Run.open(toy_run) as run:
        page = read(write_report(run, tmp_path / "seeds.html"))
    assert "16 seeds in 8 windows: 15 model, 1 dragged." in page.words
    assert "generated 48 100 % failed first at: clash 4 8 % passed every gate 44 92 %" in page.words


def test_findings_recorded_by_the_run_come_first(toy_run, tmp_path):
    copy = tmp_path / "copy.run"
    shutil.copytree(toy_run, copy)
    with Store(copy / "store.db") as store:
        store["findings"] = {"umbrella": [["target-not-reached", "the error is 3 kT", "run longer"]]}
    with Run.open(copy) as run:
        findings = read_run(run).findings
    assert findings[0] == Finding("target-not-reached", "the error is 3 kT", "run longer")
    assert len(findings) > 1


def test_a_report_that_cannot_be_written_says_where(toy_run, tmp_path):
    with Run.open(toy_run) as run, pytest.raises(StoreError, match=r"cannot write the report .*nowhere"):
        write_report(run, tmp_path / "nowhere" / "report.html")


def test_superposition_undoes_a_rotation_but_never_mirrors():
    x = systems.alanine_dipeptide().state.positions
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    frames = np.stack([x, x @ turn.T + 3.0, x * [-1.0, 1.0, 1.0]])
    atoms = list(range(len(x)))
    first, turned, mirrored = superpose(frames, atoms)
    np.testing.assert_allclose(turned, first, atol=1e-9)
    assert np.abs(mirrored - first).max() > 0.05


def test_pictures_leave_out_solvent_and_refuse_nonsense():
    from matplotlib.figure import Figure

    molecule = systems.alanine_dipeptide("tip3p")
    figure = picture_grid(molecule.state.positions[None], molecule.topology, ["seed"])
    (collection,) = figure.axes[0].collections
    small = systems.alanine_dipeptide()
    alone = picture_grid(small.state.positions[None], small.topology, ["seed"]).axes[0].collections[0]
    assert len(collection.get_paths()) == len(alone.get_paths())
    with pytest.raises(DataError, match="0 structures"):
        picture_grid(np.empty((0, 22, 3)), small.topology, [])
    with pytest.raises(DataError, match="3 atoms"):
        draw_molecule(Figure().subplots(), np.zeros((2, 3)), ["C", "H", "H"], [])


def test_nearer_atoms_are_drawn_over_farther_ones():
    from matplotlib.figure import Figure

    near_oxygen = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.2]])
    ax = draw_molecule(Figure().subplots(), near_oxygen, ["N", "O"], [])
    last = ax.collections[0].get_facecolors()[-1]
    assert last[0] > last[2]
    ax = draw_molecule(Figure().subplots(), near_oxygen[::-1], ["N", "O"], [])
    last = ax.collections[0].get_facecolors()[-1]
    assert last[2] > last[0]
