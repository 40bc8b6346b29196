"""``boss``: what is not a stage. Stages run through DVC: ``dvc repro``."""

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
def run() -> None:
    """Bring every stage up to date with DVC, and print the table."""
    from flows.run import closing_lines
    from flows.run import run as run_stages

    code = run_stages()
    if code:
        raise SystemExit(code)
    table()
    print(closing_lines())


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
def track() -> None:
    """Log the recorded metrics of every budget to MLflow; what is there already stays."""
    from flows.tracking import track_budget

    params = load_params()
    for budget in params.budgets:
        track_budget(params, budget)


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
