"""The methods of ``finetune.methods`` through the whole pipeline, with tiny settings."""

import json
import shutil
from pathlib import Path
from typing import get_args

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from boss_core.checkpoints.folder import load_checkpoint
from boss_core.checkpoints.lora import load_adapter
from boss_core.io.files import sha256
from flows.config import Method, load_params
from tests.helpers.in_process import boss
from tests.helpers.project import Project
from tests.helpers.records import record
from tests.helpers.stages import run_after_teacher

METHODS = get_args(Method)
PRETRAINED = ("pretrained_uniform", "pretrained_bellman", "multistep", "chosen_uniform", "chosen")


@pytest.mark.slow
def test_one_method_alone(
    finished: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = finished.copy(tmp_path / "boss")
    project.set({"budgets": [3], "finetune.methods": ["boss"]})
    monkeypatch.chdir(project.folder)
    shutil.rmtree("models/student")  # as DVC does before a stage runs
    run_after_teacher(load_params())
    shown = capsys.readouterr().out
    assert "finetune@3 boss: 12 steps" in shown
    assert "straightened_uniform" not in shown
    found, before = record(project, 3), record(finished, 3)
    assert [name for name in found if name in before and isinstance(found[name], dict)] == [
        "judges", "student_hash", "pretrained_uniform", "pretrained_bellman", "boss",
        "multistep", "chosen_uniform", "chosen",
    ]  # fmt: skip
    assert found["boss"] == before["boss"]  # whatever else is trained
    assert found["student_hash"] == {"boss": before["student_hash"]["boss"]}
    schedules = json.loads((project.folder / "results" / "schedules.json").read_text())["3"]
    card = json.loads((project.folder / "trajectories" / "card.json").read_text())
    assert card["knots"] == schedules["bellman"]["indices"]
    students = project.folder / "models" / "student" / "3"
    assert [folder.name for folder in students.iterdir()] == ["boss"]
    html = (project.folder / "results" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 6 + 2 + 2 * 6


@pytest.mark.long
@pytest.mark.slow
def test_all_methods_side_by_side(
    finished: Project, all_methods: tuple[Project, str], tmp_path: Path
) -> None:
    project, shown = all_methods[0].copy(tmp_path / "all"), all_methods[1]
    table = pd.read_csv(project.folder / "results" / "frechet.csv")
    assert set(table) == {"nfe", *PRETRAINED, *METHODS}
    assert np.isfinite(table).all().all()
    html = (project.folder / "results" / "report.html").read_text()
    for title in ("BOSS with LoRA", "uniform reflow", "distill-K reflow"):
        assert title in html
    assert html.count("data:image/png;base64,") == 6 + 2 + 2 * 2 * 11
    teacher, card = load_checkpoint(project.folder / "models" / "teacher")
    count = sum(p.numel() for p in teacher.parameters())

    for budget in (1, 3):
        found, before = record(project, budget), record(finished, budget)
        for name in before["student_hash"]:  # whatever else is trained
            assert found[name] == before[name]
        students = project.folder / "models" / "student" / str(budget)
        assert {folder.name for folder in students.iterdir()} == set(METHODS)
        assert f"finetune@{budget} boss_lora: 15,176 parameters trained, 32.10 % of" in shown
        assert f" of the teacher's {count:,}\n" in shown
        assert found["student_hash"]["boss_lora"] == sha256(
            students / "boss_lora" / "adapter.safetensors"
        )
        adapted, of_adapter = load_adapter(
            students / "boss_lora", project.folder / "models" / "teacher"
        )
        _, of_full = load_checkpoint(students / "boss")
        assert of_adapter.schedule == of_full.schedule
        assert of_adapter.teacher_hash == card.weights_sha256
        for name, weights in teacher.state_dict().items():
            change = (adapted.state_dict()[name] - weights).abs().max()
            if name.endswith(".weight") and weights.ndim in (2, 4) and "label" not in name:
                assert change > 0, name
            else:  # biases and normalisations stay
                assert change == 0, name
        curve = pd.read_csv(project.folder / "results" / "curves" / f"{budget}.csv")
        for name in METHODS:
            assert np.isfinite(curve[f"{name}_validation_loss"]).all()
        assert f"reflow_distill_validation_loss_time_{budget - 1}" in curve
        assert f"reflow_distill_validation_loss_time_{budget}" not in curve
        assert "reflow_uniform_validation_loss_time_9" in curve
        _, of_reflow = load_checkpoint(students / "reflow_distill")
        assert of_reflow.schedule is not None
        assert of_reflow.schedule.objective == "uniform"

    # Of one step, the line from noise to image is the chord.
    assert record(project, 1)["reflow_distill"] == record(project, 1)["boss"]
    # Uniform t knows of no budget.
    both = [load_checkpoint(project.folder / f"models/student/{k}/reflow_uniform") for k in (1, 3)]
    for name, weights in both[0][0].state_dict().items():
        assert torch.equal(weights, both[1][0].state_dict()[name])

    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.run_name = 'K=3'")
    logged = next(r for r in runs if "boss_lora" in r.data.tags["variant"].split(","))
    of_methods = client.search_runs(
        [experiment.experiment_id], f"tags.`boss.budget_run` = '{logged.info.run_id}'"
    )
    shown_of = {r.data.tags["method"]: r.data for r in of_methods}
    for name in METHODS:
        values = record(project, 3)[name]
        assert shown_of[name].metrics["frechet_classifier"] == values["frechet_classifier"]
        assert "training/validation_loss" in shown_of[name].metrics
    shown = project.run("dvc", "plots", "show", "--out", "plots").stdout
    page = (project.folder / "plots" / "index.html").read_text()
    assert "Frechet distance against NFE, LoRA" in page
    assert "Frechet distance against NFE, reflow" in page
    shown = boss(project, "table").stdout
    for name in METHODS:
        assert f"{record(project, 3)[name]['frechet_classifier']:.4g}" in shown
