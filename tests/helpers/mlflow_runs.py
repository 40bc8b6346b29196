"""What MLflow's database has of a small project."""

import mlflow

from tests.helpers.project import Project


def runs(project: Project) -> list:
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])
