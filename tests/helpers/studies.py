"""What a study needs to run at all: digits, an untrained network, two untrained judges."""

import json
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from boss_core.checkpoints.folder import save_checkpoint
from boss_core.networks.classifier import Classifier, ClassifierConfig, save_classifier
from boss_core.networks.unet import UNet, UNetConfig


def digits_and_networks(folder: Path) -> None:
    """Write ``train.npy``, ``teacher``, whose velocity is none of zeros, ``classifier`` and
    ``second_classifier``."""
    real = np.rint(load_digits().images[:60, None] * (255 / 16)).astype(np.uint8)
    np.save(folder / "train.npy", real)
    torch.manual_seed(0)
    network = UNet(UNetConfig(
        image_size=8, channels=1, base_channels=8, channel_multipliers=(1,), blocks=1,
        attention_sizes=(),
    ))  # fmt: skip
    for weight in network.parameters():  # its last layer is zero when new
        torch.nn.init.normal_(weight, std=0.1)
    save_checkpoint(folder / "teacher", network)
    for name, width in (("classifier", 8), ("second_classifier", 16)):
        (folder / name).mkdir()
        save_classifier(
            folder / name / "classifier.safetensors",
            Classifier(ClassifierConfig(channels=1, classes=3, width=width, features=4)),
        )
        card = {"extractor": name, "weights": "classifier.safetensors"}
        (folder / name / "card.json").write_text(json.dumps(card))
