"""Prefect's database does not grow without bound: what `boss server` and compose.yaml have it
forget, and what not."""

import contextlib
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.orchestration.server import RETENTION
from tests.helpers.checkout import ROOT
from tests.helpers.prefect_api import api
from tests.helpers.project import Project
from tests.helpers.servers import free_port

DAY = 24 * 3600.0
TABLES = ("flow_run", "flow_run_state", "task_run", "task_run_state", "log", "artifact")


def test_compose_has_what_boss_server_has() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    assert RETENTION.items() <= services["prefect"]["environment"].items()


@contextlib.contextmanager
def boss_server(folder: Path, home: Path) -> Iterator[dict[str, str]]:
    """``boss server`` on a copy of a database, which looks for old runs every second."""
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "1",
    }
    project = Project(folder)
    project.run("boss", "server", env=environment)
    try:
        yield environment
    finally:
        os.kill(int((home / "server.pid").read_text()), signal.SIGTERM)


def counts(database: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in TABLES
        }


def age(database: Path, days: float) -> None:
    """Have all runs ended so many days earlier."""
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        connection.execute(
            "UPDATE flow_run SET end_time = datetime(end_time, ?)", [f"-{days} days"]
        )


@pytest.mark.slow
def test_old_runs_go_and_new_ones_stay(flow_folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    shutil.copytree(flow_folder / "prefect", home)
    database = home / "prefect.db"
    before = counts(database)
    assert all(before.values()), before
    age(database, 89)
    with boss_server(tmp_path, home) as server:
        time.sleep(5)
        assert counts(database) == before
        (run,) = api(server, "flow_runs/filter", {})
        new = api(server, "flow_runs/", {"flow_id": run["flow_id"], "name": "new"})
        done = {"state": {"type": "COMPLETED"}, "force": True}
        api(server, f"flow_runs/{new['id']}/set_state", done)
        with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
            old = "UPDATE flow_run SET end_time = datetime(end_time, '-2 days') WHERE name != 'new'"
            connection.execute(old)
        end = time.monotonic() + 60
        while (left := counts(database))["log"] or left["flow_run"] > 1:
            assert time.monotonic() < end, left
            time.sleep(0.5)
        assert [each["name"] for each in api(server, "flow_runs/filter", {})] == ["new"]
    left = counts(database)  # those of a flow run go with it
    assert left["task_run"] == left["task_run_state"] == left["log"] == left["artifact"] == 0
    assert left["flow_run"] == 1
    with contextlib.closing(sqlite3.connect(database)) as connection:
        states = "SELECT DISTINCT flow_run.name FROM flow_run_state LEFT JOIN flow_run"
        states += " ON flow_run.id = flow_run_state.flow_run_id"
        assert connection.execute(states).fetchall() == [("new",)]
