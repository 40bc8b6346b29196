"""MLflow as a projection of the record: a real database."""

import hashlib
import json
import shutil
from pathlib import Path

import mlflow
import pandas as pd

from tests.project import Project
from tests.test_pipeline import VARIANTS


def runs(project: Project) -> list:
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])


def test_one_run_for_each_budget_with_everything(finished: Project) -> None:
    found = {run.info.run_name: run for run in runs(finished)}
    run = found.pop("K=3")
    assert found.pop("K=1").data.tags["mlflow.parentRunId"] == run.data.tags["mlflow.parentRunId"]
    (parent,) = found.values()
    assert parent.info.run_id == run.data.tags["mlflow.parentRunId"]
    record = json.loads((finished.folder / "metrics" / "3.json").read_text())
    assert run.info.status == "FINISHED"
    for variant in VARIANTS:
        for name, value in record[variant].items():
            assert run.data.metrics[f"{variant}/{name}"] == value
    assert run.data.params["nfe"] == "3"
    assert run.data.params["finetune.training.iterations"] == "12"
    assert run.data.tags["teacher_hash"] == record["teacher_hash"]
    assert run.data.tags["student_hash.boss"] == record["student_hash"]["boss"]
    head = finished.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    assert run.data.tags["git_commit"] == head

    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    curve = pd.read_csv(finished.folder / "results" / "curves" / "3.csv")
    history = client.get_metric_history(run.info.run_id, "training/boss_loss")
    assert [(m.step, m.value) for m in history] == list(
        zip(curve["step"], curve["boss_loss"], strict=True)
    )
    schedule = json.loads((finished.folder / "results" / "schedules.json").read_text())["3"]
    text = json.dumps([schedule["bellman"]], sort_keys=True).encode()
    assert run.data.tags["schedule_hash.bellman"] == hashlib.sha256(text).hexdigest()
    assert run.data.tags["variant"].split(",") == list(VARIANTS)
    assert run.data.tags["chosen.objective"] == schedule["chosen"]["objective"]
    assert run.data.params["schedule.solver"] == "ab2"
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert names == {"schedules.json", "3.json", "samples"}
    grids = {a.path for a in client.list_artifacts(run.info.run_id, "samples")}
    assert "samples/boss.png" in grids


def test_the_parent_shows_each_metric_against_nfe(finished: Project) -> None:
    (parent,) = [run for run in runs(finished) if "boss.pipeline" in run.data.tags]
    assert parent.info.status == "FINISHED"
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    for variant in ("pretrained_uniform", "boss"):
        history = client.get_metric_history(parent.info.run_id, f"{variant}/frechet_classifier")
        expected = {
            k: json.loads((finished.folder / "metrics" / f"{k}.json").read_text())[variant]
            for k in (1, 3)
        }
        assert {m.step: m.value for m in history} == {
            k: values["frechet_classifier"] for k, values in expected.items()
        }


def test_tracking_twice_changes_nothing_and_a_lost_database_loses_nothing(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    before = {run.info.run_id for run in runs(project)}
    project.run("boss", "track")
    assert {run.info.run_id for run in runs(project)} == before
    (project.folder / "mlflow.db").unlink()
    shutil.rmtree(project.folder / "mlruns")
    project.run("boss", "track", "--rebuild")
    first = {run.info.run_id for run in runs(project)}
    shown = project.run("boss", "track", "--rebuild").stdout
    assert shown == "K=1: already logged\nK=3: already logged\n"
    assert {run.info.run_id for run in runs(project)} == first
    again = {run.info.run_name: run.data.metrics for run in runs(project)}
    assert again == {run.info.run_name: run.data.metrics for run in runs(finished)}


def test_a_server_that_is_down_is_a_warning(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.set({"tracking.uri": "http://127.0.0.1:9"})
    done = project.run("boss", "track")
    assert "warning: MLflow at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert "`boss track` logs them later" in done.stderr
    done = project.run("boss", "track", "--rebuild", code=2)
    assert done.stderr.startswith("error: MLflow at http://127.0.0.1:9")
