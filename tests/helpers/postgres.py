"""PostgreSQL under Prefect's and MLflow's servers, as docker/compose.yaml has them, and a restart
beneath them."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.compose import SERVICES, Stack, postgres_programs


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Stack]:
    """The three servers; artifacts go through MLflow's."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="boss-postgres-") as database:
        stack = Stack(folder, Path(database), programs)
        try:
            stack.up_postgres()
            for name in ("prefect", "mlflow"):
                stack.start(name, [stack.here(x) for x in SERVICES[name]["command"]])
            for name in ("prefect", "mlflow"):
                stack.wait(name)
            yield stack
        finally:
            # One that was restarted is no child of this process.
            control(stack, "stop", "-m", "fast", check=False)
            stack.down()


def control(stack: Stack, *arguments: str, check: bool = True) -> None:
    """``pg_ctl``, as the user who runs the database."""
    other: list[str] = []
    if os.geteuid() == 0:
        other = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    command = [*other, str(stack.postgres_bin / "pg_ctl"), *arguments, "-w"]
    command += ["-D", str(stack.database / "data"), "-l", str(stack.database / "log")]
    subprocess.run(command, check=check, cwd="/", timeout=90, stdout=subprocess.DEVNULL)


def start_again(stack: Stack) -> None:
    """After ``control(stack, "stop", ...)``: with what `Stack.up_postgres` gives."""
    options = f"-k {stack.database} -h 127.0.0.1 -p {stack.ports['5432']} -F"
    control(stack, "start", "-o", options)


def environment_of(stack: Stack) -> dict[str, str]:
    """What leads a command to the servers."""
    return {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{stack.ports['5000']}",
        "PREFECT_API_URL": f"http://127.0.0.1:{stack.ports['4200']}/api",
    }
