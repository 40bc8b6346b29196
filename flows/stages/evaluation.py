"""Samples of one network at one schedule, measured and shown as a grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from boss_core.checkpoints.folder import Network
from boss_core.errors import InputError
from boss_core.evaluation.comparison import Estimate
from boss_core.evaluation.frechet import image_hash, measure_images
from boss_core.evaluation.sampling import sample_images
from boss_core.ode.noise import EVALUATION, seed_for
from boss_core.ode.schedule import StepWeights
from flows import paths
from flows.config import Params
from flows.measure.energy import Usage, measured
from flows.progress import progress
from flows.records.extractor import Instrument, read_instruments
from flows.records.json_files import read_images
from flows.records.labels import draw_labels
from flows.report.image_grid import write_grid


@dataclass(frozen=True)
class Found:
    """What one set of samples measures by all that measure. estimates: of Frechet distances and
    KIDs, for comparisons in pairs. usage: what the sampling alone took."""

    metrics: dict[str, float]
    estimates: dict[str, Estimate]
    usage: Usage


def compared(
    params: Params,
    images: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    instrument: Instrument,
    on: torch.device,
    *,
    cache: Path | None = None,
) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Samples against a reference by one extractor. cache: of the reference's features, where that
    is not the one of real images."""
    found = measure_images(
        images,
        reference,
        instrument.extractor,
        cache=cache or instrument.cache,
        kid_subset_size=params.evaluate.kid_subset_size,
        batch_size=params.evaluate.batch_size,
        seed=params.seed,
        device=on,
        precision_recall=not instrument.judge,
    )
    return found.metrics, found.estimates


def hashes(instruments: Sequence[Instrument]) -> dict[str, Any]:
    """What measured, for the record."""
    first, *judges = (instrument.extractor for instrument in instruments)
    return {
        "extractor": first.name,
        "extractor_hash": first.hash,
        "judges": {judge.name: judge.hash for judge in judges},
    }


class Evaluation:
    """Everything that the variants of one evaluation share: what measures, reference, noise."""

    def __init__(self, params: Params, on: torch.device) -> None:
        self.params, self.on = params, on
        self.instruments = read_instruments(params.evaluate.judges)
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
            **hashes(self.instruments),
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
        weights: StepWeights | None = None,
    ) -> Found:
        """Sample, write ``samples/NAME/VARIANT.png``, and measure."""
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
                weights=weights,
            )
        write_grid(paths.samples(name) / f"{variant}.png", images)
        metrics: dict[str, float] = {}
        estimates: dict[str, Estimate] = {}
        for instrument in self.instruments:
            by_one = compared(self.params, images, self.reference, instrument, self.on)
            metrics |= by_one[0]
            estimates |= by_one[1]
        return Found(metrics, estimates, usage)
