"""``boss``: what is not a stage. Stages run through DVC, by `boss run` or ``dvc repro``."""

import subprocess
import sys

import typer

from flows import paths
from flows.config import load_params
from flows.errors import reported

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def boss() -> None:
    """Bellman Optimal Stepsize Straightening: fewer network evaluations for each sample."""


@app.command()
def check() -> None:
    """Check params.yaml and the inputs that it names."""
    from flows.stages.check import check as check_inputs

    check_inputs(load_params())


@app.command()
def repro() -> None:
    """Bring every stage up to date with `dvc repro`, in order, and print the table."""
    from flows.repro import closing_lines
    from flows.repro import repro as run_stages

    code = run_stages()
    if code:
        raise SystemExit(code)
    table()
    print(closing_lines())


@app.command()
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
    workers: int = typer.Option(2, min=1, help="Stages that may run side by side."),
    timeout: float = typer.Option(86400, min=1, help="Seconds for one stage."),
    name: str | None = typer.Option(None, help="Name of the experiment, with --set."),
) -> None:
    """Run the Prefect flow: every stage a task, budgets side by side; then print the table."""
    from flows.launch import launch
    from flows.repro import closing_lines

    launch(overrides, targets, workers, timeout, name)
    if not overrides and not targets:
        table()
        print(closing_lines())


@app.command()
def deploy(
    pool: str = typer.Option("local", help="A process work pool of the Prefect server."),
) -> None:
    """Register the deployments of prefect.yaml with the Prefect server, for this folder."""
    from flows.launch import deploy as register

    register(pool)


@app.command()
def table() -> None:
    """Print the table of the last run: Frechet distance for every budget and variant."""
    from rich.console import Console
    from rich.table import Table

    from flows.records import frechet_name, read_json
    from flows.variants import VARIANTS

    params = load_params()
    floor = read_json(paths.metrics("teacher"))
    metric = frechet_name(floor)
    print(
        f"{metric} (lower is better): {floor['samples']:,} samples against"
        f" {floor['reference_samples']:,} real images"
    )
    shown = Table()
    shown.add_column("K (NFE)", justify="right")
    for title in VARIANTS.values():
        shown.add_column(title.replace(", ", ",\n").replace(": ", ":\n"), justify="right")
    for budget in sorted(params.budgets):
        record = read_json(paths.metrics(budget))
        values = [record[v][metric] for v in VARIANTS]
        shown.add_row(
            str(budget),
            *(f"[bold]{x:.4g}[/bold]" if x == min(values) else f"{x:.4g}" for x in values),
        )
    shown.add_section()
    shown.add_row(str(floor["nfe"]), f"{floor['fine'][metric]:.4g}", "(the floor)")
    # In a log there is no terminal to fit into: a row must not be folded.
    Console(width=None if sys.stdout.isatty() else 110).print(shown)


@app.command()
def track(
    rebuild: bool = typer.Option(
        False, help="Fail when MLflow cannot be reached, where otherwise a warning is enough."
    ),
) -> None:
    """Log the recorded metrics of every budget to MLflow, as into an empty database; what is
    there already stays as it is."""
    from boss_core.errors import InputError
    from flows.tracking import track_budget

    params = load_params()
    for budget in sorted(params.budgets):
        try:
            print(track_budget(params, budget))
        except InputError as error:
            if rebuild:
                raise
            print(f"warning: {error}", file=sys.stderr)


@app.command()
def ui(port: int = typer.Option(5000, help="Port on this machine.")) -> None:
    """Open the MLflow UI on the runs of this project; Ctrl-C ends it."""
    from flows.tracking import tracking_uri

    uri = tracking_uri(load_params())
    print(f"MLflow UI: http://127.0.0.1:{port} (Ctrl-C to stop), showing {uri}")
    raise SystemExit(_serve(uri, port))


def _serve(uri: str, port: int) -> int:
    from flows.tracking import quiet_environment

    command = ["mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    environment = quiet_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        return subprocess.run([sys.executable, "-m", *command], env=environment).returncode
    except KeyboardInterrupt:
        return 0


def main() -> None:
    with reported():
        app()


if __name__ == "__main__":
    main()
