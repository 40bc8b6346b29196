"""Samples of `studies/peers.py` and their distances: the network, judges and real images."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.checkpoints.load import Teacher, load_teacher
from boss_core.errors import InputError
from boss_core.evaluation.frechet import Extractor, feature_function
from boss_core.evaluation.uncertainty import blocks_of, frechet_with_error
from boss_core.io.pixels import from_uint8, to_uint8
from boss_core.networks import efficientnet
from boss_core.ode.noise import EVALUATION, NoiseSource
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import uniform
from boss_core.ode.velocity import CountedVelocity, with_labels
from flows.records.extractor import read_extractor
from studies.peers_methods import METHODS, TEACHER, Sampler, Searches
from studies.text_to_image.captions import read_cifar10

SHOWN = 16  # images of each method that are kept, for the page


@dataclass(frozen=True)
class Judge:
    """An extractor with the features of the real images.

    name: its distance's, without ``frechet_``. features: from states (B, C, H, W) in [-1, 1].
    """

    name: str
    extractor: Extractor
    features: Any
    real: Tensor


@dataclass(frozen=True)
class Bench:
    """What all seeds share; ``setting``: what every row depends on."""

    teacher: Teacher
    judges: list[Judge]
    chosen: argparse.Namespace
    setting: dict[str, Any]

    @property
    def columns(self) -> list[str]:
        """Of a row: the distances, their standard errors, and what they are without each block."""
        found = ["seed", "method", "budget", "evaluations"]
        for judge in self.judges:
            found += [f"frechet_{judge.name}{end}" for end in ("", "_se", "_without")]
        return found


def load_bench(chosen: argparse.Namespace) -> Bench:
    """InputError for files that are not there, or not of the same shape."""
    device = torch.device(chosen.device)
    teacher = load_teacher(chosen.teacher)
    if isinstance(teacher.velocity, torch.nn.Module):
        teacher.velocity.to(device).eval()
    real = read_images(chosen.data, chosen.real)
    if real.shape[1:] != teacher.shape:
        raise InputError(
            f"{chosen.data}: images of shape {real.shape[1:]}; {teacher.shape}, the teacher's,"
            " needed"
        )
    extractors = [
        Extractor(efficientnet.NAME, efficientnet.published_weights())
        if judge == "imagenet" else read_extractor(Path(judge))
        for judge in chosen.judges
    ]  # fmt: skip
    names = [extractor.name for extractor in extractors]
    if len(set(names)) < len(names):
        raise InputError(f"--judges: {', '.join(names)}; each once needed")
    judges = []
    for extractor in extractors:
        features = feature_function(extractor, chosen.batch_size, device)
        parts = torch.from_numpy(real).split(chosen.batch_size)
        found = torch.cat([features(from_uint8(part.to(device))) for part in parts])
        judges.append(Judge(extractor.name, extractor, features, found))
    setting = {
        "teacher": teacher.hash,
        "judges": {judge.name: judge.extractor.hash for judge in judges},
        "real": len(real),
        "grid": chosen.grid,
        "samples": chosen.samples,
        "costs": chosen.costs,
        "shape": list(teacher.shape),
    }
    return Bench(teacher, judges, chosen, setting)


def read_images(folder: Path, most: int | None) -> NDArray[np.uint8]:
    """The training images of a folder, (N, C, H, W) uint8, or so many of the first."""
    path = folder / "train.npy"
    if not path.is_file():
        return read_cifar10(folder, "train", most)[0]
    real = np.load(path, allow_pickle=False)
    if real.dtype != np.uint8 or real.ndim != 4:
        raise InputError(f"{path}: {real.dtype} of shape {real.shape}; uint8 (N, C, H, W) needed")
    return real[:most]


class Seed:
    """The samples of one seed, all from the same noises."""

    def __init__(self, bench: Bench, seed: int) -> None:
        chosen, teacher = bench.chosen, bench.teacher
        self.bench, self.seed = bench, seed
        self.source = NoiseSource(
            teacher.shape, seed, chosen.device, teacher.classes, teacher.frequencies
        )
        self.searches = Searches(
            teacher, self.source, sorted(chosen.budgets),
            grid=chosen.grid, costs=chosen.costs, batch_size=chosen.batch_size,
        )  # fmt: skip

    @cached_property
    def noise(self) -> tuple[Tensor, Tensor | None]:
        return self.source.draw(range(self.bench.chosen.samples), EVALUATION)

    def measure(self, method: str, budget: int) -> dict[str, str]:
        """The row of a method, without its names; its first images of the first seed are kept."""
        if method == TEACHER:
            times = uniform(budget)
            ends = self.ends(lambda velocity, x: euler(velocity, x, times), method, budget)
        else:
            ends = self.ends(METHODS[method].sampler(self.searches, budget), method, budget)
        row = {"evaluations": str(budget)}
        size = self.bench.chosen.batch_size
        blocks = blocks_of(len(ends))
        for judge in self.bench.judges:
            features = torch.cat([judge.features(part) for part in ends.split(size)])
            found = frechet_with_error(features, judge.real, blocks)
            name = f"frechet_{judge.name}"
            row[name] = f"{found.value:.8g}"
            row[f"{name}_se"] = f"{found.standard_error:.4g}"
            row[f"{name}_without"] = " ".join(f"{value:.8g}" for value in found.replicates)
        if self.seed == 0:
            folder = self.bench.chosen.out / "images"
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{method}-{budget}.npy", to_uint8(ends[:SHOWN]).cpu().numpy())
        return row

    def ends(self, sample: Sampler, method: str, budget: int) -> Tensor:
        """The final states from all noises. RuntimeError where a sampler took other evaluations
        than its budget: it would not be the method's number."""
        noise, labels = self.noise
        size = self.bench.chosen.batch_size
        parts = []
        for first in range(0, len(noise), size):
            of_batch = None if labels is None else labels[first : first + size]
            counted = CountedVelocity(with_labels(self.bench.teacher.velocity, of_batch))
            with torch.no_grad():
                parts.append(sample(counted, noise[first : first + size]))
            if counted.nfe != budget:
                raise RuntimeError(f"{method}: {counted.nfe} evaluations for {budget}")
        ends = torch.cat(parts)
        if not ends.isfinite().all():  # once for all samples
            raise InputError(f"{method} at K = {budget}: samples that are not finite")
        return ends
