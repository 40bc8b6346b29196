"""``boss run``."""

import sys
from pathlib import Path

import typer

from boss_core.errors import InputError
from flows.cli.compare import side_by_side
from flows.cli.options import PRESET
from flows.cli.table import table
from flows.config import TIMEOUT, WORKERS
from flows.orchestration.elsewhere_clusters import THREADS


def run(
    presets: list[str] = PRESET,
    overrides: list[str] = typer.Option(
        [],
        "--set",
        metavar="NAME=VALUE",
        help="A parameter to change, as budgets=[4,6]; repeat for more. The run works in a copy"
        " and becomes a DVC experiment; this folder stays as it is.",
    ),
    targets: list[str] = typer.Option(
        [], "--target", metavar="STAGE", help="A stage to bring up to date, with what it needs."
    ),
    workers: int = typer.Option(WORKERS, min=1, help="Stages side by side, on GPUs too."),
    timeout: float = typer.Option(TIMEOUT, min=1, help="Seconds for one stage."),
    name: str | None = typer.Option(
        None,
        help="Name of the experiment, with --set or --preset; left out: what it changes, as"
        " budgets-4-6.",
    ),
    runner: str = typer.Option(
        THREADS,
        metavar="threads|dask://HOST:PORT|ray://HOST:PORT",
        help="Where stages run: on this machine, or on those of a cluster, which need no folder in"
        " common with it but DVC's default remote.",
    ),
) -> None:
    """Run the Prefect flow: every stage a task, budgets side by side; then print the table, of an
    experiment beside that of this folder."""
    from flows.orchestration.launch import launch
    from flows.orchestration.repro import closing_lines
    from flows.workspace.plots import settle_plots

    experiment = launch(overrides, targets, workers, timeout, name, presets, runner)
    if targets:
        if experiment is not None:
            print(
                f"`dvc exp apply {experiment}` brings it into this folder; of stages that were not"
                " asked for it says that they have no outputs, and exits with 255"
            )
        return
    settle_plots(Path())
    if experiment is not None:
        show(experiment)
        print(f"`dvc exp apply {experiment}` brings it into this folder, which is as it was")
        return
    table()
    print(closing_lines())


def show(experiment: str) -> None:
    """The experiment's table, beside that of the folder where the two can be compared."""
    from flows.workspace.revisions import WORKSPACE, read_revision

    try:
        folder = [WORKSPACE] if read_revision(Path(), WORKSPACE).records else []
        try:
            side_by_side([*folder, experiment], [experiment])
        except InputError as error:  # as of other images, by another judge
            if not folder:
                raise
            print(f"not beside this folder's last run: {error}")
            side_by_side([experiment], [experiment])
    except InputError as error:  # the experiment is there, whatever cannot be shown of it
        print(f"warning: no table: {error}", file=sys.stderr)
