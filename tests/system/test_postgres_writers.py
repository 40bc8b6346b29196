"""Many writers on PostgreSQL under Prefect and MLflow, and a database that is restarted beneath
them: nothing is lost, and nothing is there twice."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from tests.helpers.compose import Stack
from tests.helpers.flow import wait_for_line
from tests.helpers.mlflow_runs import runs
from tests.helpers.postgres import control, environment_of, services, start_again
from tests.helpers.project import Project

pytestmark = pytest.mark.slow

WRITERS = 8


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with services(tmp_path_factory.mktemp("stack")) as found:
        yield found


def rename(project: Project, number: int) -> None:
    """Have a project's records be no other's."""
    for metrics in (project.folder / "metrics").glob("[0-9]*.json"):
        metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"of": number}))


def logged(client: mlflow.MlflowClient, run: Run) -> tuple:
    """All that a run shows, but for what tells its time and its project: of altered records nothing
    that sampling took is known."""
    of_project = {"seed", "budgets"}
    params = {key: value for key, value in run.data.params.items() if key not in of_project}
    models = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    return (
        run.info.status,
        params,
        {key: value for key, value in run.data.metrics.items()
         if key != "seconds" and not key.startswith("usage/sampling")},
        sorted(files(lambda path: client.list_artifacts(run.info.run_id, path))),
        [sorted(files(lambda path, m=m: client.list_logged_model_artifacts(m, path)))
         for m in models],
    )  # fmt: skip


def files(listed: Callable, path: str | None = None) -> list[tuple[str, int]]:
    """Names and sizes, but for those of what names its place, or was altered by the test."""
    found = []
    for entry in listed(path):
        size = 0 if entry.path in ("MLmodel", "1.json") else entry.file_size
        found += files(listed, entry.path) if entry.is_dir else [(entry.path, size)]
    return found


def of_seed(client: mlflow.MlflowClient, seed: int) -> list[Run]:
    """The runs of one project, in the database of all, by its parent."""
    (experiment,) = client.search_experiments(filter_string="name = 'digits'")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in found if run.data.params.get("seed") == str(seed)
               and "mlflow.parentRunId" not in run.data.tags]  # fmt: skip
    assert len(parents) == 1
    below = [r for r in found if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    return [*parents, *below]


@pytest.mark.long
def test_two_clones_log_the_same_records_at_once(
    finished: Project, stack: Stack, tmp_path: Path
) -> None:
    """As when two people bring the same run up to date: who loses a run to the other says so, and
    in the end all is there once."""
    clones = [finished.copy(tmp_path / name) for name in ("one", "two")]
    for clone in clones:
        clone.set({"seed": 77})  # a parent of no other test
        rename(clone, 77)
    environment = environment_of(stack)
    for _ in range(2):  # the second time one after the other
        for writer in [c.start("boss", "track", "--rebuild", env=environment) for c in clones]:
            shown, _ = writer.communicate(timeout=600)
            assert "Traceback" not in shown
    for clone in clones:
        shown = clone.run("boss", "track", "--rebuild", env=environment).stdout
        assert "logged to MLflow" not in shown
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    names = [run.info.run_name for run in of_seed(client, 77)[1:]]
    expected = [r.info.run_name for r in runs(finished) if "mlflow.parentRunId" in r.data.tags]
    assert sorted(names) == sorted(expected)


@pytest.mark.long
def test_eight_projects_log_at_once(finished: Project, stack: Stack, tmp_path: Path) -> None:
    """Of each its records of one budget: the runs that it would have alone, with all they hold."""
    alone = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    expected = {run.info.run_name: run for run in runs(finished)}
    names = {name for name in expected if name.endswith(" K=1") or name == "K=1"}
    names |= {name for name in expected if name.startswith("teacher ")}
    projects = []
    for seed in range(1, WRITERS + 1):
        project = finished.copy(tmp_path / f"project-{seed}")
        project.set({"seed": seed, "budgets": [1]})
        rename(project, seed)
        projects.append(project)
    environment = environment_of(stack)
    writers = [p.start("boss", "track", "--rebuild", env=environment) for p in projects]
    for writer in writers:
        shown, _ = writer.communicate(timeout=600)
        assert writer.returncode == 0, shown
        assert "K=1: logged to MLflow" in shown
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    for seed, project in enumerate(projects, 1):
        parent, *below = of_seed(client, seed)
        assert parent.info.status == "FINISHED"
        assert Counter(run.info.run_name for run in below) == Counter(names)
        for run in below:
            assert logged(client, run) == logged(alone, expected[run.info.run_name])
        (of_budget,) = [run for run in below if run.info.run_name == "K=1"]
        kept = client.download_artifacts(of_budget.info.run_id, "1.json", str(project.folder))
        assert Path(kept).read_bytes() == (project.folder / "metrics" / "1.json").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("mode", ["fast", "immediate", "outage"])
def test_the_database_is_restarted_in_the_middle_of_a_run(
    finished: Project, stack: Stack, tmp_path: Path, mode: str
) -> None:
    """Once while a stage runs and once while MLflow is written to. outage: it is away for seconds,
    so that what is asked of the servers meanwhile fails."""
    seed = {"fast": 101, "immediate": 102, "outage": 103}[mode]
    project = finished.copy(tmp_path / "project")
    rename(project, seed)
    project.stand_in("evaluate", "sleep 5")
    environment = environment_of(stack)
    before = stack.query("mlflow", "SELECT count(*) FROM runs")
    with project.start("boss", "run", env=environment) as run:
        wait_for_line(run, "> sleep 5")
        bounce(stack, mode)
        while stack.query("mlflow", "SELECT count(*) FROM runs") == before and run.poll() is None:
            time.sleep(0.2)
        bounce(stack, mode)
        shown, _ = run.communicate(timeout=300)
    ended_well_or_says_what_to_do(run, shown)
    project.run("boss", "run", env=environment)
    project.run("boss", "track", "--rebuild", env=environment)
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    alone = {run.info.run_name for run in runs(finished) if "mlflow.parentRunId" in run.data.tags}
    found = runs_with(client, project)
    assert Counter(run.info.run_name for run in found) == Counter(alone)
    assert {run.info.status for run in found} == {"FINISHED"}


@pytest.mark.long
def test_the_database_is_away_as_a_run_ends(
    finished: Project, stack: Stack, tmp_path: Path
) -> None:
    """The end of the run is what has to be known of it."""
    project, environment = finished.copy(tmp_path / "project"), environment_of(stack)
    project.run("boss", "run", env=environment)
    with project.start("boss", "run", env=environment) as run:
        wait_for_line(run, "Task run 'check'")
        bounce(stack, "outage")
        shown, _ = run.communicate(timeout=300)
    ended_well_or_says_what_to_do(run, shown)
    assert run.returncode == 0, shown
    newest = "SELECT state_name FROM flow_run ORDER BY created DESC LIMIT 1"
    assert stack.query("prefect", newest) == [("Completed",)]


def bounce(stack: Stack, mode: str) -> None:
    if mode != "outage":
        control(stack, "restart", "-m", mode)
        return
    control(stack, "stop", "-m", "immediate")
    time.sleep(6)
    start_again(stack)


def ended_well_or_says_what_to_do(run: "subprocess.Popen[str]", shown: str) -> None:
    assert "Traceback" not in shown
    if run.returncode == 0:
        return
    assert run.returncode == 2, shown
    last = shown.rstrip().splitlines()[-1]
    assert last.startswith("error: "), shown
    assert "again" in last, shown


def runs_with(client: mlflow.MlflowClient, project: Project) -> list[Run]:
    """Those below the parent of a project's records."""
    (experiment,) = client.search_experiments(filter_string="name = 'digits'")
    digest = json.loads((project.folder / ".dvc/tmp/mlflow-runs.json").read_text())
    uri = client.tracking_uri
    ids = {link.rpartition("/")[2] for key, link in digest.items() if key.startswith(uri)}
    found = client.search_runs([experiment.experiment_id], max_results=5000)
    parents = {r.data.tags["mlflow.parentRunId"] for r in found if r.info.run_id in ids}
    assert len(parents) == 1
    return [r for r in found if r.data.tags.get("mlflow.parentRunId") in parents]
