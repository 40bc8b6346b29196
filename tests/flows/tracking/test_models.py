"""Students as MLflow's models: loaded in a fresh process, they sample what `boss sample` does."""

import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from boss_core.checkpoints.folder import save_checkpoint
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.ode.noise import sample_labels
from boss_core.ode.schedule import Schedule
from flows.report.image_grid import image_grid
from flows.tracking.connection import connected
from flows.tracking.models import log_student
from tests.helpers.checkout import ROOT
from tests.helpers.in_process import boss
from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project
from tests.helpers.records import STUDENTS

LOADED = """
import sys
import mlflow, numpy, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
numpy.save(sys.argv[3], model.predict(pandas.read_json(sys.argv[4])))
"""


def predicted(project: Project, uri: str, asked: dict[str, list[int]], folder: Path) -> np.ndarray:
    """The images of a logged model, loaded in a process of its own, in another folder."""
    (folder / "asked.json").write_text(json.dumps(asked))
    database = f"sqlite:///{project.folder / 'mlflow.db'}"
    there = Project(folder)  # whose folder is the process's, too
    there.run("python", "-c", LOADED, database, uri, "images.npy", "asked.json")
    return np.load(folder / "images.npy")


def of_student(project: Project, name: str) -> str:
    (run,) = [run for run in runs(project) if run.info.run_name == name]
    return run.info.run_id


def test_a_student_that_is_loaded_elsewhere_samples_the_same_pictures(
    finished: Project, tmp_path: Path
) -> None:
    """Also after the project was moved, its folders of students gone."""
    project = finished.copy(tmp_path / "moved é")
    boss(project, "track")  # which follows the folder
    run_id = of_student(project, "boss K=3")
    for seed in (0, 5):
        picture = tmp_path / f"{seed}.png"
        student = ("--checkpoint", "models/student/3/boss", "--out", str(picture))
        boss(project, "sample", *student, "-n", "16", "--seed", str(seed))
    for path in (project.folder / "models" / "student").rglob("*.safetensors"):
        path.unlink()
    asked = {"count": [16, 16], "seed": [0, 5]}
    images = predicted(project, f"runs:/{run_id}/model", asked, tmp_path)
    assert (images.dtype, images.shape) == (np.uint8, (32, 1, 8, 8))
    for seed, rows in ((0, images[:16]), (5, images[16:])):
        shown = np.asarray(Image.open(tmp_path / f"{seed}.png"))
        assert (np.asarray(image_grid(rows, columns=4)) == shown).all()
    alone = predicted(project, f"runs:/{run_id}/model", {"count": [16]}, tmp_path)
    assert (alone == images[:16]).all()
    # As docs/pipeline.md says it, in the project's folder.
    page = (ROOT / "docs" / "pipeline.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert block.count("boss K=4") == 1
    block = block.replace("boss K=4", "boss K=3")  # which this project has
    code = f"{block}\nimport numpy\nnumpy.save('drawn.npy', images)\n"
    project.run("python", "-c", code)
    assert (np.load(project.folder / "drawn.npy") == images[:16]).all()


def test_a_model_takes_no_second_place_on_the_disk(finished: Project) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    found = [run for run in runs(finished) if run.outputs.model_outputs]
    assert {r.info.run_name for r in found} == {f"{n} K={k}" for n in STUDENTS for k in (1, 3)}
    for run in found:
        (output,) = run.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert (model.name, model.experiment_id) == ("model", run.info.experiment_id)
        # What stands beside the model is what was measured of it.
        assert {m.key: m.value for m in model.metrics}["frechet"] == run.data.metrics["frechet"]
        method, budget = run.data.tags["method"], run.data.tags["budget"]
        own = finished.folder / f"models/student/{budget}/{method}/model.safetensors"
        copies = list((finished.folder / "mlruns/models" / model.model_id).rglob(own.name))
        assert [copy.samefile(own) for copy in copies] == [True]


def test_students_are_registered_on_request(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    assert client.search_registered_models() == []
    project.set({"tracking.registered_model": "digits"})
    for _ in range(2):  # once
        shown = boss(project, "track", "--rebuild").stdout
        assert shown == "K=1: in MLflow\nK=3: in MLflow\n"
    found = {model.name: model.latest_versions for model in client.search_registered_models()}
    assert set(found) == {f"digits-K{k}-{name}" for k in (1, 3) for name in STUDENTS}
    ((version,),) = [found["digits-K3-boss"]]
    assert int(version.version) == 1
    assert version.run_id == of_student(project, "boss K=3")
    by_name = predicted(project, "models:/digits-K3-boss/1", {"count": [4]}, tmp_path)
    by_run = predicted(project, f"runs:/{version.run_id}/model", {"count": [4]}, tmp_path)
    assert (by_name == by_run).all()
    project.set({"tracking.registered_model": "a/b"})
    refused = boss(project, "track", code=2).stderr
    assert refused.startswith("error: params.yaml: tracking.registered_model: 'a/b' found; ")
    assert len(refused.splitlines()) == 1


def test_a_conditional_student_takes_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = UNetConfig(
        image_size=8, channels=1, base_channels=8, channel_multipliers=(1,), blocks=1,
        attention_sizes=(), classes=3,
    )  # fmt: skip
    torch.manual_seed(0)
    network = UNet(config).requires_grad_(False)
    for weight in network.parameters():  # its last layer begins at 0
        weight.normal_(std=0.2)
    monkeypatch.chdir(tmp_path)
    folder = Path("models/student/2/boss")
    schedule = Schedule(timesteps=(0.0, 0.25, 1.0), solver="euler", objective="given")
    save_checkpoint(folder, network.eval(), schedule=schedule)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with connected(uri) as client:
        experiment = client.create_experiment("e", (tmp_path / "mlruns").as_uri())
        run = client.create_run(experiment).info.run_id
        log_student(client, uri, experiment, run, 2, "boss")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model(f"runs:/{run}/model")
    by_data = model.predict(pd.DataFrame({"count": [6], "seed": [1]}))
    labels = sample_labels(range(6), 3, 1)
    for label in range(3):
        of_one = model.predict(pd.DataFrame({"count": [6], "seed": [1], "label": [label]}))
        same = [bool((a == b).all()) for a, b in zip(by_data, of_one, strict=True)]
        assert same == [bool(each == label) for each in labels]
    with pytest.raises(Exception, match=r"label: 3; 0\.\.2 needed"):
        model.predict(pd.DataFrame({"count": [1], "label": [3]}))
