"""What runs measure against: by name, DVC's hash and source."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow.exceptions import MlflowException

from flows.config import load_params
from flows.tracking.data_sets import log_references, references
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


@pytest.mark.parametrize(
    ("says", "asked"),
    [("(psycopg2.errors.UniqueViolation) duplicate key value", 2), ("the disk is full", 1)],
)
def test_two_that_name_a_data_set_at_once(says: str, asked: int) -> None:
    """What a server with PostgreSQL says to the second of them is asked again, nothing else."""
    calls = []

    class Client:
        def log_inputs(self, run: str, found: list) -> None:
            calls.append(run)
            if len(calls) == 1:
                raise MlflowException(says)

    if asked == 2:
        log_references(Client(), "run", [])
    else:
        with pytest.raises(MlflowException, match=says):
            log_references(Client(), "run", [])
    assert len(calls) == asked
