"""Runs of the flow with changed parameters: experiments in copies of the workspace."""

import json
import re
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml

from boss_core.io.files import sha256
from tests.helpers.flow import run, states, tasks
from tests.helpers.in_process import boss
from tests.helpers.prefect_api import artifacts, flow_run

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_two_experiments_at_the_same_time_leave_the_workspace_alone(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    before = project.outputs()
    params = (project.folder / "params.yaml").read_bytes()
    abandoned = project.folder / ".dvc" / "tmp" / "boss-copies" / "killed" / "models"
    abandoned.mkdir(parents=True)  # by a run that was killed
    options = ("--preset", "smoke", "--set", "budgets=[2]", "--name", "two")
    first = project.start("boss", "run", *options, env=prefect_server)
    change = ("--set", "finetune.training.iterations=14")
    shown = run(project, prefect_server, *change, "--name", "longer")
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output
    assert project.outputs() == before
    assert (project.folder / "params.yaml").read_bytes() == params
    assert project.run("git", "status", "--short").stdout == ""
    assert "up to date" in project.run("dvc", "status").stdout
    assert not abandoned.parent.exists()

    listed = pd.read_csv(
        pd.io.common.StringIO(project.run("dvc", "exp", "show", "--csv").stdout)
    ).set_index("Experiment")
    assert listed.loc["longer", "finetune.training.iterations"] == 14
    assert yaml.safe_load(listed.loc["two", "budgets"]) == [2]
    assert listed.loc["two", "metrics/2.json:nfe"] == 2
    assert "These commands are for the files of longer: `dvc exp apply longer` puts them" in shown
    # Beside the workspace, at the end of the run and later; in one table, whatever was changed.
    assert "longer: finetune.training.iterations=14 (12); in brackets those of workspace" in shown
    assert re.search(r"NFE +method +workspace +longer", shown)
    table = boss(project, "compare", "two", "longer", "workspace").stdout
    assert "two: budgets=[2]" not in table  # the first of them
    assert "longer: budgets=[1, 3] ([2]), finetune.training.iterations=14 (12); in" in table
    at = {k: json.loads((project.folder / "metrics" / f"{k}.json").read_text()) for k in (1, 3)}
    for k in (1, 3):  # the untrained is the same with both that have it
        value = at[k]["pretrained_uniform"]["frechet_second_classifier"]
        (line,) = re.findall(rf"^ *{k}  pretrained, uniform steps .*$", table, flags=re.MULTILINE)
        assert line.count(f"{value:.4g} ±") == 2
    # What did not change came from the shared cache, and what did was made, with what follows.
    assert "> python -m flows.stages.teacher" not in output
    made = {name for name, how in states(prefect_server, shown).items() if how == "Ran"}
    assert made == {"check", "finetune@1", "finetune@3", "evaluate@1", "evaluate@3", "report"}
    # Their runs are in the workspace's database, under a parent of their own.
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id])
    names = {
        (r.data.tags.get("dvc_experiment"), r.info.run_name)
        for r in runs
        if "mlflow.parentRunId" in r.data.tags
    }
    assert {("longer", "K=1"), ("longer", "K=3"), ("two", "K=2")} <= names
    # Which say what was called, and have the models of students that were trained in a copy.
    (of_copy,) = [
        r
        for r in runs
        if (r.data.tags.get("dvc_experiment"), r.info.run_name) == ("two", "boss K=2")
    ]
    assert of_copy.data.tags["mlflow.source.name"] == (
        "boss run --preset smoke --set 'budgets=[2]' --name two"
    )
    (output,) = of_copy.outputs.model_outputs
    (weights,) = (project.folder / "mlruns/models" / output.model_id).rglob("model.safetensors")
    (of_budget,) = [r for r in runs if r.info.run_id == of_copy.data.tags["boss.budget_run"]]
    assert of_budget.data.tags["student_hash.boss"] == sha256(weights)
    # And an experiment can be brought back, metrics and models included.
    project.run("dvc", "exp", "apply", "longer")
    assert "up to date" in project.run("dvc", "status").stdout


@pytest.mark.long
def test_an_experiment_of_some_stages_says_nothing_of_the_others(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    change = ("--set", "evaluate.samples=44", "--set", "evaluate.kid_subset_size=40")
    run(project, prefect_server, "--preset", "smoke", *change, "--target", "features")
    name = "smoke_evaluate.samples-44_kid_subset_size-40"  # says what was changed
    listed = pd.read_csv(
        pd.io.common.StringIO(project.run("dvc", "exp", "show", "--csv").stdout)
    ).set_index("Experiment")
    assert listed.loc[name, "evaluate.samples"] == 44
    assert listed.loc[name, "metrics/3.json:nfe"] == "!"  # what DVC shows where there is none
    # Nothing was recorded for the changed parameters that was not made with them.
    project.set({"evaluate.samples": 44, "evaluate.kid_subset_size": 40})
    shown = run(project, prefect_server, "--target", "floor", "--target", "evaluate@3")
    found = states(prefect_server, shown)
    assert found["features"] == "Restored"
    assert found["evaluate@3"] == found["floor"] == "Ran"
    record = json.loads((project.folder / "metrics" / "3.json").read_text())
    assert record["samples"] == 44


@pytest.mark.long
def test_changed_parameters_count_for_targets_and_for_what_was_wrong_before(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"budgets": [0]})
    change = ("--set", "budgets=[1,3]", "--set", "tracking.uri=sqlite:///other.db")
    change += ("--set", "evaluate.samples=46")
    shown = run(project, prefect_server, *change, "--target", "evaluate@3", "--name", "right")
    assert tasks(prefect_server, shown)["evaluate@3"]["state_name"] == "Ran"
    assert "right" in project.run("dvc", "exp", "list", "--name-only").stdout.split()
    # A relative address is one in the user's folder, for the stage and for the links.
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'other.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'K=3'")
    ended = artifacts(prefect_server, flow_run(prefect_server, shown))
    (link,) = [a["data"] for a in ended if a["key"] == "boss-mlflow-3"]
    assert logged.info.run_id in link
    # And a target that they take away is refused.
    change = ("--set", "budgets=[2]", "--target", "finetune@3")
    assert "error: target: 'finetune@3'; a stage needed" in run(
        project, prefect_server, *change, code=2
    )
