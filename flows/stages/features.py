"""The feature extractor of the Frechet distance, and the features of the reference images."""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from boss_core.draws import Share, step_generator
from boss_core.errors import InputError
from boss_core.files import replacing
from boss_core.frechet import Extractor, evaluate_images
from boss_core.networks.classifier import (
    Classifier,
    ClassifierConfig,
    accuracy,
    save_classifier,
)
from boss_core.training import train
from flows import paths
from flows.config import Params
from flows.progress import progress
from flows.records import Images, read_images, read_json, write_json
from flows.runtime import device, run_stage
from flows.stages.check import inception_weights

SCALE_IMAGES = 1024  # enough for a mean


def main(params: Params) -> None:
    on = device(params)
    card: dict[str, object] = {}
    if params.features.extractor == "inception":
        weights = paths.FEATURES / "inception.pth"
        with replacing(weights) as temporary:
            shutil.copyfile(inception_weights(Path(params.features.path)), temporary)
    else:
        weights = paths.FEATURES / "classifier.safetensors"
        card["test_accuracy"] = _train_classifier(params, weights, on)
    extractor = Extractor(params.features.extractor, weights)

    # Real against real: fills the cache that every evaluation reads, and tells how small the
    # distance is for images that are not generated at all.
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
    card |= {
        "extractor": extractor.name,
        "weights": weights.name,
        "weights_sha256": extractor.hash,
        "test_samples": len(test_images),
        "test_against_reference": found,
    }
    write_json(paths.FEATURES / "card.json", card)


def _train_classifier(params: Params, weights: Path, on: torch.device) -> float:
    data, test = read_images("train"), read_images("test")
    if data.labels is None or test.labels is None:
        raise InputError(
            "params.yaml: features.extractor: classifier needs labels, and the data has none;"
            " inception needs none"
        )
    shape = read_json(paths.DATA / "card.json")
    torch.manual_seed(params.seed)
    network = Classifier(
        ClassifierConfig(
            channels=shape["shape"][0],
            classes=shape["classes"],
            width=params.features.width,
            features=params.features.features,
        )
    ).to(on)
    settings = params.features.training
    labels = data.labels

    def pixels(of: Images, rows: np.ndarray | slice) -> Tensor:
        return torch.from_numpy(np.array(of.images[rows])).to(on)

    def loss(network: Classifier, step: int, share: Share) -> Tensor:
        rows = step_generator(params.seed, step).integers(len(labels), size=settings.batch_size)
        return F.cross_entropy(network(pixels(data, rows)), torch.from_numpy(labels[rows]).to(on))

    with progress("features: classifier", settings.iterations, "steps") as advance:
        trained = train(network, loss, settings, on_step=advance)
    trained.network.set_feature_scale(pixels(data, slice(SCALE_IMAGES)))
    save_classifier(weights, trained.network)
    found = accuracy(
        trained.network, pixels(test, slice(None)), torch.from_numpy(test.labels).to(on)
    )
    print(f"features: classifier is right on {found:.1%} of {len(test.labels)} test images")
    return found


if __name__ == "__main__":
    run_stage(main)
