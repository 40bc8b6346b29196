"""Samples of one network at one schedule, measured and shown as a grid."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import nn

from boss_core.errors import InputError
from boss_core.files import replacing
from boss_core.frechet import Extractor, evaluate_images, image_hash
from boss_core.sampling import sample_images
from flows import paths
from flows.config import Params
from flows.progress import progress
from flows.records import read_images, read_json
from flows.seeds import EVALUATE

GRID_COLUMNS, GRID_ROWS = 10, 4


class Evaluation:
    """Everything that the variants of one evaluation share: extractor, reference, noise."""

    def __init__(self, params: Params, on: torch.device) -> None:
        self.params, self.on = params, on
        card = read_json(paths.FEATURES / "card.json")
        self.extractor = Extractor(card["extractor"], paths.FEATURES / card["weights"])
        images = read_images("train").images
        count = params.evaluate.reference_samples
        if len(images) < count:
            raise InputError(
                f"params.yaml: evaluate.reference_samples: {count}, but the training data has"
                f" {len(images)} images; at most that many needed"
            )
        self.reference = images[:count]

    @property
    def provenance(self) -> dict[str, Any]:
        """What stands beside every value: what was compared with what, and how much of it."""
        return {
            "samples": self.params.evaluate.samples,
            "reference_samples": len(self.reference),
            "extractor": self.extractor.name,
            "extractor_hash": self.extractor.hash,
            "reference_hash": image_hash(self.reference),
        }

    def of(
        self, network: nn.Module, timesteps: ArrayLike, label: str, name: int | str, variant: str
    ) -> dict[str, float]:
        """Sample, write ``samples/NAME/VARIANT.png``, and return the metrics."""
        settings = self.params.evaluate
        with progress(label, settings.samples, "samples") as advance:
            images = sample_images(
                network.to(self.on),
                timesteps,
                samples=settings.samples,
                shape=self.reference.shape[1:],
                seed=self.params.seed + EVALUATE,
                batch_size=settings.batch_size,
                device=self.on,
                on_step=advance,
            )
        write_grid(paths.samples(name) / f"{variant}.png", images)
        return evaluate_images(
            images,
            self.reference,
            self.extractor,
            cache=paths.FEATURES / "reference",
            kid_subset_size=settings.kid_subset_size,
            batch_size=settings.batch_size,
            seed=self.params.seed,
            device=self.on,
        )


def write_grid(path, images: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    """The first images as one PNG, small ones enlarged to be seen."""
    with replacing(path) as temporary:
        image_grid(images).save(temporary, format="PNG")


def image_grid(images: np.ndarray) -> Image.Image:
    """uint8 (N, C, H, W) as rows of a picture, one pixel apart."""
    count, channels, height, width = images[: GRID_COLUMNS * GRID_ROWS].shape
    rows = -(-count // GRID_COLUMNS)
    canvas = np.full(
        (rows * (height + 1) - 1, GRID_COLUMNS * (width + 1) - 1, channels), 128, np.uint8
    )
    for k in range(count):
        y, x = divmod(k, GRID_COLUMNS)
        y, x = y * (height + 1), x * (width + 1)
        canvas[y : y + height, x : x + width] = images[k].transpose(1, 2, 0)
    scale = max(1, 32 // width)
    picture = Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
