"""``boss run``."""

import typer

from flows.cli.table import table
from flows.config import TIMEOUT, WORKERS


def run(
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
    name: str | None = typer.Option(None, help="Name of the experiment, with --set."),
) -> None:
    """Run the Prefect flow: every stage a task, budgets side by side; then print the table."""
    from flows.orchestration.launch import launch
    from flows.orchestration.repro import closing_lines

    launch(overrides, targets, workers, timeout, name)
    if not overrides and not targets:
        table()
        print(closing_lines())
