"""MLflow as a projection of the record: a real database."""

import shutil
from pathlib import Path

import mlflow
import pandas as pd

from tests.project import Project


def runs(project: Project) -> list:
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])


def test_one_run_for_each_budget_with_everything(finished: Project) -> None:
    import json

    found = {run.info.run_name: run for run in runs(finished)}
    assert set(found) == {"K=1", "K=3"}
    run = found["K=3"]
    record = json.loads((finished.folder / "metrics" / "3.json").read_text())
    assert run.info.status == "FINISHED"
    for variant in ("pretrained_uniform", "pretrained_bellman", "straightened_uniform", "boss"):
        for name, value in record[variant].items():
            assert run.data.metrics[f"{variant}/{name}"] == value
    assert run.data.params["nfe"] == "3"
    assert run.data.params["finetune.training.iterations"] == "12"
    assert run.data.tags["teacher_hash"] == record["teacher_hash"]
    assert run.data.tags["student_hash.bellman"] == record["student_hash"]["bellman"]
    head = finished.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    assert run.data.tags["git_commit"] == head

    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    curve = pd.read_csv(finished.folder / "results" / "curves" / "3.csv")
    history = client.get_metric_history(run.info.run_id, "training/bellman_loss")
    assert [(m.step, m.value) for m in history] == list(
        zip(curve["step"], curve["bellman_loss"], strict=True)
    )
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert names == {"schedules.json", "3.json", "samples"}
    grids = {a.path for a in client.list_artifacts(run.info.run_id, "samples")}
    assert "samples/boss.png" in grids


def test_tracking_twice_changes_nothing_and_a_lost_database_loses_nothing(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    before = {run.info.run_id for run in runs(project)}
    project.run("boss", "track")
    assert {run.info.run_id for run in runs(project)} == before
    (project.folder / "mlflow.db").unlink()
    shutil.rmtree(project.folder / "mlruns")
    project.run("boss", "track")
    project.run("boss", "track")
    again = {run.info.run_name: run.data.metrics for run in runs(project)}
    assert again == {run.info.run_name: run.data.metrics for run in runs(finished)}


def test_a_server_that_is_down_is_a_warning(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.set({"tracking.uri": "http://127.0.0.1:9"})
    done = project.run("boss", "track")
    assert "warning: MLflow at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert "`boss track` logs them later" in done.stderr
