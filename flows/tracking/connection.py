"""Where MLflow is, and what has to be right before anything is logged there or shown from there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from flows.config import Params
from flows.telemetry import TELEMETRY_OFF
from flows.tracking.database import artifacts, follow, make_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

# A variable of the stages that the flow runs: the user's folder, where theirs is a copy of it.
PROJECT = "BOSS_PROJECT"
# Set for stages on a machine whose folder is gone after them: whoever gets the records logs them.
LATER = "BOSS_TRACK_LATER"


def tracking_uri(params: Params, root: Path | None = None) -> str:
    """The MLflow server of params.yaml or of the environment, else sqlite in the project
    ``root``, by its absolute path (a relative one would name another file in another folder)."""
    uri = params.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    database = sqlite_file(uri)
    return f"sqlite:///{((root or _project_folder()) / database).resolve()}" if database else uri


def prepare_database(uri: str) -> None:
    """An SQLite database is there and whole, and knows where its artifacts are, before a server
    is started on it. InputError where MLflow cannot make it."""
    if database := sqlite_file(uri):
        with FileLock(f"{database}.lock"):
            _make_ready(database)


@contextmanager
def connected(uri: str) -> Iterator["MlflowClient"]:
    """MLflow at this address, ready to be written to, by one process of this machine at a time:
    several on a fresh database crash in its migration, and two budgets that end together would
    each make the parent."""
    database = sqlite_file(uri)
    with FileLock(f"{database or _project_folder() / 'mlflow.db'}.lock"):
        if database is None:
            _try_to_connect(uri)
        else:
            _make_ready(database)
        yield _client(uri)


def sqlite_file(uri: str) -> Path | None:
    """The file of a database without a server; None for another."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def find_experiment(client: "MlflowClient", name: str, uri: str) -> str:
    """The id of the experiment of that name, made where there is none."""
    from mlflow.exceptions import MlflowException

    database = sqlite_file(uri)
    # Without a server artifacts lie beside the database, not where the process happens to run.
    location = artifacts(database) if database else None

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, location))
    except MlflowException:  # another writer was first
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _make_ready(database: Path) -> None:
    make_database(database)
    if database.resolve() == (_project_folder() / "mlflow.db").resolve():
        follow(database)  # another one's artifacts may be where somebody wanted them


def _client(uri: str) -> "MlflowClient":
    os.environ.update(TELEMETRY_OFF)
    # A server that is down is known to be after seconds, not minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # MLflow would print the address of every run, its server's password included.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow.MlflowClient(uri)


def _try_to_connect(uri: str) -> None:
    """One attempt at a database of another kind: MLflow would make ten, which take minutes."""
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if uri.split(":")[0].split("+")[0] in DATABASE_ENGINES:
        from sqlalchemy import create_engine

        engine = create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def _project_folder() -> Path:
    return Path(os.environ.get(PROJECT, ""))
