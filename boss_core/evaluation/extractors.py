"""The networks that samples are measured by, and searched by, on disk.

Apart from the metrics, as torch-fidelity takes two seconds to import, which a search by a
classifier's features has no use for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from boss_core.errors import InputError
from boss_core.io.files import sha256
from boss_core.io.pixels import to_uint8
from boss_core.io.tensor_files import arrays_only, read_tensors
from boss_core.networks import efficientnet
from boss_core.networks.classifier import load_classifier
from boss_core.networks.efficientnet import check_efficientnet, load_efficientnet

SECOND = "second_classifier"
EXTRACTORS = ("classifier", "inception", efficientnet.NAME, SECOND)


@dataclass(frozen=True)
class Extractor:
    """A feature extractor on disk.

    name: ``classifier`` (of this project), ``inception`` (``inception-v3-compat`` of
        torch-fidelity, the network of the original FID), ``efficientnet_lite0``, or
        ``second_classifier``, another one of this project's beside the first.
    weights: its weights file.
    """

    name: str
    weights: Path

    @property
    def hash(self) -> str:
        """SHA-256 of the weights."""
        if not self.weights.is_file():
            raise InputError(f"{self.weights}: no such file; the weights of {self.name} needed")
        return sha256(self.weights)

    def check(self) -> None:
        """InputError for weights that are more than tensors: the library would run them. Also for
        those of another network than the name says, where that can be told."""
        if self.name == "inception":
            read_tensors(self.weights, "the Inception weights of torch-fidelity")
        elif self.name == efficientnet.NAME:
            check_efficientnet(self.weights)

    @property
    def library_name(self) -> str:
        """What torch-fidelity calls it."""
        return {"inception": "inception-v3-compat", SECOND: "classifier"}.get(self.name, self.name)

    @property
    def layer(self) -> str:
        """Which of its features are taken, the same for all metrics."""
        return "2048" if self.name == "inception" else "features"

    @property
    def frechet_name(self) -> str:
        return frechet_name(self.name)


def frechet_name(extractor: str) -> str:
    """What the Frechet distance in the features of an extractor is called."""
    return "fid" if extractor == "inception" else f"frechet_{extractor}"


def feature_function(
    extractor: Extractor, batch_size: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The features that a metric sees, as a function for a search: from states in [-1, 1],
    (N, C, H, W) with 1 or 3 channels on the device, rounded to uint8, to (N, F). Images beyond
    ``batch_size`` take several calls of the network."""
    extractor.check()
    network = _network(extractor, device)

    def features(x: Tensor) -> Tensor:
        images = to_uint8(x).expand(-1, 3, -1, -1)
        return torch.cat([network(part) for part in images.split(batch_size)])

    return features


def _network(extractor: Extractor, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From uint8 images (B, 3, H, W) to features (B, F)."""
    if extractor.name == efficientnet.NAME:
        return load_efficientnet(extractor.weights).to(device)
    if extractor.name != "inception":
        classifier = load_classifier(extractor.weights).to(device)
        channels = classifier.config.channels
        return lambda images: classifier.features(images[:, :channels])
    from torch_fidelity.utils import create_feature_extractor

    with arrays_only():
        inception = create_feature_extractor(
            extractor.library_name,
            [extractor.layer],
            cuda=False,
            feature_extractor_weights_path=str(extractor.weights),
            verbose=False,
        ).to(device)
    return lambda images: inception(images)[0]
