"""What a run has done so far, as one table; reads the store beside a process that is writing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from couloir.analysis.exchange import findings_that_matter
from couloir.errors import Finding
from couloir.paths_stage import about_first, stored_steps
from couloir.rates_numbers import summary
from couloir.rates_stage import finished, saved_rates, stored_cycles
from couloir.run import Run
from couloir.store import text_value

if TYPE_CHECKING:
    from rich.table import Table

    from couloir.analysis.exchange import ExchangeReport
    from couloir.analysis.surface import FreeEnergySurface

Row = tuple[str, str, str]

_TIMINGS = {
    "explore": ("explore",), "model": ("model",), "seeds": ("seeding",), "umbrella": ("placement", "umbrella"), "surfaces": ("analysis",),
    "paths": ("paths",), "rates": ("rates",), "report": ("report",),
}  # fmt: skip


def status_table(run: Run) -> Table:
    """Return a table of the stages of a run: how far each is, what it holds and how long it took.

    Parameters
    ----------
    run : opened with :meth:`couloir.run.Run.open`; another process may be working on it.
    """
    from rich.table import Table
    from rich.text import Text

    from couloir.analysis.surface import FreeEnergySurface
    from couloir.report_data import read_exchange

    table = Table(title=f"{run.path}", title_justify="left", caption_justify="left")
    for column in ("stage", "state", "what there is", "time"):
        table.add_column(column, justify="right" if column == "time" else "left")
    timings = run.store.get("timings", {})
    surfaces = [FreeEnergySurface.load(file) for file in sorted((run.path / "results").glob("free_energy_*.npz"))]
    exchange = read_exchange(run, {name: unit for s in surfaces for name, unit in zip(s.names, s.units, strict=True)})
    for stage, state, what in (
        _explore(run),
        _model(run),
        _seeds(run),
        _umbrella(run, exchange),
        _surfaces(run),
        _paths(run),
        _rates(run),
        _report(run),
    ):
        seconds = sum(timings.get(name, 0.0) for name in _TIMINGS[stage])
        table.add_row(stage, state, Text(what), _duration(seconds) if seconds else "")
    findings = _findings(run, exchange, surfaces)
    if findings:
        table.caption = Text("\n".join(map(str, findings)))
    return table


def _explore(run: Run) -> Row:
    table = run.config.explore
    if table is None:
        return "explore", "not asked for", ""
    return "explore", *_sampled(run, "explore", table.duration / table.walkers, None)


def _umbrella(run: Run, exchange: ExchangeReport | None) -> Row:
    table = run.config.umbrella
    if table is None:
        return "umbrella", "not asked for", ""
    state, what = _sampled(run, "umbrella", table.duration, table.until)
    if exchange is not None:
        mean = exchange.round_trips.mean()
        what += f"; {exchange.round_trips.sum():g} round trips by exchange ({mean:.2g} per replica)"
    return "umbrella", state, what


def _sampled(run: Run, name: str, asked: float | None, until: str | None) -> tuple[str, str]:
    """Return state and contents of a stage that samples: ``asked`` ps per walker, or until an error is reached."""
    plan = run.store.get(f"{name}/plan")
    if plan is None:
        return "waiting", f"{asked:g} ps per walker asked for" if asked is not None else f"until {until} asked for"
    stride = plan["record_steps"] * plan["time_step"]
    # Chunks are whole, so counting them is enough: a long run holds more of them than can be read in a moment.
    records = [plan["chunk_records"] * run.store.count(f"{name}/{walker}") for walker in plan["walkers"]]
    frames = sum(records) // plan["frame_records"]
    low, high = min(records) * stride, max(records) * stride
    done = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    goal = f"of {asked:g} ps" if asked is not None else f"ps, until {until},"
    what = f"{done} {goal} per walker; {len(records)} walkers, {sum(records)} records, {frames} frames"
    finished = low >= asked - stride / 2 if asked is not None else bool(run.store.get("finished"))
    return "done" if finished else "in progress", what


def _model(run: Run) -> Row:
    umbrella = run.config.umbrella
    if umbrella is None or umbrella.seeding != "model":
        return "model", "not asked for", ""
    if (run.path / "model" / "model.json").exists():
        return "model", "done", str(run.path / "model")
    begun = (run.path / "training").exists() or bool(run.store.series("frontier"))
    return "model", "in progress" if begun else "waiting", ""


def _seeds(run: Run) -> Row:
    if run.config.umbrella is None:
        return "seeds", "not asked for", ""
    if run.store.count("seeds") == 0:
        return "seeds", "waiting", ""
    data = run.store.chunk("seeds", -1)
    origins = text_value(data["origins"])
    kinds = ", ".join(f"{origins.count(kind)} {kind}" for kind in sorted(set(origins)))
    return "seeds", "done", f"{len(origins)} in {len(set(data['windows'].tolist()))} windows ({kinds})"


def _surfaces(run: Run) -> Row:
    umbrella = run.config.umbrella
    if umbrella is None:
        return "surfaces", "not asked for", ""
    entries = run.config.surface.along or (umbrella.along[:2],)
    wanted = ["_".join([entry] if isinstance(entry, str) else entry) for entry in entries]
    there = [name for name in wanted if (run.path / "results" / f"free_energy_{name}.npz").exists()]
    state = "done" if len(there) == len(wanted) else "in progress" if there else "waiting"
    return "surfaces", state, ", ".join(there)


def _paths(run: Run) -> Row:
    table = run.config.paths
    if table is None:
        return "paths", "not asked for", ""
    first, steps = about_first(run), stored_steps(run)
    if first is None:
        return "paths", "waiting", f"{table.n_paths} asked for"
    chains = f"{table.n_chains} chains x {steps} steps"
    what = f"{first['n']} first paths ({first['how']}); {chains}, {table.n_paths} paths without a frame of these asked for"
    return "paths", "done" if run.store.get("paths/done") == table.n_paths else "in progress", what


def _rates(run: Run) -> Row:
    table = run.config.rates
    if table is None:
        return "rates", "not asked for", ""
    from_a, from_b = stored_cycles(run)
    what = f"{from_a} cycles from A, {from_b} from B; until the error of ln k is {table.relative_error:g}, at most {table.n_cycles} cycles"
    done = finished(run)
    found = saved_rates(run) if done else None
    if found is not None:
        what = f"{summary(found).removeprefix('rates: ')}; {from_a} cycles from A, {from_b} from B"
    return "rates", "done" if done else "in progress" if run.store.series("rates") else "waiting", what


def _report(run: Run) -> Row:
    file = run.path / "report.html"
    return "report", "done" if file.exists() else "waiting", str(file) if file.exists() else ""


def _findings(run: Run, exchange: ExchangeReport | None, surfaces: list[FreeEnergySurface]) -> list[Finding]:
    rows = text_value(run.store.chunk("seeds", -1)["findings"]) if run.store.count("seeds") else []
    of_surfaces = [finding for surface in surfaces for finding in surface.findings]
    found = [Finding(*row) for row in rows] + run.findings()
    return list(dict.fromkeys([*found, *findings_that_matter(exchange, of_surfaces), *of_surfaces]))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
