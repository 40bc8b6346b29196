"""The judge `second_classifier`: another classifier beside the one that searches, as a stage makes
it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from boss_core.errors import InputError
from boss_core.io.files import sha256
from boss_core.networks.classifier import accuracy, load_classifier
from flows import paths
from flows.config import load_params
from flows.records.extractor import read_extractor, read_instruments
from flows.records.json_files import read_images, read_json
from flows.stages import check, features, prepare
from flows.stages.classifier import second_network, second_width
from tests.helpers.draws_of_parameters import write_parameters

SMALL = {
    "features.width": 16,
    "features.features": 16,
    "features.training.iterations": 120,
    "features.training.batch_size": 64,
    "features.training.warmup": 5,
    "features.training.ema_decay": 0.8,
    "evaluate.reference_samples": 100,
    "evaluate.judges": ["second_classifier"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "inputs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_second_is_another_one_and_leaves_the_first_as_it_is(folder: Path) -> None:
    hashes = []
    for judges in ([], ["second_classifier"]):
        write_parameters(Path("params.yaml"), SMALL | {"evaluate.judges": judges})
        params = load_params()
        check.check(params)
        prepare.main(params)
        features.main(params)
        hashes.append(sha256(paths.FEATURES / "classifier.safetensors"))
        assert read_json(paths.JUDGES / "card.json") == {"judges": judges}
    assert hashes[0] == hashes[1]

    first, second = read_instruments(["second_classifier"])
    assert (first.extractor.name, first.judge) == ("classifier", False)
    assert (second.extractor.name, second.judge) == ("second_classifier", True)
    assert second.extractor == read_extractor(paths.JUDGES / "second_classifier")
    networks = [load_classifier(each.extractor.weights) for each in (first, second)]
    assert [network.config.network for network in networks] == ["small", "resnet"]
    test = read_images("test")
    assert test.labels is not None
    images, labels = torch.from_numpy(np.array(test.images)), torch.from_numpy(test.labels)
    cards = [read_json(each.cache.parent / "card.json") for each in (first, second)]
    for network, card in zip(networks, cards, strict=True):
        assert card["test_accuracy"] == pytest.approx(accuracy(network, images, labels))
        assert card["test_accuracy"] > 0.5  # of ten classes, after a second or two of training
    assert set(cards[1]["test_against_reference"]) == {
        "frechet_second_classifier", "frechet_second_classifier_se", "kid_second_classifier",
        "kid_second_classifier_se", "kid_second_classifier_std",
    }  # fmt: skip
    assert [path.name for path in paths.training("").glob("*")] == []  # no checkpoint is left


@pytest.mark.parametrize(
    ("network", "width", "expected"),
    [("small", 32, ("resnet", 16)), ("small", 8, ("resnet", 8)), ("small", 40, ("resnet", 16)),
     ("resnet", 64, ("small", 64))],
)  # fmt: skip
def test_it_is_of_the_other_architecture(
    network: str, width: int, expected: tuple[str, int], folder: Path
) -> None:
    write_parameters(Path("params.yaml"), {"features.network": network, "features.width": width})
    first = load_params().features
    assert (second_network(first), second_width(first)) == expected


def test_what_cannot_judge_is_refused(folder: Path) -> None:
    for judges, says in (
        (["imagenet", "imagenet"], "evaluate.judges: .*imagenet repeated; each judge once"),
        (["classifier"], "evaluate.judges.0: 'classifier' found; "),
        (["imagenet"], "evaluate.judges: imagenet, which features.extractor is already; others,"),
    ):
        extractor = "imagenet" if judges == ["imagenet"] else "classifier"
        write_parameters(
            Path("params.yaml"), {"features.extractor": extractor, "evaluate.judges": judges}
        )
        with pytest.raises(InputError, match=says):
            load_params()
    write_parameters(Path("params.yaml"), SMALL | {"features.training.batch_size": 63})
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["features"]["extractor"] = "imagenet"
    content["compute"]["processes"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"features\.training\.batch_size: 63 with compute\.proce"):
        load_params()
