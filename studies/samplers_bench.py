"""What all seeds of `studies/samplers.py` share: the network, the real images, the metrics."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from boss_core.checkpoints.folder import Network, load_checkpoint
from boss_core.errors import InputError
from boss_core.io.files import sha256
from boss_core.io.pixels import from_uint8, to_uint8
from boss_core.ode.noise import sample_labels, sample_noise
from boss_core.ode.timesteps import Times, uniform
from boss_core.ode.velocity import Velocity, with_labels
from boss_core.search.distances import Distance, energy, sliced_wasserstein
from flows.records.searches import distance_named

if TYPE_CHECKING:
    from flows.config import Params

Row = dict[str, Any]

KID_SUBSET = 400  # images in each of KID's subsets, or all where there are fewer


class Counted:
    """A network that counts the samples it is evaluated on, over all its calls."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.samples = velocity, 0

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None, /) -> Tensor:
        self.samples += len(x)
        return with_labels(self.velocity, labels)(x, t)


@dataclass(frozen=True)
class Bench:
    """What all seeds share.

    real: (R, C, H, W) uint8, on the device.
    frequencies: of the labels of a conditional network, None for one without.
    features: from images, (N, C, H, W) uint8, and a seed to the metrics of an extractor.
    params: how students are trained; None where there are none.
    distances: what searches go by, each to given final states, by its name.
    setting: what every row depends on.
    """

    network: Network
    velocity: Counted
    frequencies: Sequence[float] | None
    real: Tensor
    features: Callable[[Tensor, int], Row]
    params: "Params | None"
    grid: Times
    distances: Mapping[str, Callable[[Tensor], Distance]]
    samples: int
    search_samples: int
    batch_size: int
    device: torch.device
    setting: Row

    def noise(self, seed: int, count: int) -> tuple[Tensor, Tensor | None]:
        """(count, C, H, W) start states and their labels, on the device."""
        shape = tuple(self.real.shape[1:])
        noise = sample_noise(range(count), shape, seed).to(self.device)
        if self.frequencies is None:
            return noise, None
        labels = sample_labels(
            range(count), len(self.frequencies), seed, frequencies=self.frequencies
        )
        return noise, labels.to(self.device)

    def ends(
        self, sample: Callable[..., Tensor], velocity: Velocity, start: tuple[Tensor, Tensor | None]
    ) -> Tensor:
        """The final states of ``sample(velocity, x)``, batch by batch."""
        noise, labels = start
        parts = []
        for first in range(0, len(noise), self.batch_size):
            rows = slice(first, first + self.batch_size)
            of_batch = with_labels(velocity, None if labels is None else labels[rows])
            parts.append(sample(of_batch, noise[rows]))
        return torch.cat(parts)

    @cached_property
    def apart(self) -> dict[str, Distance]:
        """Distances to the real images. Sliced Wasserstein takes as many of them as samples."""
        count = min(len(self.real), self.samples)
        rows = np.linspace(0, len(self.real) - 1, count).round().astype(int)
        real = from_uint8(self.real[torch.from_numpy(rows).to(self.device)])
        return {"sliced_wasserstein": sliced_wasserstein(real), "energy": energy(real)}

    def quality(self, ends: Tensor, fine: Tensor, seed: int) -> Row:
        """The metrics of final states, as the images that they are shown as."""
        images = to_uint8(ends)
        found = self.features(images, seed)
        shown = from_uint8(images)
        count = min(len(self.real), self.samples)
        found |= {name: float(apart(shown[None, :count])) for name, apart in self.apart.items()}
        found["endpoint_error"] = float((ends - fine).double().square().mean().sqrt())
        return found


# Longer and wider than others: each line is one thing that the measurement is of.
def load_bench(
    *,
    checkpoint: Path,
    reference: Path,
    features: Path | None,
    params: "Params | None",
    cache: Path,
    grid: int,
    samples: int,
    search_samples: int,
    batch_size: int,
    device: str,
) -> Bench:
    """The network and the real images. ``cache``: a folder for the features of the latter.

    Without ``features`` nothing of torch-fidelity is imported."""
    on = torch.device(device)
    network, card = load_checkpoint(checkpoint)
    if not reference.is_file():
        raise InputError(f"{reference}: no such file; real images, uint8 (N, C, H, W), needed")
    real = np.load(reference)
    shape = network.config.sample_shape
    if real.dtype != np.uint8 or real.shape[1:] != shape:
        raise InputError(
            f"{reference}: {real.dtype} of shape {real.shape}; uint8 of shape (N, {shape}) needed"
        )
    frequencies = None
    if network.config.classes is not None:
        counts = checkpoint / "labels.json"
        frequencies = (
            json.loads(counts.read_text())["counts"]
            if counts.exists() else [1] * network.config.classes
        )  # fmt: skip
    metrics: Callable[[Tensor, int], Row] = lambda images, seed: {}  # noqa: E731
    distances: dict[str, Callable[[Tensor], Distance]] = {
        "sliced_wasserstein": sliced_wasserstein,
        "energy": energy,
    }
    extractor: Row = {"extractor": None, "extractor_hash": None}
    if features is not None:
        metrics, extractor = feature_metrics(features, real, cache, batch_size, on)
        distances["features"] = distance_named("features", features, batch_size, on)
    network = network.to(on)
    return Bench(
        network=network,
        velocity=Counted(network),
        frequencies=frequencies,
        real=torch.from_numpy(real).to(on),
        features=metrics,
        params=params,
        grid=uniform(grid),
        distances=distances,
        samples=samples,
        search_samples=search_samples,
        batch_size=batch_size,
        device=on,
        setting={
            "checkpoint": card.weights_sha256,
            "reference": sha256(reference),
            "reference_samples": len(real),
            **extractor,
            "grid": grid,
            "samples": samples,
            "search_samples": search_samples,
        },
    )


def feature_metrics(
    folder: Path, real: np.ndarray, cache: Path, batch_size: int, device: torch.device
) -> tuple[Callable[[Tensor, int], Row], Row]:
    """Frechet distance and KID to the real images, and what names the extractor."""
    from boss_core.evaluation.frechet import evaluate_images
    from flows.records.extractor import read_extractor

    extractor = read_extractor(folder)

    def metrics(images: Tensor, seed: int) -> Row:
        found = evaluate_images(
            images.cpu().numpy(),
            real,
            extractor,
            cache=cache,
            kid_subset_size=min(KID_SUBSET, len(images), len(real)),
            batch_size=batch_size,
            seed=seed,
            device=device,
            precision_recall=False,
        )
        kept = (extractor.frechet_name, f"kid_{extractor.name}")
        return {name: found[name] for name in kept}

    return metrics, {"extractor": extractor.name, "extractor_hash": extractor.hash}
