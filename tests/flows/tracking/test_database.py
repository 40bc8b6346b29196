"""MLflow's database: made whole, and following its folder."""

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import mlflow
import pytest

from boss_core.errors import InputError
from flows.tracking.connection import prepare_database
from flows.tracking.database import follow, make_database
from tests.helpers.in_process import boss
from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project


@pytest.mark.long
def test_the_database_appears_whole(finished: Project, tmp_path: Path) -> None:
    """Killed at any moment while MLflow makes its tables, the next run tracks as ever."""
    project = finished.copy(tmp_path / "project")
    (project.folder / "mlflow.db").unlink()
    for seconds in (0.0, 1.5):
        track = project.start("boss", "track")
        parts = []
        while not parts and track.poll() is None:
            parts = list(project.folder.glob(".mlflow.db.*.part/mlflow.db-journal"))
            time.sleep(0.001)
        time.sleep(seconds)
        assert not (project.folder / "mlflow.db").exists()
        os.killpg(track.pid, signal.SIGKILL)
        track.communicate()
    done = project.run("boss", "track", "--rebuild")
    logged = ["K=1: logged to MLflow", "K=3: logged to MLflow", "report: logged to MLflow"]
    assert done.stdout.splitlines() == logged
    # Nor is the journal left that SQLite has beside a database.
    assert [path.name for path in project.folder.glob(".mlflow.db*")] == []


def test_artifacts_move_with_their_folder(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = finished.copy(tmp_path / "a copy é")
    boss(project, "track")
    for run in runs(project):
        artifacts = Path(unquote(run.info.artifact_uri.removeprefix("file://")))
        assert artifacts.is_relative_to(project.folder), artifacts
        if run.info.run_name == "K=3":
            client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
            path = Path(client.download_artifacts(run.info.run_id, "3.json", str(tmp_path)))
            assert path.read_bytes() == (project.folder / "metrics" / "3.json").read_bytes()
    # And the first is as it was.
    assert all(str(finished.folder) in run.info.artifact_uri for run in runs(finished))


def test_a_file_that_is_no_database(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    database = project.folder / "mlflow.db"
    database.write_bytes(b"no database " * 100)
    done = project.run("boss", "ui", code=2)
    (error,) = done.stderr.splitlines()
    assert error.startswith(f"error: {database}: no database of MLflow's that works (file is not a")
    assert error.endswith("move it away, and a new one is made")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other, other:
        other.execute("CREATE TABLE mine (a)")
    (tmp_path / "other.db").replace(database)
    with pytest.raises(InputError, match="no such table: experiments"):
        follow(database)
    # An empty file, as a kill leaves it, is none.
    database.write_bytes(b"")
    prepare_database(f"sqlite:///{database}")
    with closing(sqlite3.connect(database)) as made:
        assert made.execute("SELECT name FROM experiments").fetchall() == [("Default",)]


def test_only_artifacts_that_were_left_behind_are_followed(tmp_path: Path) -> None:
    """Of an old folder that is gone, of one copied from, and of a store that others use."""
    database = tmp_path / "new é" / "mlflow.db"
    make_database(database)
    copied, shared = tmp_path / "copied é" / "mlruns", tmp_path / "shared" / "mlruns"
    for folder in (copied, shared):
        folder.mkdir(parents=True)
    (copied.parent / "mlflow.db").touch()
    addresses = [f.as_uri() for f in (tmp_path / "moved" / "mlruns", copied, shared)]
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    made = [client.create_experiment(str(n), address) for n, address in enumerate(addresses)]
    made_runs = [client.create_run(of).info.run_id for of in made]
    follow(database)
    here = (database.parent / "mlruns").as_uri()
    found = [client.get_experiment(of).artifact_location for of in made]
    assert found == [here, here, shared.as_uri()]
    uris = [client.get_run(of).info.artifact_uri for of in made_runs]
    assert [uri.rsplit("/", 2)[0] for uri in uris] == found
