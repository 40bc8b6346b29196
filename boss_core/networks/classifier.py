"""A small image classifier, whose features measure a Frechet distance where Inception's mean
little: on images that are tiny or far from photographs."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from boss_core.io.pixels import from_uint8
from boss_core.io.weights import check_weights, skeleton
from boss_core.networks.sizes import LARGEST

ACCURACY_BATCH = 1000


class ClassifierConfig(BaseModel):
    """The shape of a `Classifier`; carried in the metadata of its weights file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int = Field(ge=1, le=4, description="image channels")
    classes: int = Field(ge=2, le=LARGEST, description="labels")
    width: int = Field(ge=8, le=LARGEST, multiple_of=8, description="channels of the first layer")
    features: int = Field(ge=2, le=LARGEST, description="width of the feature layer")
    network: Literal["small", "resnet"] = "small"


class Classifier(nn.Module):
    """uint8 images (B, C, H, W) to logits (B, classes).

    ``small``: three convolutions, for digits. ``resnet``: a wide residual network of 16 layers
    (Zagoruyko and Komodakis 2016, Wide Residual Networks; their WRN-16-4 where width is 64), with
    three levels of ``width``, twice and four times that. Its batch norm takes each image by itself
    in evaluation mode only, in which `load_classifier` returns it.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        small = config.network == "small"
        self.trunk = _three_layers(config) if small else _wide_resnet(config)
        self.side = 2 if small else 1  # of what the trunk's result is pooled to
        self.to_features = nn.Linear(4 * config.width * self.side**2, config.features)
        self.to_logits = nn.Linear(config.features, config.classes)
        self.feature_scale: Tensor
        self.register_buffer("feature_scale", torch.ones(()))

    def features(self, images: Tensor) -> Tensor:
        """(B, features): the layer before the logits, after its activation and scaled."""
        return self._penultimate(images) * self.feature_scale

    def forward(self, images: Tensor) -> Tensor:
        return self.to_logits(self._penultimate(images))

    @torch.no_grad()
    def set_feature_scale(self, images: Tensor) -> None:
        """Scale the features to a mean square of 1 on these images, so that distances do not
        depend on how large the network happened to make them (KID's cubic kernel, made for
        Inception's, is only noise when they are large)."""
        self.feature_scale.copy_(self._penultimate(images).square().mean().rsqrt())

    def _penultimate(self, images: Tensor) -> Tensor:
        h = _pool(self.trunk(from_uint8(images)), self.side).flatten(1)
        return F.silu(self.to_features(h))


class _Block(nn.Module):
    """Two 3x3 convolutions beside the identity, each after its norm and activation."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = nn.BatchNorm2d(cin)
        self.conv_1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.norm_2 = nn.BatchNorm2d(cout)
        self.conv_2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        same = cin == cout and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm_1(x))
        return self.skip(x) + self.conv_2(F.relu(self.norm_2(self.conv_1(h))))


def _three_layers(config: ClassifierConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    width, cin = config.width, config.channels
    for cout, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        layers += [nn.Conv2d(cin, cout, 3, stride, 1), nn.GroupNorm(8, cout), nn.SiLU()]
        cin = cout
    return nn.Sequential(*layers)


def _wide_resnet(config: ClassifierConfig) -> nn.Sequential:
    width, cin = config.width, config.width // 4
    layers: list[nn.Module] = [nn.Conv2d(config.channels, cin, 3, 1, 1, bias=False)]
    for cout, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        layers += [_Block(cin, cout, stride), _Block(cout, cout, 1)]
        cin = cout
    return nn.Sequential(*layers, nn.BatchNorm2d(cin), nn.ReLU())


def _pool(x: Tensor, side: int) -> Tensor:
    """The means of side x side parts of the image, which overlap where it cannot be divided: as
    torch's adaptive pooling, whose gradient on GPUs is not the same in every run."""
    height, width = x.shape[-2:]
    if height % side == 0 and width % side == 0:
        return x.unflatten(-1, (side, -1)).unflatten(-3, (side, -1)).mean(dim=(-3, -1))
    rows = [
        torch.stack([x[..., high, wide].mean(dim=(-2, -1)) for wide in _parts(width, side)], -1)
        for high in _parts(height, side)
    ]
    return torch.stack(rows, dim=-2)


def _parts(length: int, side: int) -> list[slice]:
    return [slice(k * length // side, -(-(k + 1) * length // side)) for k in range(side)]


def save_classifier(path: Path, network: Classifier) -> None:
    """Write weights and configuration into one safetensors file, whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # Without what a file of before there were other networks does not have.
    config = network.config.model_dump_json(exclude_defaults=True)
    write_bytes(path, save(tensors, {"config": config}))


def load_classifier(path: Path) -> Classifier:
    """In evaluation mode, without gradients; InputError when the file is not one of these."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the classifier's weights needed")
    try:
        with safe_open(path, framework="pt") as file:
            config = ClassifierConfig.model_validate_json((file.metadata() or {})["config"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        without_numbers = skeleton(lambda: Classifier(config))
        check_weights(path, tensors, without_numbers.state_dict())
        without_numbers.load_state_dict(tensors, assign=True)  # fits, before memory is taken
        network = Classifier(config)
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValidationError, RuntimeError) as error:
        message = str(error).splitlines()[0]
        raise InputError(f"{path}: not a classifier of this project ({message})") from error
    return network.eval().requires_grad_(False)


def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of images, (N, C, H, W) uint8, whose largest logit is that of their label,
    (N,)."""
    with torch.no_grad():
        right = [
            (network(part).argmax(dim=1) == of_part).sum()
            for part, of_part in zip(
                images.split(ACCURACY_BATCH), labels.split(ACCURACY_BATCH), strict=True
            )
        ]
    return float(torch.stack(right).sum()) / len(labels)
