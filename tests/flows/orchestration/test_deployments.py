"""From nothing to a scheduled run, by the commands of a tutorial: real server, worker, MLflow."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest

from flows.workspace.process import exclusive
from tests.helpers.in_process import boss
from tests.helpers.pages import blocks
from tests.helpers.prefect_api import api
from tests.helpers.project import Project, environment, running_in
from tests.helpers.servers import free_port

pytestmark = pytest.mark.slow
# How often a worker asks for runs, in place of every ten seconds.
AT_ONCE = {"PREFECT_WORKER_QUERY_SECONDS": "2"}


PAGE = "docs/tutorials/nightly.md"


# A record of Prefect's logs begins with the time.
RECORD = re.compile(r"^(?=\d\d:\d\d:\d\d\.\d{3} \| )", re.MULTILINE)
LOST_HEARTBEAT = re.compile(
    r"[^\n]*\| ERROR   \| prefect\.server\.utilities\.worker_channel"
    r" - Worker channel heartbeat persistence failed: [^\n]*\nTraceback .*"
    r"\nsqlalchemy\.exc\.OperationalError: \(sqlite3\.OperationalError\) database is locked"
    r"\n\[SQL: INSERT INTO worker [^\n]*\n\[parameters: [^\n]*\n\(Background [^\n]*\s*",
    re.DOTALL,
)


def without_lost_heartbeats(log: str) -> str:
    """The log of a server of Prefect's but for one failure that is its own and no loss.

    For each heartbeat of a worker it reads the pool and then writes, in one transaction that
    begins as a reading one; where another has written in between, SQLite refuses that at once,
    however long the timeout. The server then closes the worker's channel with a reason
    (HEARTBEAT_PERSISTENCE_FAILED) that the worker takes for one to try again: it connects after a
    second, and meanwhile sends its heartbeats over REST (prefect.workers._worker_channel)."""
    return "".join(part for part in RECORD.split(log) if not LOST_HEARTBEAT.fullmatch(part))


def test_a_lost_heartbeat_is_told_from_all_else() -> None:
    start = "10:00:00.000 | INFO    | prefect.server - it begins\n"
    lost = (
        "10:00:01.000 | ERROR   | prefect.server.utilities.worker_channel - Worker channel"
        " heartbeat persistence failed: work_pool=local worker_name=one\n"
        "Traceback (most recent call last):\n  somewhere\n"
        "sqlite3.OperationalError: database is locked\n\nThe above exception\n\n"
        "Traceback (most recent call last):\n  elsewhere\n"
        "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked\n"
        "[SQL: INSERT INTO worker (name) VALUES (:name)]\n[parameters: {}]\n"
        "(Background on this error at: https://sqlalche.me/e/20/e3q8)\n"
    )
    assert without_lost_heartbeats(start + lost + start + lost) == start + start
    for other in (
        lost.replace("database is locked", "disk I/O error"),
        lost.replace("INSERT INTO worker", "INSERT INTO flow_run"),
        lost.replace("utilities.worker_channel", "services.scheduler"),
        lost.replace("heartbeat persistence", "cleanup dispatch"),
        lost + "Traceback (most recent call last):\n  of another\n",
        lost.split("[SQL")[0],
    ):
        assert without_lost_heartbeats(start + other + start + lost) == start + other + start


def wait_until(done: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(1)
    return found


def ends_with(watched: str, project: Project, *command: str) -> None:
    """The last entry of a watched run's log is what a command of ours prints."""
    _, header, log = watched.rpartition(f" boss {' '.join(command)}\n")
    assert header, watched
    expected = boss(project, *command, columns=52).stdout
    rows = [line.strip() for line in expected.splitlines() if re.search(r"±[\d.]+ *$", line)]
    assert len(rows) > 10
    found = {line.strip() for line in log.splitlines()}
    assert [row for row in rows if row not in found] == []
    assert max(map(len, log.splitlines())) <= 80


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Where the server of the pasted block will be; it is ended as its user would."""
    port = free_port()
    env = {"PREFECT_HOME": str(tmp_path / "prefect")}
    yield env | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    pid = tmp_path / "prefect" / "server.pid"
    if pid.exists():
        number = int(pid.read_text())
        subprocess.run(["prefect", "server", "stop"], env=environment(env), check=True)
        wait_until(lambda: not Path(f"/proc/{number}").exists(), 30)


def test_from_nothing_to_runs_that_start_by_themselves(
    flowed, tmp_path: Path, own_server: dict[str, str]
) -> None:
    project: Project = flowed[0].copy(tmp_path / "project")
    deployments = project.folder / "prefect.yaml"
    assert 'cron: "0 2 * * *"' in deployments.read_text()
    script = "".join(block.text for block in blocks(PAGE, "bash"))
    assert script.count("30 3 * * 1-5") == 1
    assert "127.0.0.1:4200" in script
    soon = datetime.now(UTC) + timedelta(minutes=4)  # a night takes too long
    script = script.replace("30 3 * * 1-5", f"{soon.minute} * * * *")
    assert script.count("budgets=[4,6]") == 1
    script = script.replace("budgets=[4,6]", "budgets=[6]")  # and so do two budgets
    port = own_server["PREFECT_API_URL"].rsplit(":", 1)[1].removesuffix("/api")
    shell = project.start(
        "bash", "-ex", env={"PREFECT_HOME": own_server["PREFECT_HOME"]} | AT_ONCE, pipe=True
    )
    try:
        assert shell.stdin is not None
        shell.stdin.write(script.replace("4200", port))
        shell.stdin.close()
        shell.stdin = None
        shown, _ = shell.communicate(timeout=400)
        assert shell.returncode == 0, shown
        found = {d["name"]: d for d in api(own_server, "deployments/filter", {})}
        assert set(found) == {"nightly", "on-demand", "evaluate-only"}
        (schedule,) = found["nightly"]["schedules"]
        assert schedule["active"]
        assert {d["work_pool_name"] for d in found.values()} == {"local"}

        def runs(name: str) -> list[dict[str, Any]]:
            wanted = {"deployments": {"id": {"any_": [found[name]["id"]]}}}
            return api(own_server, "flow_runs/filter", wanted)

        upcoming = [r for r in runs("nightly") if r["state_type"] == "SCHEDULED"]
        assert len(upcoming) > 1  # what the page lists under "Upcoming"
        starts = sorted(r["expected_start_time"] for r in upcoming)
        assert all(start[14:19] == f"{soon:%M}:00" for start in starts)
        assert len(set(starts)) == len(starts)

        def by_itself() -> list[dict[str, Any]]:
            return [
                r for r in runs("nightly") if r["auto_scheduled"] and r["state_type"] == "COMPLETED"
            ]

        run = ["prefect", "deployment", "run", "--watch"]
        wrong = ["--param", 'overrides=["budgets=[0]"]']
        project.run(*run, "boss-pipeline/on-demand", *wrong, code=1, env=own_server)
        refused, asked = sorted(runs("on-demand"), key=lambda r: r["state_type"], reverse=True)
        assert (refused["state_type"], asked["state_type"]) == ("FAILED", "COMPLETED")
        assert refused["state"]["message"].startswith("--set: budgets.0: 0 found; input should be")
        assert [r["state_type"] for r in runs("evaluate-only")] == ["COMPLETED"]
        # What is watched ends with what `boss run` prints, in lines that a terminal has.
        of_experiment, _, measured = shown.partition(
            "\n+ prefect deployment run boss-pipeline/evaluate-only --watch\n"
        )
        ends_with(of_experiment, project, "compare", asked["name"])
        ends_with(measured, project, "table")
        wait_until(by_itself, 360)
        # One that is asked for while another run is at work waits for its end.
        evaluate = "boss-pipeline/evaluate-only"
        with exclusive(project.folder, waiting=lambda: None):
            watched = project.start(*run, evaluate, env=own_server)
            told = {"logs": {"flow_run_id": {"any_": []}}, "sort": "TIMESTAMP_DESC"}

            def waits() -> bool:
                newest = max(runs("evaluate-only"), key=lambda r: r["created"])
                told["logs"]["flow_run_id"]["any_"] = [newest["id"]]
                lines = [line["message"] for line in api(own_server, "logs/filter", told)]
                return "another run is at work in this folder: waiting for its end" in lines

            wait_until(waits, 120)
        shown, _ = watched.communicate(timeout=200)
        assert watched.returncode == 0, shown
        assert [r["state_type"] for r in runs("evaluate-only")] == ["COMPLETED"] * 2
        log = without_lost_heartbeats((Path(own_server["PREFECT_HOME"]) / "server.log").read_text())
        assert "Traceback" not in log
        assert not re.search(r"\b(ERROR|CRITICAL)\b", log), log
    finally:
        for pid in running_in(project.folder):  # the worker, and a run that it may have begun
            os.kill(pid, signal.SIGTERM)
        try:
            wait_until(lambda: not running_in(project.folder), 30)
        except AssertionError:  # now and then Prefect's worker does not end
            for pid in running_in(project.folder):
                os.kill(pid, signal.SIGKILL)

    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    (logged,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'boss K=6'")
    assert logged.data.metrics["frechet"] > 0
    assert logged.data.tags["dvc_experiment"] == asked["name"]
    source = ("deployment boss-pipeline/on-demand", "JOB")
    assert tuple(logged.data.tags[f"mlflow.source.{key}"] for key in ("name", "type")) == source
    assert asked["name"] in project.run("dvc", "exp", "list", "--name-only").stdout
    assert "up to date" in project.run("dvc", "status").stdout
    assert project.outputs() == flowed[0].outputs()


def test_a_pool_that_is_not_there(flowed, tmp_path: Path, prefect_server: dict[str, str]) -> None:
    project = flowed[0].copy(tmp_path / "project")
    done = project.run("boss", "deploy", "--pool", "nowhere", code=2, env=prefect_server)
    assert done.stderr.startswith("error: --pool: 'nowhere' is no work pool of http://127.0.0.1")
    assert "prefect work-pool create nowhere --type process" in done.stderr


def test_without_a_server(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    url = f"http://127.0.0.1:{free_port()}/api"
    done = project.run("boss", "deploy", code=2, env={"PREFECT_API_URL": url})
    assert done.stderr.startswith(f"error: PREFECT_API_URL: {url}; the address of a running server")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://192.0.2.1:4200/api", "a server of this machine's own"),
        ("https://127.0.0.1:4200/api", "a server of this machine's own"),
        ("http://127.0.0.1:99999/api", "Port out of range"),
        ("http://127.0.0.1:0/api", "starts at an address as"),
        (None, "is in use by something else"),
    ],
)
def test_a_server_that_cannot_be_started(tmp_path: Path, url: str | None, why: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = url or f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        env = environment({"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": url})
        done = subprocess.run(["boss", "server"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: PREFECT_API_URL: {url}")
    assert why in line
    assert not (tmp_path / "server.pid").exists()
