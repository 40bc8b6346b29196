"""Links to MLflow's pages, and addresses that hold passwords."""

import json
from pathlib import Path

import pytest

from flows.tracking.links import read_links, runs_page
from tests.helpers.in_process import boss
from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project
from tests.helpers.servers import mlflow_server


def test_a_budget_whose_record_is_not_whole_is_passed_over(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    boss(project, "track")  # the links of this folder's database
    uri = f"sqlite:///{project.folder / 'mlflow.db'}"
    assert list(read_links(uri, [1, 3], project.folder)) == [1, 3]

    schedules = project.folder / "results" / "schedules.json"
    content = json.loads(schedules.read_text())
    del content["1"]
    schedules.write_text(json.dumps(content))
    assert list(read_links(uri, [1, 3], project.folder)) == [3]
    (project.folder / "results" / "curves" / "3.csv").unlink()
    assert read_links(uri, [1, 3], project.folder) == {}
    done = boss(project, "track", "--rebuild")
    assert done.stdout.splitlines() == [
        "K=1: not logged: results/schedules.json: no budget 1; `boss run` makes it",
        "K=3: not logged: results/curves/3.csv: no such file; `boss run` makes it",
    ]
    schedules.unlink()
    assert read_links(uri, [1, 3], project.folder) == {}


def test_a_password_is_neither_logged_nor_shown(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    database = tmp_path / "server.db"
    with mlflow_server(database, tmp_path / "artifacts", tmp_path) as url:
        uri = url.replace("//", "//boss:geheim@")
        project.set({"tracking.uri": uri})
        done = boss(project, "track", "--rebuild")
        logged = ["K=1: logged to MLflow", "K=3: logged to MLflow", "report: logged to MLflow"]
        assert done.stdout.splitlines() == logged
        links = read_links(uri, [1, 3], project.folder)
    assert all(link.startswith(f"{url}/#/experiments/") for link in links.values())
    assert len(links) == 2
    for path in [database, *(project.folder / ".dvc" / "tmp").rglob("*")]:
        assert path.is_dir() or b"geheim" not in path.read_bytes(), path
    # As for most users, not as in containers: Python keeps what it writes into a pipe.
    with project.start("boss", "ui", "--port", "0", env={"PYTHONUNBUFFERED": ""}) as ui:
        assert ui.stdout is not None
        line = ui.stdout.readline()
        ui.terminate()
    assert line.endswith(f"showing {url.replace('//', '//boss:***@')}\n")


def test_the_page_of_the_runs(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = finished.copy(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    uri = f"sqlite:///{project.folder / 'mlflow.db'}"
    boss(project, "track")
    experiment = runs(project)[0].info.experiment_id
    page = f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert runs_page(uri, [1, 3]) == page
    assert runs_page(uri, [2]) == ""
