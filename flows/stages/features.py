"""The feature extractor of the Frechet distance, and the features of the reference images."""

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from boss_core.errors import InputError
from boss_core.evaluation.frechet import Extractor, evaluate_images
from boss_core.io.files import replacing
from boss_core.networks import efficientnet
from boss_core.networks.classifier import (
    Classifier,
    ClassifierConfig,
    accuracy,
    save_classifier,
)
from boss_core.training.augmentation import augmented
from boss_core.training.device_rows import DeviceRows
from boss_core.training.loop import train
from boss_core.training.randomness import BatchShare, device_generator, step_generator
from boss_core.training.resume import Checkpoints
from flows import paths
from flows.config import Params, network_settings
from flows.measure.energy import Usage, measured
from flows.measure.usage import write_usage
from flows.records.json_files import Json, read_images, read_json, write_json
from flows.stages.inception import inception_weights
from flows.stages.runner import device, is_main, is_small, run_stage
from flows.stages.training import checkpoints, training_progress

SCALE_IMAGES = 1024  # enough for a mean


def main(params: Params) -> None:
    on = device(params, small=_has_small_classifier(params))
    card: dict[str, object] = {}
    usage: Usage | None = None
    kept: Checkpoints | None = None
    match params.features.extractor:
        case "inception":
            extractor = _kept("inception", inception_weights(Path(params.features.path)))
        case "imagenet":
            extractor = _kept(efficientnet.NAME, efficientnet.published_weights())
        case "classifier":
            extractor = Extractor("classifier", paths.FEATURES / "classifier.safetensors")
            network, kept, usage = _train_classifier(params, on)
            if not is_main():
                return
            card["test_accuracy"] = _measure(network, on)
            save_classifier(extractor.weights, network)

    card |= {
        "extractor": extractor.name,
        "weights": extractor.weights.name,
        "weights_sha256": extractor.hash,
    }
    if read_json(paths.DATA / "card.json")["train"]:  # none of a pipeline without real images
        card |= _of_real_images(params, extractor, on)
    write_json(paths.FEATURES / "card.json", card)
    if kept is not None:
        kept.remove()
    write_usage("features", {"training": usage})


def _of_real_images(params: Params, extractor: Extractor, on: torch.device) -> Json:
    """Real against real: fills the cache that every evaluation reads, and tells how small the
    distance is for images that are not generated at all."""
    train_images, test_images = read_images("train").images, read_images("test").images
    found = evaluate_images(
        test_images,
        train_images[: params.evaluate.reference_samples],
        extractor,
        cache=paths.FEATURES / "reference",
        kid_subset_size=min(params.evaluate.kid_subset_size, len(test_images)),
        batch_size=params.evaluate.batch_size,
        seed=params.seed,
        device=on,
    )
    return {"test_samples": len(test_images), "test_against_reference": found}


def _kept(name: str, given: Path) -> Extractor:
    """An extractor whose weights are there already, which are copied: all that comes after reads
    the copy, and its hash says what measured."""
    Extractor(name, given).check()
    extractor = Extractor(name, paths.FEATURES / f"{name}.pth")
    with replacing(extractor.weights) as temporary:
        shutil.copyfile(given, temporary)
    return extractor


def _train_classifier(
    params: Params, on: torch.device
) -> tuple[Classifier, Checkpoints, Usage | None]:
    """The network, its checkpoints, and what all of the training took; None where it went on."""
    data = read_images("train")
    if data.labels is None:
        raise InputError(
            "params.yaml: features.extractor: classifier needs labels, and the data has none;"
            " imagenet and inception need none"
        )
    torch.manual_seed(params.seed)
    network = _new_classifier(params).to(on)
    settings = params.features.training
    images, labels = DeviceRows.of(data.images, on), DeviceRows.of(data.labels, on)

    def rows(step: int, share: BatchShare) -> tuple[NDArray]:
        draw = step_generator(params.seed, step)
        return (share.take(draw.integers(len(images.array), size=settings.batch_size)),)

    batch = images.batches(rows)

    def loss(network: Classifier, step: int, share: BatchShare) -> Tensor:
        pixels = batch(step, share)
        if params.features.augment:
            pixels = augmented(pixels, device_generator(params.seed, step, on), share)
        return F.cross_entropy(network(pixels), labels.take(*rows(step, share)))

    run = {
        "network": network.config.model_dump(mode="json"),
        "augment": params.features.augment,
    }
    kept = checkpoints(params, "features", run, [data.images, data.labels])
    with (
        training_progress("features: classifier", settings.iterations) as advance,
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
    trained.network.set_feature_scale(images.take(np.arange(min(SCALE_IMAGES, len(data.images)))))
    return trained.network, kept, None if trained.start else usage


def _new_classifier(params: Params) -> Classifier:
    """The network that the parameters ask for."""
    data = read_json(paths.DATA / "card.json")
    return Classifier(
        network_settings(
            ClassifierConfig,
            "features",
            channels=data["shape"][0],
            classes=data["classes"],
            width=params.features.width,
            features=params.features.features,
            network=params.features.network,
        )
    )


def _has_small_classifier(params: Params) -> bool:
    data = read_json(paths.DATA / "card.json")
    trains = params.features.extractor == "classifier" and data["classes"] is not None
    return trains and is_small(_new_classifier(params), data["shape"])


def _measure(network: Classifier, on: torch.device) -> float:
    """The accuracy on the test images."""
    test = read_images("test")
    assert test.labels is not None
    every = np.arange(len(test.labels))
    images, labels = DeviceRows.of(test.images, on), DeviceRows.of(test.labels, on)
    found = accuracy(network, images.take(every), labels.take(every))
    print(f"features: classifier is right on {found:.1%} of {len(every)} test images")
    return found


if __name__ == "__main__":
    run_stage(main, trains=lambda params: params.features.extractor == "classifier")
