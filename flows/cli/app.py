"""``boss``: what is not a stage. Stages run through DVC, by `boss run` or ``dvc repro``.

A module a command; what a command needs beside its options it imports when it is called, so that
help and the check of parameters load no torch.
"""

import typer

from flows.cli.check import check
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

# In the order of the help.
COMMANDS = (
    check, repro, run, server, deploy, table, usage, verify, track, schedule, straighten, sample,
    export, merge, ui,
)  # fmt: skip

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def boss() -> None:
    """Bellman Optimal Stepsize Straightening: fewer network evaluations for each sample."""


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    with reported():
        app()


if __name__ == "__main__":
    main()
