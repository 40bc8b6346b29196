"""MLflow's SQLite database in the project's folder: made whole, and true where the folder is."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from boss_core.errors import InputError
from flows.telemetry import TELEMETRY_OFF

_MAKE = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"


def artifacts(database: Path) -> str:
    """Where the artifacts of a database lie that has no server: beside it."""
    return (database.resolve().parent / "mlruns").as_uri()


def make_database(database: Path) -> None:
    """An empty database, unless there is one. It is made beside its place, in a process of its own,
    and moved there whole: killed half-way through its migrations it would never work again.

    For one process at a time. InputError with MLflow's last word where it cannot be made."""
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    for left in database.parent.glob(f".{database.name}.*.part"):  # by kills
        left.unlink()
    handle, name = tempfile.mkstemp(
        dir=database.parent, prefix=f".{database.name}.", suffix=".part"
    )
    os.close(handle)
    new = Path(name)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MAKE, f"sqlite:///{new}"],
            env=os.environ | TELEMETRY_OFF,
            cwd=database.parent,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise InputError(f"{database}: MLflow could not make its database ({why})")
        new.chmod(0o666 & ~_umask())  # as a file that nobody made in secret
        os.replace(new, database)
    finally:
        new.unlink(missing_ok=True)


def follow(database: Path) -> None:
    """Have the artifacts where the database is now: MLflow stores them by absolute addresses, and
    in a folder that was moved or copied these are of where it was.

    Only addresses of an ``mlruns`` beside a database of this name are changed; for one process at a
    time."""
    new = artifacts(database)
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in rows:
            if old == new or not str(old).startswith("file:///") or not old.endswith("/mlruns"):
                continue
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
                (new, old),
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
                " WHERE substr(artifact_uri, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
