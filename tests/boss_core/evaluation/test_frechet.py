"""The metrics through torch-fidelity, against closed forms."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.utils import create_feature_extractor

from boss_core.errors import InputError
from boss_core.evaluation.extractors import Extractor, feature_function
from boss_core.evaluation.frechet import evaluate_images, measure_images
from boss_core.evaluation.uncertainty import frechet_with_error, kid_with_error
from boss_core.networks.classifier import (
    Classifier,
    ClassifierConfig,
    load_classifier,
    save_classifier,
)
from boss_core.networks.efficientnet import load_efficientnet, published_weights

CPU = torch.device("cpu")


@pytest.fixture
def extractor(tmp_path: Path) -> Extractor:
    torch.manual_seed(0)
    network = Classifier(ClassifierConfig(channels=1, classes=3, width=8, features=6))
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, network)
    return Extractor("classifier", path)


def images(seed: int, count: int = 90, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (count, 1, 8, 8)).astype(np.uint8)


def evaluate(a, b, extractor: Extractor, cache: Path, subset: int = 50) -> dict[str, float]:
    return evaluate_images(
        a, b, extractor, cache=cache, kid_subset_size=subset, batch_size=32, seed=0, device=CPU
    )


def frechet(a: np.ndarray, b: np.ndarray, extractor: Extractor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of the features."""
    network = load_classifier(extractor.weights)
    x, y = (network.features(torch.from_numpy(i)).double().numpy() for i in (a, b))
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root))


def test_frechet_distance_is_the_closed_form(extractor: Extractor, tmp_path: Path) -> None:
    a, b = images(0), images(1, count=70, high=128)
    found = evaluate(a, b, extractor, tmp_path / "cache")
    assert found["frechet_classifier"] == pytest.approx(frechet(a, b, extractor), rel=1e-4)
    assert set(found) == {
        "frechet_classifier", "frechet_classifier_se", "kid_classifier", "kid_classifier_se",
        "kid_classifier_std", "precision_classifier", "recall_classifier",
    }  # fmt: skip
    assert "fid" not in found  # that name is Inception's alone


def test_metrics_are_the_librarys_own(extractor: Extractor, tmp_path: Path) -> None:
    """By the one call that it documents, to the digit; and the errors are of the same features."""
    a, b = images(0), images(1, count=70, high=128)
    found = measure_images(
        a, b, extractor,
        cache=tmp_path / "cache", kid_subset_size=50, batch_size=32, seed=3, device=CPU,
    )  # fmt: skip
    channels = [[torch.from_numpy(each).expand(3, -1, -1) for each in some] for some in (a, b)]
    library = torch_fidelity.calculate_metrics(
        input1=ListOf(channels[0]), input2=ListOf(channels[1]), feature_extractor="classifier",
        feature_extractor_weights_path=str(extractor.weights), fid=True, kid=True, prc=True,
        kid_subset_size=50, batch_size=32, rng_seed=3, cuda=False, save_cpu_ram=True,
        verbose=False,
    )  # fmt: skip
    names = {
        "frechet_classifier": "frechet_inception_distance",
        "kid_classifier": "kernel_inception_distance_mean",
        "kid_classifier_std": "kernel_inception_distance_std",
        "precision_classifier": "precision",
        "recall_classifier": "recall",
    }
    assert {name: found.metrics[name] for name in names} == {
        name: library[there] for name, there in names.items()
    }
    network = load_classifier(extractor.weights)
    x, y = (network.features(torch.from_numpy(some)) for some in (a, b))
    assert list(found.estimates) == ["frechet_classifier", "kid_classifier"]
    for name, of in (
        ("frechet_classifier", frechet_with_error(x, y)),
        ("kid_classifier", kid_with_error(found.metrics["kid_classifier"], x, y)),
    ):
        assert found.estimates[name].value == found.metrics[name]
        assert found.metrics[f"{name}_se"] == pytest.approx(of.standard_error, rel=1e-3)
    second = Extractor("second_classifier", extractor.weights)
    assert (
        evaluate(a, b, second, tmp_path / "cache")["frechet_second_classifier"]
        == (found.metrics["frechet_classifier"])
    )


def test_a_search_sees_what_is_measured(extractor: Extractor) -> None:
    """The features that torch-fidelity takes, without torch-fidelity."""
    a = images(0)
    library = create_feature_extractor(
        "classifier", ["features"], cuda=False, verbose=False,
        feature_extractor_weights_path=str(extractor.weights),
    )  # fmt: skip
    expected = library(torch.from_numpy(a).expand(-1, 3, -1, -1))[0]
    states = torch.from_numpy(a).float() / 127.5 - 1
    seen = feature_function(extractor, 32, CPU)(states)
    torch.testing.assert_close(seen, expected)
    code = "import sys, boss_core.evaluation.extractors; sys.exit('torch_fidelity' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class ListOf(Dataset):
    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_the_same_images_are_at_no_distance(extractor: Extractor, tmp_path: Path) -> None:
    found = evaluate(images(0), images(0), extractor, tmp_path / "cache")
    assert abs(found["frechet_classifier"]) < 1e-4
    assert found["precision_classifier"] == found["recall_classifier"] == 1.0


def test_changed_reference_or_extractor_is_never_taken_for_the_cached_one(
    extractor: Extractor, tmp_path: Path
) -> None:
    a, cache = images(0), tmp_path / "cache"
    first = evaluate(a, images(1), extractor, cache)
    assert evaluate(a, images(1), extractor, cache) == first
    second = evaluate(a, images(2, high=60), extractor, cache)
    assert second["frechet_classifier"] == pytest.approx(
        frechet(a, images(2, high=60), extractor), rel=1e-4
    )
    torch.manual_seed(5)
    save_classifier(extractor.weights, Classifier(load_classifier(extractor.weights).config))
    third = evaluate(a, images(1), extractor, cache)
    assert third["frechet_classifier"] == pytest.approx(frechet(a, images(1), extractor), rel=1e-4)


def test_what_cannot_be_measured_is_refused(extractor: Extractor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kid_subset_size: 50, but the samples are 20 images"):
        evaluate(images(0, 20), images(1), extractor, tmp_path)
    with pytest.raises(InputError, match="kid_subset_size: 50, but the reference are 20 images"):
        evaluate(images(0), images(1, 20), extractor, tmp_path)
    with pytest.raises(InputError, match=r"images: float32 .* uint8"):
        evaluate(images(0).astype(np.float32), images(1), extractor, tmp_path)
    missing = Extractor("inception", tmp_path / "none.pth")
    assert missing.frechet_name == "fid"
    with pytest.raises(InputError, match=r"none\.pth: no such file"):
        evaluate(images(0), images(1), missing, tmp_path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(extractor.weights.read_bytes()[:200])
    with pytest.raises(InputError, match=r"broken\.safetensors: not a classifier"):
        load_classifier(broken)


def test_the_judge_that_needs_no_labels(tmp_path: Path) -> None:
    """By fewer images than it has features: the trace of the root is then the sum of the singular
    values of the images' products."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="not installed (pip install .[judges])")
    extractor = Extractor("efficientnet_lite0", published_weights())
    draw = np.random.default_rng(0)
    a, b = (
        draw.integers(high, size=(count, 3, 8, 12), dtype=np.uint8)
        for count, high in ((25, 256), (20, 128))
    )
    found = evaluate(a, b, extractor, tmp_path / "cache", subset=15)
    assert set(found) == {
        "frechet_efficientnet_lite0", "frechet_efficientnet_lite0_se", "kid_efficientnet_lite0",
        "kid_efficientnet_lite0_se", "kid_efficientnet_lite0_std",
        "precision_efficientnet_lite0", "recall_efficientnet_lite0",
    }  # fmt: skip
    network = load_efficientnet(extractor.weights)
    x, y = (network(torch.from_numpy(images)).double().numpy() for images in (a, b))
    cx, cy = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(cx @ cy.T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (cx**2).sum() + (cy**2).sum() - 2 * root
    assert found["frechet_efficientnet_lite0"] == pytest.approx(expected, rel=1e-4)

    # What a search sees of states in [-1, 1] is the same.
    states = torch.from_numpy(a[:6]).float() / 127.5 - 1
    seen = feature_function(extractor, 4, CPU)(states)
    assert np.allclose(seen.numpy(), x[:6], atol=1e-5)

    altered = tmp_path / "altered.pth"
    altered.write_bytes(extractor.weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"altered\.pth: SHA-256"):
        evaluate(a, b, Extractor(extractor.name, altered), tmp_path / "cache", subset=15)
