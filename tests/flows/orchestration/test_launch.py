"""Starting the flow from a shell: what is refused, and runs and servers that end half way."""

import json
import os
import signal
import sys
from pathlib import Path

import mlflow
import pytest

from tests.helpers.flow import run, states, wait_for_line, wait_until_ended
from tests.helpers.project import running_in
from tests.helpers.servers import free_port
from tests.helpers.servers import prefect_server as own_server

pytestmark = pytest.mark.slow


def test_a_killed_run_in_a_copy_leaves_nothing_running(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    change = ("--set", "trajectories.samples=20_000", "--target", "trajectories", "--name", "kept")
    process = project.start("boss", "run", *change, env=prefect_server)
    wait_for_line(process, "> python -m flows.stages.trajectories")
    copy = project.folder / ".dvc" / "tmp" / "boss-copies" / "kept"
    assert running_in(copy)
    process.kill()  # it alone
    process.communicate(timeout=60)
    wait_until_ended(copy)
    wait_until_ended(project.folder)


@pytest.mark.long
def test_a_second_full_run_in_the_same_workspace(flowed, tmp_path: Path, prefect_server) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set_command("check", lambda command: f"sleep 600; {command}")
    first = project.start("boss", "run", env=prefect_server)
    wait_for_line(first, "> sleep 600")
    shown = run(project, prefect_server, code=2)
    assert "error: " in shown
    assert "another run is at work in this folder; wait for it, or give `boss run` --set" in shown
    first.terminate()
    first.communicate(timeout=300)


@pytest.mark.long
def test_a_server_that_is_lost_half_way_costs_no_finished_stage(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.stand_in("cost")
    project.stand_in("trajectories", "sleep 10")
    with own_server(tmp_path) as server:
        lost = server | {"PREFECT_CLIENT_MAX_RETRIES": "1"}
        process = project.start("boss", "run", env=lost)
        wait_for_line(process, "> sleep 10")
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 2, shown
    assert "error: Prefect's server was lost; every finished stage is kept, run again" in shown
    assert "cost" not in project.run("dvc", "status").stdout


@pytest.mark.long
def test_a_server_that_freezes_holds_no_run(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    served = tmp_path / "server"
    served.mkdir()
    command = (
        "import sys; from flows.cli import app as cli; from flows.orchestration import launch;"
        " launch.LOST = 5.0;"
        " sys.argv = ['boss', 'run', '--target', 'prepare']; cli.main()"
    )
    lost = "error: Prefect's server was lost; every finished stage is kept, run again"
    over = "warning: Prefect's server may lack the end of this run, which is over"
    with own_server(served) as server:
        why = f"({server['PREFECT_API_URL']}: no answer for 5 s)"
        for when, code, says in (("Beginning flow run", 2, lost), ("Completed('", 0, over)):
            for _ in range(5):
                process = project.start(sys.executable, "-c", command, env=server)
                wait_for_line(process, when)
                frozen = running_in(served)
                for pid in frozen:
                    os.kill(pid, signal.SIGSTOP)
                try:
                    shown, _ = process.communicate(timeout=60)
                finally:
                    for pid in frozen:
                        os.kill(pid, signal.SIGCONT)
                assert process.returncode == code, shown
                lines = shown.splitlines()
                found = [line for line in lines if line.startswith(("error", "warning"))]
                if found or code:
                    break  # else the end had reached the server before it froze
            assert found == [f"{says} {why}"]


@pytest.mark.long
def test_servers_that_are_down_do_not_stop_the_work(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    address = f"127.0.0.1:{free_port()}"
    project.set({"tracking.uri": f"http://boss:geheim@{address}", "evaluate.samples": 71})
    project.stand_in("floor")
    down = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    once = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # of its client, which is asked four times
    done = project.run("boss", "run", "--target", "evaluate@3", env=down | once)
    assert "does not answer; the run goes on with a server of its own" in done.stderr
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown
    assert "encountered an exception TrackingLostError" not in done.stderr.splitlines()[-1]
    assert "the records are safe in metrics/" in shown
    assert f"MLflow at http://boss:***@{address}: " in shown
    assert "geheim" not in shown
    for database in Path(os.environ["PREFECT_HOME"]).glob("prefect.db*"):
        assert b"geheim" not in database.read_bytes()
    assert json.loads((project.folder / "metrics" / "3.json").read_text())["samples"] == 71
    # Later, with a database that answers, the record is projected.
    project.set({"tracking.uri": None})
    project.run("boss", "track")
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    logged = client.search_runs([experiment.experiment_id], "attributes.run_name = 'K=3'")
    assert {run.data.metrics["samples"]: run.data.tags["mlflow.source.name"] for run in logged} == {
        70: "boss run", 71: "boss run --target evaluate@3",
    }  # fmt: skip


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.long),
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_flow_ended_half_way_loses_no_finished_stage(
    flowed, tmp_path: Path, prefect_server, how: signal.Signals
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    for stage in ("cost", "schedule"):
        project.stand_in(stage)
    project.stand_in("trajectories", "sleep 600")
    process = project.start("boss", "run", env=prefect_server)
    wait_for_line(process, "> sleep 600")
    if how == signal.SIGKILL:  # of all that the shell knows of, the flow and what is in its group
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    process.communicate(timeout=300)
    wait_until_ended(project.folder)
    if how == signal.SIGINT:
        assert (project.folder / "trajectories" / "states.npy").exists()  # of the last good run
    shown = run(project, prefect_server, "--target", "schedule")
    found = states(prefect_server, shown)
    assert found["cost"] == "Cached"
    assert found["schedule"] == "Cached"
