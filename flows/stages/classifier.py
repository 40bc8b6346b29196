"""Training of the classifiers whose features measure: the one of `features`, and a second one that
differs from it in all that it can on the same data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from boss_core.errors import InputError
from boss_core.networks.classifier import (
    Classifier,
    ClassifierConfig,
    accuracy,
    save_classifier,
)
from boss_core.networks.threads import is_small
from boss_core.training.augmentation import SHIFT, augmented
from boss_core.training.device_rows import DeviceRows
from boss_core.training.loop import train
from boss_core.training.randomness import BatchShare, device_generator, step_generator
from boss_core.training.resume import Checkpoints
from flows import paths
from flows.config import SECOND, Features, Params, network_settings
from flows.measure.energy import Usage, measured
from flows.records.extractor import only_classifiers
from flows.records.json_files import read_images, read_json
from flows.stages.training import checkpoints, training_progress

SCALE_IMAGES = 1024  # enough for a mean
SECOND_SEED = 5 << 32  # beside those of `boss_core.ode.noise`
SHIFTED = 8  # the second one's images are shifted by up to this part of their shorter side


@dataclass(frozen=True)
class Trained:
    """checkpoints: to be removed once the weights are written. usage: of the whole training, None
    where it went on from a checkpoint."""

    network: Classifier
    checkpoints: Checkpoints
    usage: Usage | None

    def write(self, path: Path, name: str, on: torch.device) -> float:
        """Write the weights; returns on what share of the test images they are right."""
        save_classifier(path, self.network)
        test = read_images("test")
        assert test.labels is not None
        every = np.arange(len(test.labels))
        images, labels = DeviceRows.of(test.images, on), DeviceRows.of(test.labels, on)
        found = accuracy(self.network, images.take(every), labels.take(every))
        print(f"features: {name} is right on {found:.1%} of {len(every)} test images")
        return found


@dataclass(frozen=True)
class _Recipe:
    """What one classifier is trained by. rows: of the training images, None for all. shift: of
    images, in pixels; mirror: them, too."""

    label: str
    title: str
    seed: int
    network: Literal["small", "resnet"]
    width: int
    shift: int
    mirror: bool
    rows: NDArray[np.int64] | None = None


def train_first(params: Params, on: torch.device) -> Trained:
    """The classifier of ``features``."""
    of = params.features
    shift = SHIFT if of.augment else 0
    recipe = _Recipe(
        "features", "classifier", params.seed, of.network, of.width, shift, mirror=of.augment
    )
    return _train(params, recipe, on, "features.extractor: classifier")


def train_second(params: Params, on: torch.device) -> Trained:
    """The judge ``second_classifier``: the other architecture, from other random numbers, on a
    half of the training images, shifted a little. It has the labels of these images in common with
    the first, and the images with the teacher."""
    seed = params.seed + SECOND_SEED
    images = read_images("train").images
    half = np.random.default_rng(seed).permutation(len(images))[: -(-len(images) // 2)]
    recipe = _Recipe(
        SECOND, "second classifier", seed, second_network(params.features),
        second_width(params.features), min(images.shape[-2:]) // SHIFTED, False, np.sort(half),
    )  # fmt: skip
    return _train(params, recipe, on, "evaluate.judges: second_classifier")


def trains_small(params: Params) -> bool:
    """Whether all that is trained here is small, and nothing else computes."""
    data = read_json(paths.DATA / "card.json")
    if not only_classifiers(params) or data["classes"] is None:
        return False
    of = params.features
    networks = [_new(params, of.network, of.width)]
    if SECOND in params.evaluate.judges:
        networks.append(_new(params, second_network(of), second_width(of)))
    return all(is_small(network, data["shape"]) for network in networks)


def _new(params: Params, network: Literal["small", "resnet"], width: int) -> Classifier:
    data = read_json(paths.DATA / "card.json")
    return Classifier(
        network_settings(
            ClassifierConfig,
            "features",
            channels=data["shape"][0],
            classes=data["classes"],
            width=width,
            features=params.features.features,
            network=network,
        )
    )


def second_network(first: Features) -> Literal["small", "resnet"]:
    """Of the two architectures the one that ``features.network`` is not."""
    return "small" if first.network == "resnet" else "resnet"


def second_width(first: Features) -> int:
    """``features.width``, the half of it for the residual network, which has five times as many
    layers; multiples of 8."""
    return first.width if first.network == "resnet" else max(8, first.width // 16 * 8)


def _train(params: Params, recipe: _Recipe, on: torch.device, asked: str) -> Trained:
    data = read_images("train")
    if data.labels is None:
        raise InputError(
            f"params.yaml: {asked} needs labels, and the data has none; imagenet and inception"
            " need none"
        )
    torch.manual_seed(recipe.seed)
    network = _new(params, recipe.network, recipe.width).to(on)
    settings = params.features.training
    of_images, of_labels = data.images, data.labels
    if recipe.rows is not None:
        of_images, of_labels = of_images[recipe.rows], of_labels[recipe.rows]
    images, labels = DeviceRows.of(of_images, on), DeviceRows.of(of_labels, on)

    def rows(step: int, share: BatchShare) -> tuple[NDArray]:
        draw = step_generator(recipe.seed, step)
        return (share.take(draw.integers(len(images.array), size=settings.batch_size)),)

    batch = images.batches(rows)

    def loss(network: Classifier, step: int, share: BatchShare) -> Tensor:
        pixels = batch(step, share)
        if recipe.shift:
            draw = device_generator(recipe.seed, step, on)
            pixels = augmented(pixels, draw, share, shift=recipe.shift, mirror=recipe.mirror)
        return F.cross_entropy(network(pixels), labels.take(*rows(step, share)))

    run = {"network": network.config.model_dump(mode="json"), "augment": params.features.augment}
    kept = checkpoints(params, recipe.label, run, [of_images, of_labels])
    with (
        training_progress(f"features: {recipe.title}", settings.iterations) as advance,
        measured(on, settings.iterations * settings.batch_size) as usage,
    ):
        trained = train(
            network,
            loss,
            settings,
            precision=params.compute.precision,
            compile=params.compute.compile,
            on_step=advance,
            checkpoints=kept,
        )
    trained.network.set_feature_scale(images.take(np.arange(min(SCALE_IMAGES, len(of_images)))))
    return Trained(trained.network, kept, None if trained.start else usage)
