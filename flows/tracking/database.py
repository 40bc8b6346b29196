"""MLflow's SQLite database in the project's folder: made whole, and true where the folder is."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from boss_core.errors import InputError
from flows.telemetry import TELEMETRY_OFF

# Of what no other try would open: no database, a damaged one, and one without MLflow's tables.
_NOT_ITS_OWN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)
# Where else the addresses of artifacts are, each below its experiment's.
_BELOW = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
_MAKE = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"


def artifacts(database: Path) -> str:
    """Where the artifacts of a database lie that has no server: beside it."""
    return (database.resolve().parent / "mlruns").as_uri()


def make_database(database: Path) -> None:
    """An empty database, unless there is one; an empty file, as a kill leaves it, is none. It is
    made beside its place, in a process of its own, and moved there whole: killed half-way through
    its migrations it would never work again.

    For one process at a time. InputError with MLflow's last word where it cannot be made, and
    where the file is no database."""
    if database.exists() and (not database.is_file() or database.stat().st_size):
        with _opened(database) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    for left in database.parent.glob(f".{database.name}.*.part"):  # by kills
        shutil.rmtree(left, ignore_errors=True)
    # A folder: SQLite has a journal beside a database, which a kill leaves there.
    making = Path(
        tempfile.mkdtemp(dir=database.parent, prefix=f".{database.name}.", suffix=".part")
    )
    making.chmod(0o777 & ~_umask())  # as a folder that nobody made in secret
    new = making / database.name
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
        new.chmod(0o666 & ~_umask())
        os.replace(new, database)
    finally:
        shutil.rmtree(making)


def follow(database: Path) -> None:
    """Have the artifacts where the database is now: MLflow stores them by absolute addresses, and
    in a folder that was moved or copied these are of where it was.

    Only addresses of an ``mlruns`` that is gone, as after a move, or lies beside a database of this
    name, as after a copy, are changed: any other is where somebody wanted it. For one process at a
    time. InputError where the database is none of MLflow's."""
    new = artifacts(database)
    with _opened(database) as connection, connection:
        rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in rows:
            if old == new or not _left_behind(str(old), database.name):
                continue
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
                (new, old),
            )
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            there = {name for (name,) in tables}
            for table, column in _BELOW:
                if table not in there:  # of a version before it
                    continue
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )


def _left_behind(address: str, name: str) -> bool:
    """Whether artifacts lay there beside a database of this name before it was moved or copied."""
    if not address.startswith("file:///") or not address.endswith("/mlruns"):
        return False
    folder = Path(url2pathname(urlsplit(address).path))
    return not folder.exists() or (folder.parent / name).exists()


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(database, timeout=20)) as connection:
            yield connection
    except sqlite3.Error as error:
        unfit = getattr(error, "sqlite_errorcode", None) in _NOT_ITS_OWN
        needed = "move it away, and a new one is made" if unfit else "one that can be used needed"
        raise InputError(
            f"{database}: no database of MLflow's that works ({error}); {needed}"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
