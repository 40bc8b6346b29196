"""What the Prefect flow costs or saves beside ``dvc repro``.

    python -m benchmarks.orchestration [--set NAME=VALUE ...]

In one run, on fresh clones of the last commit with the default parameters (or with changes):

- ``dvc repro``, the stages in order: what the flow is held against;
- ``boss run`` with two workers on a Prefect server that is already up;
- ``boss run`` again, with nothing to do, with that server and without any.

The floor of a run is its stages' own work, that of a run with nothing to do is a bare
``dvc status``, which is printed too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.workspace.experiment import override
from flows.workspace.process import dvc_command, dvc_environment
from tests.helpers.servers import prefect_server

ROOT = Path(__file__).parents[1]
REPEATS = 3


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        plain, flow = clone(folder / "repro", chosen.set), clone(folder / "flow", chosen.set)
        boss = [sys.executable, "-m", "flows.cli.app", "run", "--workers", str(chosen.workers)]
        server_folder = folder / "server"
        server_folder.mkdir()
        seconds = {"dvc repro": timed(dvc_command("repro"), plain)}
        with prefect_server(server_folder) as environment:
            seconds["flow"] = timed(boss, flow, environment)
            seconds["flow, nothing to do, server up"] = best(boss, flow, environment)
        timed(boss, flow)  # the database of temporary servers is made once
        seconds["flow, nothing to do, no server"] = best(boss, flow)
        seconds["dvc status"] = best(dvc_command("status"), flow)
    cores = len(os.sched_getaffinity(0))
    table = Table("", "seconds", "of dvc repro", title=f"{cores} cores, {chosen.workers} workers")
    for label, value in seconds.items():
        table.add_row(label, f"{value:.1f}", f"{value / seconds['dvc repro']:.3f}")
    Console(width=100).print(table)


def clone(folder: Path, overrides: list[str]) -> Path:
    """The last commit in a folder of its own, with an empty cache."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    override(folder / "params.yaml", overrides)
    return folder


def timed(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> float:
    """Wall seconds of a whole process, which must succeed."""
    start = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=dvc_environment() | (environment or {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def best(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> float:
    """The shortest of several runs, in wall seconds."""
    return min(timed(command, folder, environment) for _ in range(REPEATS))


if __name__ == "__main__":
    main()
