"""Samples of one network at one schedule, measured and shown as a grid."""

from typing import Any

import torch
from numpy.typing import ArrayLike

from boss_core.checkpoints.folder import Network
from boss_core.errors import InputError
from boss_core.evaluation.frechet import evaluate_images, image_hash
from boss_core.evaluation.sampling import sample_images
from boss_core.ode.noise import EVALUATION, seed_for
from flows import paths
from flows.config import Params
from flows.measure.energy import Usage, measured
from flows.progress import progress
from flows.records.extractor import read_extractor
from flows.records.json_files import read_images
from flows.records.labels import draw_labels
from flows.report.image_grid import write_grid


class Evaluation:
    """Everything that the variants of one evaluation share: extractor, reference, noise."""

    def __init__(self, params: Params, on: torch.device) -> None:
        self.params, self.on = params, on
        self.extractor = read_extractor(paths.FEATURES)
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
        self,
        network: Network,
        timesteps: ArrayLike,
        label: str,
        name: int | str,
        variant: str,
        *,
        solver: str = "euler",
    ) -> tuple[dict[str, float], Usage]:
        """Sample, write ``samples/NAME/VARIANT.png``, and return the metrics and what the sampling
        alone took."""
        settings = self.params.evaluate
        seed = seed_for(EVALUATION, self.params.seed)
        labels = draw_labels(network.config.classes, settings.samples, seed)
        network = network.to(self.on)
        with (
            progress(label, settings.samples, "samples") as advance,
            measured(self.on, settings.samples) as usage,
        ):
            images = sample_images(
                network,
                timesteps,
                samples=settings.samples,
                shape=self.reference.shape[1:],
                seed=seed,
                batch_size=settings.batch_size,
                device=self.on,
                labels=labels,
                on_step=advance,
                solver=solver,
            )
        write_grid(paths.samples(name) / f"{variant}.png", images)
        metrics = evaluate_images(
            images,
            self.reference,
            self.extractor,
            cache=paths.FEATURES / "reference",
            kid_subset_size=settings.kid_subset_size,
            batch_size=settings.batch_size,
            seed=self.params.seed,
            device=self.on,
        )
        return metrics, usage
