"""What runs measure against: by name, DVC's hash and source."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml

from flows.config import load_params
from flows.tracking.data_sets import references
from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project


def test_each_run_that_measures_names_its_data(finished: Project) -> None:
    lock = yaml.safe_load((finished.folder / "dvc.lock").read_text())
    (data,) = [out["md5"] for out in lock["stages"]["prepare"]["outs"] if out["path"] == "data"]
    measured = [run for run in runs(finished) if "boss.pipeline" not in run.data.tags]
    assert len(measured) == 2 + 2 * 8 + 1
    for run in measured:
        ((dataset, tags),) = [(each.dataset, each.tags) for each in run.inputs.dataset_inputs]
        assert (dataset.name, dataset.digest) == ("digits", data)
        assert [(tag.key, tag.value) for tag in tags] == [("mlflow.data.context", "evaluation")]
        assert json.loads(dataset.profile)["num_rows"] == 100
        assert "load_digits" in dataset.source


def test_a_folder_of_images_can_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project.bare(tmp_path)
    project.set({"data.source": "npy", "data.path": "inputs/mine.npy"})
    np.save(tmp_path / "inputs/mine.npy", np.zeros((5, 1, 8, 8), np.uint8))
    (tmp_path / "data").mkdir()
    card = {"source": "inputs/mine.npy", "shape": [1, 8, 8], "train": 4, "test": 1}
    (tmp_path / "data/card.json").write_text(json.dumps(card))
    monkeypatch.chdir(tmp_path)
    record = {"reference_samples": 4, "reference_hash": "b" * 64}
    (found,) = references(load_params(), record)
    source = mlflow.data.get_source(found)
    assert np.load(source.load()).shape == (5, 1, 8, 8)
    # Without DVC, that of the images that were compared with.
    assert found.dataset.digest == "b" * 36
    # A pipeline that is compared with its own images, and with real ones beside them.
    (tmp_path / "models/teacher").mkdir(parents=True)
    (tmp_path / "models/teacher/card.json").write_text('{"asked": {"source": "./sd3"}}')
    record |= {"reference": "teacher", "real_reference_hash": "c" * 64}
    own, real = (each.dataset for each in references(load_params(), record))
    assert (own.name, own.digest) == ("./sd3: its own images", "b" * 36)
    assert json.loads(own.source)["uri"] == str(tmp_path / "samples/teacher")
    assert (real.name, real.digest) == ("inputs/mine.npy", "c" * 36)
