"""``boss``: what is not a stage. Stages run through DVC, by `boss run` or ``dvc repro``.

A module a command; what a command needs beside its options it imports when it is called, so that
help and the check of parameters load no torch.
"""

import getpass
import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from boss_core import __version__
from boss_core.errors import InputError
from flows.cli.check import check
from flows.cli.compare import compare
from flows.cli.export import export
from flows.cli.merge import merge
from flows.cli.repro import repro
from flows.cli.run import run
from flows.cli.sample import sample
from flows.cli.schedule import schedule
from flows.cli.server import deploy, server
from flows.cli.straighten import straighten
from flows.cli.table import table
from flows.cli.track import track
from flows.cli.ui import ui
from flows.cli.usage import usage
from flows.cli.verify import verify
from flows.errors import reported
from flows.extras import install, lacking

# In the order of the help, which has a part of its own for those that an install alone has.
ALONE: tuple[Callable[..., None], ...] = (schedule, straighten, sample, export, merge)
OF_A_PROJECT: tuple[Callable[..., None], ...] = (
    check,
    repro,
    run,
    table,
    compare,
    usage,
    verify,
    track,
    ui,
    server,
    deploy,
)
PIPELINE = "pipeline"
PANEL = f"In a checkout of the project, with boss-flow\\[{PIPELINE}]"  # rich has a use for brackets

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"boss-flow {__version__}")
        raise typer.Exit


@app.callback()
def boss(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_show_version, help="Print the version."
    ),
) -> None:
    """Bellman Optimal Stepsize Straightening: fewer network evaluations for each sample."""


def of_the_pipeline(command: Callable[..., None]) -> Callable[..., None]:
    """The same command, which says what it needs where the pipeline's packages are not there."""

    @wraps(command)
    def checked(*arguments: Any, **options: Any) -> None:
        module = lacking(PIPELINE)
        if module is not None:
            raise InputError(
                f"boss {command.__name__}: {module} is not installed; {install(PIPELINE)}"
            )
        command(*arguments, **options)

    return checked


for command in ALONE:
    app.command(rich_help_panel="For any network")(command)
for command in OF_A_PROJECT:
    app.command(rich_help_panel=PANEL)(of_the_pipeline(command))


def main() -> None:
    _name_user()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is said comes at once, into a file too
    with reported():
        app()


def _name_user() -> None:
    """A user that the system has only a number of, as in a container, has that as a name: DVC asks
    for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


if __name__ == "__main__":
    main()
