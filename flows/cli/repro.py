"""``boss repro``."""

from pathlib import Path

from flows.cli.table import table


def repro() -> None:
    """Bring every stage up to date with `dvc repro`, in order, and print the table."""
    from flows.orchestration.repro import closing_lines
    from flows.orchestration.repro import repro as run_stages
    from flows.workspace.plots import settle_plots

    code = run_stages()
    if code:
        raise SystemExit(code)
    settle_plots(Path())
    table()
    print(closing_lines())
