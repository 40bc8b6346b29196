"""The classifiers and their training: layouts, augmentation by hand, weight decay."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from boss_core.io.pixels import from_uint8
from boss_core.networks.classifier import (
    Classifier,
    ClassifierConfig,
    accuracy,
    load_classifier,
    save_classifier,
)
from boss_core.training.loop import train
from boss_core.training.randomness import BatchShare, step_generator
from boss_core.training.settings import TrainingSettings
from flows import paths
from flows.config import load_params
from flows.stages import features, prepare
from tests.helpers.checkout import ROOT

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(
    iterations=100, batch_size=64, learning_rate=5e-3, learning_rate_schedule="cosine", warmup=5,
    gradient_clip=1.0, ema_decay=0.9, weight_decay=0.05,
)  # fmt: skip


def resnet(**change: int) -> Classifier:
    shape = {"channels": 1, "classes": 10, "width": 8, "features": 16} | change
    return Classifier(ClassifierConfig(network="resnet", **shape))


def images(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("shape", [(2, 2), (8, 6), (7, 4), (9, 5), (1, 1), (3, 1)])
def test_pooling_is_that_of_torch(shape: tuple[int, int]) -> None:
    x = images(2, (32, *shape))
    three_layers = Classifier(ClassifierConfig(channels=1, classes=10, width=8, features=16))
    for network, side in ((resnet(), 1), (three_layers, 2)):
        network.trunk = torch.nn.Identity()  # what is pooled is then the image
        pooled = F.adaptive_avg_pool2d(from_uint8(x), side).flatten(1)
        expected = network.to_logits(F.silu(network.to_features(pooled)))
        torch.testing.assert_close(network(x), expected)


def test_images_of_28_pixels_train_with_deterministic_gradients() -> None:
    """On a GPU torch has none for its adaptive pooling of 7 x 7 in four parts: MNIST's images
    ended the stage there. The graph has no such node."""
    network = Classifier(ClassifierConfig(channels=1, classes=10, width=8, features=6))
    todo, seen = [network(images(2, (1, 28, 28))).sum().grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    assert len(seen) > 10
    assert not [node for node in seen if "Adaptive" in node.name()]


def test_width_64_is_the_published_network() -> None:
    """Wide Residual Networks, table 4: WRN-16-4 has 2.7 M parameters (2.75 to one digit more)."""
    network = resnet(channels=3, width=64)
    trunk = sum(p.numel() for p in network.trunk.parameters())
    logits = 256 * 10 + 10
    assert (trunk + logits) / 1e6 == pytest.approx(2.75, abs=0.005)
    convolutions = [m for m in network.trunk.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 16  # 6 n + 4 with n = 2


def test_a_resnet_learns_and_measures_each_image_by_itself(tmp_path: Path) -> None:
    digits = load_digits()
    x = torch.from_numpy((digits.images * 255 / 16).astype(np.uint8)[:, None])
    y = torch.from_numpy(digits.target)
    torch.manual_seed(0)

    def loss(network: Classifier, step: int, share: BatchShare) -> torch.Tensor:
        rows = step_generator(0, step).integers(1500, size=SETTINGS.batch_size)
        return F.cross_entropy(network(x[rows]), y[rows])

    network = train(resnet(width=16), loss, SETTINGS).network
    assert accuracy(network, x[1500:], y[1500:]) > 0.9
    network.set_feature_scale(x[:256])
    assert float(network.features(x[:256]).square().mean()) == pytest.approx(1, rel=1e-4)

    save_classifier(tmp_path / "resnet.safetensors", network)
    loaded = load_classifier(tmp_path / "resnet.safetensors")
    assert loaded.config.network == "resnet"
    found = loaded.features(x[:64])
    assert torch.equal(found, network.features(x[:64]))
    assert torch.equal(found, loaded.features(x[:64]))
    alone = torch.cat([loaded.features(x[k : k + 1]) for k in range(64)])
    torch.testing.assert_close(alone, found, rtol=1e-4, atol=1e-5)


def test_accuracy_of_more_than_one_batch() -> None:
    network = resnet().eval()
    x = images(2300)
    right = network(x).argmax(1)
    labels = torch.where(torch.arange(2300) < 575, right, (right + 1) % 10)
    assert accuracy(network, x, labels) == 0.25


def test_the_file_of_a_small_one_is_what_it_was(tmp_path: Path) -> None:
    """So its hash, which stands beside every metric, stays the same."""
    network = Classifier(ClassifierConfig(channels=1, classes=10, width=8, features=6))
    save_classifier(tmp_path / "small.safetensors", network)
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        config = file.metadata()["config"]
    assert config == '{"channels":1,"classes":10,"width":8,"features":6}'
    assert load_classifier(tmp_path / "small.safetensors").config.network == "small"


def test_weights_without_a_gradient_decay_by_the_learning_rate() -> None:
    network = nn.Linear(3, 2)
    before = network.weight.detach().clone()
    settings = SETTINGS.model_copy(
        update={"iterations": 5, "warmup": 0, "learning_rate_schedule": "constant", "ema_decay": 0}
    )

    def loss(network: nn.Linear, step: int, share: BatchShare) -> torch.Tensor:
        return (network.weight * 0).sum() + (network.bias * 0).sum()

    found = train(network, loss, settings).network.weight
    torch.testing.assert_close(found, before * (1 - 5e-3 * 0.05) ** 5)


def test_the_stage_trains_what_the_parameters_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["evaluate"] |= {"samples": 70, "reference_samples": 100, "kid_subset_size": 32}
    content["features"] |= {"network": "resnet", "width": 8, "features": 8}
    content["features"]["training"] |= {"iterations": 4, "batch_size": 16, "warmup": 0}
    monkeypatch.chdir(tmp_path)
    trained = []
    for augment in (False, True):
        content["features"]["augment"] = augment
        Path("params.yaml").write_text(yaml.safe_dump(content))
        params = load_params()
        prepare.main(params)
        features.main(params)
        trained.append(load_classifier(paths.FEATURES / "classifier.safetensors"))
    assert [network.config.network for network in trained] == ["resnet", "resnet"]
    weights = [network.to_logits.weight for network in trained]
    assert not torch.equal(*weights)
