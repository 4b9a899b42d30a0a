"""The command line: ``couloir run | status | report | export | doctor | init``.

Exit codes: 0 done, 2 bad input (the message names what, where, what was expected), 130 interrupted (what was sampled is
kept; the message says how to resume).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from couloir import __version__
from couloir.errors import CouloirError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n\n")[0] if __doc__ else ""
)

RunFile = Annotated[Path, typer.Argument(help="the run file (TOML)", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="the run directory, or its run file", show_default=False)]


@app.command()
def run(
    file: RunFile,
    directory: Annotated[Path | None, typer.Option(help="run directory; default FILE with the suffix .run")] = None,
) -> None:
    """Carry out a run file; run it again to resume or to extend."""
    from couloir.pipeline import execute
    from couloir.report import write_report
    from couloir.run import Run

    signal.signal(signal.SIGTERM, _interrupt)
    command = f"couloir run {file}" + (f" --directory {directory}" if directory is not None else "")
    try:
        with Run.create(file, directory) as opened:
            execute(opened, say=_say)
            report = write_report(opened)
    except KeyboardInterrupt:
        _fail(f"interrupted; everything sampled so far is kept. Resume with: {command}", 130)
    _say(f"report: {report}")


@app.command()
def status(folder: RunFolder) -> None:
    """Show what a run has done so far, also while it is running."""
    from rich.console import Console

    from couloir.run import Run
    from couloir.status import status_table

    with Run.open(folder) as opened:
        Console().print(status_table(opened))


@app.command()
def report(folder: RunFolder) -> None:
    """Write (again) the one-file HTML report of a run."""
    from couloir.report import write_report
    from couloir.run import Run

    with Run.open(folder) as opened:
        _say(f"report: {write_report(opened)}")


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[Path | None, typer.Option(help="where to; default RUN/export")] = None,
    format: Annotated[str, typer.Option(help="trajectory format: dcd or xtc")] = "dcd",
) -> None:
    """Write trajectories (DCD or XTC, with a PDB), PLUMED COLVAR files and surfaces for other programs."""
    from couloir.export import export_run
    from couloir.run import Run

    with Run.open(folder) as opened:
        written = export_run(opened, to, format)
    for path in written:
        _say(str(path))
    if any(path.suffix == ".npz" for path in written):
        _say("this system has coordinates but no topology: its frames are in npz files instead of trajectories")


@app.command()
def doctor() -> None:
    """Check what is installed, which platforms and devices work, and how fast they are."""
    from rich.console import Console

    from couloir.doctor import examine

    for table in examine():
        Console().print(table)


@app.command()
def init(
    pdb: Annotated[Path, typer.Argument(help="structure of your molecule (PDB)", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="run file to write; default PDB with the suffix .toml")] = None,
) -> None:
    """Write a commented run file for a molecule."""
    from couloir.init import write_run_file

    path = write_run_file(pdb, output)
    _say(f"wrote {path}; look it over, then: couloir run {path}")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"couloir {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")] = False,
) -> None:
    """Diffusion models propose, OpenMM physics decides, reweighting certifies."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; errors made by Couloir become one message on the error stream and exit code 2."""
    try:
        app(args=arguments, prog_name="couloir")
    except CouloirError as error:
        _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        _fail(f"error: {error.filename or 'a file'} cannot be read or written: {error.strerror or error}", 2)
    sys.exit(0)


def _say(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()


def _fail(text: str, code: int) -> NoReturn:
    typer.echo(text, err=True)
    sys.exit(code)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt
