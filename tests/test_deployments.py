"""From nothing to a scheduled run, by the commands of the README: real server, worker, MLflow."""

import os
import signal
import subprocess
from pathlib import Path

import mlflow
import pytest

from tests.project import Project
from tests.servers import free_port
from tests.test_flow import api

pytestmark = pytest.mark.slow


def test_deployments_run_on_a_worker(
    flowed, tmp_path: Path, prefect_server: dict[str, str]
) -> None:
    project: Project = flowed[0].copy(tmp_path / "project")
    server = prefect_server
    done = project.run("boss", "deploy", "--pool", "nowhere", code=2, env=server)
    assert done.stderr.startswith("error: --pool: 'nowhere' is no work pool of http://127.0.0.1")
    assert "prefect work-pool create nowhere --type process" in done.stderr

    project.run("prefect", "work-pool", "create", "local", "--type", "process", env=server)
    project.run("boss", "deploy", env=server)
    found = {d["name"]: d for d in api(server, "deployments/filter", {})}
    assert set(found) == {"nightly", "on-demand", "evaluate-only"}
    (schedule,) = found["nightly"]["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert {d["work_pool_name"] for d in found.values()} == {"local"}
    assert found["evaluate-only"]["parameters"]["targets"] == ["evaluate", "floor"]

    worker = project.start("prefect", "worker", "start", "--pool", "local", env=server)
    try:
        run = ["prefect", "deployment", "run", "--watch"]
        overrides = 'overrides=["budgets=[2]","finetune.training.iterations=15"]'
        project.run(*run, "boss-pipeline/on-demand", "--param", overrides, env=server)
        wrong = ["--param", 'overrides=["budgets=[0]"]', "--flow-run-name", "wrong"]
        project.run(*run, "boss-pipeline/on-demand", *wrong, code=1, env=server)
        project.run(*run, "boss-pipeline/evaluate-only", env=server)
        project.run(*run, "boss-pipeline/nightly", env=server)
        runs = api(server, "flow_runs/filter", {})
        (refused,) = [r for r in runs if r["name"] == "wrong"]
        assert refused["state_type"] == "FAILED"
        assert refused["state"]["message"].startswith("--set: budgets.0: 0 found; input should be")
        runs.remove(refused)
        ended = {
            name: [r for r in runs if r["deployment_id"] == found[name]["id"] and r["start_time"]]
            for name in found
        }
        assert {name: [r["state_type"] for r in rs] for name, rs in ended.items()} == {
            name: ["COMPLETED"] for name in found
        }
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.communicate(timeout=30)
        except subprocess.TimeoutExpired:  # now and then Prefect's worker does not end
            os.killpg(worker.pid, signal.SIGKILL)
            worker.communicate()

    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    (logged,) = client.search_runs([experiment.experiment_id], "params.nfe = '2'")
    assert logged.data.metrics["boss/frechet_classifier"] > 0
    assert logged.data.params["finetune.training.iterations"] == "15"
    (flow,) = ended["on-demand"]
    assert logged.data.tags["dvc_experiment"] == flow["name"]
    assert flow["name"] in project.run("dvc", "exp", "list", "--name-only").stdout
    assert "up to date" in project.run("dvc", "status").stdout
    assert project.outputs() == flowed[0].outputs()


def test_deploy_without_a_server(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    url = f"http://127.0.0.1:{free_port()}/api"
    done = project.run("boss", "deploy", code=2, env={"PREFECT_API_URL": url})
    assert done.stderr.startswith(f"error: PREFECT_API_URL: {url}; the address of a running server")
