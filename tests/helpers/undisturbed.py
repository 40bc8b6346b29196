"""A small project after whatever was done to it: as one that nothing disturbed."""

from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project


def assert_as_undisturbed(
    project: Project, finished: Project, way: str = "repro", env: dict[str, str] | None = None
) -> None:
    """The same outputs, the same runs in MLflow, and nothing left to do or to clear away."""
    assert project.outputs() == finished.outputs()
    assert "up to date" in project.run("dvc", "status").stdout
    assert "Running stage" not in project.run("boss", way, env=env).stdout
    assert project.run("git", "status", "--porcelain", "--", ".", ":!dvc.lock").stdout == ""
    assert logged(project) == logged(finished)


def logged(project: Project) -> list[tuple[str, str]]:
    """Of every run in MLflow its name and state."""
    return sorted((run.info.run_name, run.info.status) for run in runs(project))
