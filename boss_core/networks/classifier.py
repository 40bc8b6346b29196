"""A small image classifier, whose features measure a Frechet distance where Inception's mean
little: on images that are tiny or far from photographs."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from boss_core.errors import InputError
from boss_core.files import write_bytes
from boss_core.pixels import from_uint8


class ClassifierConfig(BaseModel):
    """The shape of a `Classifier`; carried in the metadata of its weights file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int = Field(ge=1, le=4, description="image channels")
    classes: int = Field(ge=2, description="labels")
    width: int = Field(ge=8, multiple_of=8, description="channels of the first layer")
    features: int = Field(ge=2, description="width of the feature layer")


class Classifier(nn.Module):
    """uint8 images (B, C, H, W) to logits (B, classes)."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = []
        cin = config.channels
        for cout, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [nn.Conv2d(cin, cout, 3, stride, 1), nn.GroupNorm(8, cout), nn.SiLU()]
            cin = cout
        self.trunk = nn.Sequential(*layers)
        self.to_features = nn.Linear(cin * 4, config.features)
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
        h = F.adaptive_avg_pool2d(self.trunk(from_uint8(images)), 2).flatten(1)
        return F.silu(self.to_features(h))


def save_classifier(path: Path, network: Classifier) -> None:
    """Write weights and configuration into one safetensors file, whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(path, save(tensors, {"config": network.config.model_dump_json()}))


def load_classifier(path: Path) -> Classifier:
    """In evaluation mode, without gradients; InputError when the file is not one of these."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the classifier's weights needed")
    try:
        with safe_open(path, framework="pt") as file:
            config = ClassifierConfig.model_validate_json((file.metadata() or {})["config"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = Classifier(config)
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValidationError, RuntimeError) as error:
        message = str(error).splitlines()[0]
        raise InputError(f"{path}: not a classifier of this project ({message})") from error
    return network.eval().requires_grad_(False)


def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is that of their label."""
    with torch.no_grad():
        return float((network(images).argmax(dim=1) == labels).float().mean())
