"""``boss repro``."""

from flows.cli.table import table


def repro() -> None:
    """Bring every stage up to date with `dvc repro`, in order, and print the table."""
    from flows.orchestration.repro import closing_lines
    from flows.orchestration.repro import repro as run_stages

    code = run_stages()
    if code:
        raise SystemExit(code)
    table()
    print(closing_lines())
