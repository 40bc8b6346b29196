"""Samples of `studies/peers.py` and their distances: the network, judges and real images."""

import argparse
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
from boss_core.evaluation.extractors import Extractor, feature_function
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

Row = dict[str, str]

SHOWN = 16  # images of each method that are kept, for the page
# Rows of a kernel at a time: with 50,000 columns, of float64, 0.8 GB.
ROWS = 2000


@dataclass(frozen=True)
class Judge:
    """An extractor with the features of the real images.

    name: its distance's, without ``frechet_``. features: from states (B, C, H, W) in [-1, 1].
    real: (M, F). within_real: the mean kernel of two different real images, for the KID.
    """

    name: str
    extractor: Extractor
    features: Any
    real: Tensor
    within_real: float

    def distances(self, features: Tensor) -> dict[str, str]:
        """A row's columns of this judge."""
        found = frechet_with_error(features, self.real, blocks_of(len(features)))
        kid = self.within_real + within(features)
        kid -= 2 * kernel_sum(features, self.real) / (len(features) * len(self.real))
        name = f"frechet_{self.name}"
        return {
            name: f"{found.value:.8g}",
            f"{name}_se": f"{found.standard_error:.4g}",
            f"{name}_without": " ".join(f"{value:.8g}" for value in found.replicates),
            f"kid_{self.name}": f"{kid:.6g}",
        }


def within(features: Tensor) -> float:
    """The mean kernel of two different rows, (N, F)."""
    count, width = features.shape
    own = float(((features.double().square().sum(dim=1) / width + 1) ** 3).sum())
    return (kernel_sum(features, features) - own) / (count * (count - 1))


def kernel_sum(x: Tensor, y: Tensor) -> float:
    """The sum over all pairs of (x'y / F + 1)^3 (Binkowski et al. 2018), in float64. The KID of all
    samples needs no subsets then, nor their chance."""
    columns = y.double().T / y.shape[1]
    return float(sum(((part.double() @ columns + 1) ** 3).sum() for part in x.split(ROWS)))


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
            found.append(f"kid_{judge.name}")
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
        judges.append(Judge(extractor.name, extractor, features, found, within(found)))
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


@torch.no_grad()
def sampled(
    bench: Bench, sample: Sampler, noise: Tensor, labels: Tensor | None
) -> tuple[Tensor, set[int]]:
    """The final states from all noise, (N, ...), batch by batch, and how many evaluations of the
    network a batch took."""
    size, parts, evaluations = bench.chosen.batch_size, [], set()
    for first in range(0, len(noise), size):
        of_batch = None if labels is None else labels[first : first + size]
        counted = CountedVelocity(with_labels(bench.teacher.velocity, of_batch))
        parts.append(sample(counted, noise[first : first + size]))
        evaluations.add(counted.nfe)
    return torch.cat(parts), evaluations


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

    def measure(self, method: str, budget: int, pool: ThreadPoolExecutor) -> "Future[Row]":
        """The row of a method, without its names, once its distances are there: these are many
        small eigenproblems, which leave a card to the next method's samples meanwhile. The first
        images of the first seed are kept."""
        if method == TEACHER:
            times = uniform(budget)
            ends = self.ends(lambda velocity, x: euler(velocity, x, times), method, budget)
        else:
            ends = self.ends(METHODS[method].sampler(self.searches, budget), method, budget)
        features = [judge.features(ends) for judge in self.bench.judges]
        if self.seed == 0:
            folder = self.bench.chosen.out / "images"
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{method}-{budget}.npy", to_uint8(ends[:SHOWN]).cpu().numpy())
        ready = torch.cuda.current_stream().record_event() if ends.is_cuda else None
        return pool.submit(row_of, self.bench.judges, features, budget, ready)

    def ends(self, sample: Sampler, method: str, budget: int) -> Tensor:
        """The final states from all noises. RuntimeError where a sampler took other evaluations
        than its budget: it would not be the method's number."""
        ends, evaluations = sampled(self.bench, sample, *self.noise)
        if evaluations != {budget}:
            raise RuntimeError(f"{method}: {sorted(evaluations)} evaluations for {budget}")
        if not ends.isfinite().all():  # once for all samples
            raise InputError(f"{method} at K = {budget}: samples that are not finite")
        return ends


def row_of(judges: list[Judge], features: list[Tensor], budget: int, ready: Any) -> Row:
    """Of a thread of its own: all distances of one set of samples, on a stream of its own."""
    row = {"evaluations": str(budget)}
    with beside(ready):
        for judge, of_judge in zip(judges, features, strict=True):
            row |= judge.distances(of_judge)
    return row


@contextmanager
def beside(ready: Any) -> Iterator[None]:
    """On a GPU a stream that waits for an event; elsewhere nothing."""
    if ready is None:
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_event(ready)
        yield
