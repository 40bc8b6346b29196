"""The labels that a conditional network is asked for: one a sample, as often as in the data.

The Frechet distance compares with real images, so samples need the classes in their proportions:
with any others it would measure the difference in classes too. The teacher's stage keeps the
proportions of the training data beside the network, and every later stage draws from them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.checkpoints.folder import Network, read_label_counts
from boss_core.errors import InputError
from boss_core.ode.noise import NoiseSource, sample_labels
from flows import paths
from flows.records.json_files import write_json


def write_label_counts(
    classes: int | None, labels: NDArray[np.int64] | None, data_classes: int | None
) -> None:
    """Beside the teacher, how often each of its classes is in the training data; all alike, with
    a note, where the data cannot tell. Nothing for a network without classes."""
    if classes is None:
        return
    if labels is not None and data_classes == classes:
        counts = np.bincount(labels, minlength=classes).tolist()
    else:
        what = "no labels" if labels is None else f"{data_classes} classes"
        print(f"teacher: {classes} classes, but the data has {what}: each is sampled as often")
        counts = [1] * classes
    write_json(paths.LABEL_COUNTS, {"counts": counts})


def noise_source(network: Network, seed: int, on: torch.device) -> NoiseSource:
    """Where the samples of the teacher start: see `boss_core.ode.noise`."""
    classes = network.config.classes
    return NoiseSource(network.config.sample_shape, seed, on, classes, label_counts(classes))


def draw_labels(classes: int | None, samples: int, seed: int) -> Tensor | None:
    """(samples,) int64 on the CPU, each from ``seed`` and its index alone; None for a network
    without classes."""
    counts = label_counts(classes)
    if classes is None:
        return None
    return sample_labels(range(samples), classes, seed, frequencies=counts)


def label_counts(classes: int | None) -> tuple[float, ...] | None:
    """How often each class of the teacher comes, which its stage has written beside it; InputError
    where that is gone."""
    counts = read_label_counts(paths.TEACHER, classes)
    if classes is not None and counts is None:
        raise InputError(f"{paths.LABEL_COUNTS}: no such file; `dvc repro` makes it")
    return counts
