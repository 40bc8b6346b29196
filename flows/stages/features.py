"""The feature extractor of the Frechet distance, the judges beside it, and the features of the
reference images in each."""

import shutil
from pathlib import Path

import torch

from boss_core.evaluation.extractors import Extractor
from boss_core.evaluation.frechet import evaluate_images
from boss_core.io.files import replacing, replacing_folder
from boss_core.networks import efficientnet
from flows import paths
from flows.config import SECOND, Params
from flows.measure.usage import write_usage
from flows.records.extractor import NAMES, Instrument
from flows.records.json_files import Json, read_images, read_json, write_json
from flows.stages.classifier import Trained, train_first, train_second, trains_small
from flows.stages.inception import inception_weights
from flows.stages.runner import device, is_main, run_stage


def trains(params: Params) -> bool:
    """Whether a network is trained here."""
    return params.features.extractor == "classifier" or SECOND in params.evaluate.judges


def main(params: Params) -> None:
    on = device(params, small=trains_small(params))
    first, judges = params.features.extractor, params.evaluate.judges
    wanted: set[str] = {first, *judges}
    made: dict[str, Trained | Path] = {
        name: _weights(name, params) for name in ("inception", "imagenet") if name in wanted
    }
    # Both before anything is measured: with several processes all train, and one measures.
    trained: dict[str, Trained] = {}
    if "classifier" in wanted:
        trained["classifier"] = train_first(params, on)
    if SECOND in wanted:
        trained[SECOND] = train_second(params, on)
    if not is_main():
        return
    made |= trained
    with replacing_folder(paths.JUDGES) as folder:
        for name in judges:
            _write_extractor(params, name, folder / NAMES[name], made[name], on, judge=True)
        write_json(folder / "card.json", {"judges": [NAMES[name] for name in judges]})
    _write_extractor(params, first, paths.FEATURES, made[first], on)
    for each in trained.values():
        each.checkpoints.remove()
    usage = {"training" if name == first else name: of.usage for name, of in trained.items()}
    write_usage("features", usage)


def _weights(name: str, params: Params) -> Path:
    """Weights that are there already, once they are known to be whole."""
    if name == "inception":
        found = inception_weights(Path(params.features.path))
    else:
        found = efficientnet.published_weights()
    Extractor(NAMES[name], found).check()
    return found


def _write_extractor(
    params: Params,
    name: str,
    folder: Path,
    made: Trained | Path,
    on: torch.device,
    *,
    judge: bool = False,
) -> None:
    """The folder of one extractor: its weights, its card, and the features of the reference.

    Weights that were given are copied: all that comes after reads the copy, and its hash says what
    measured."""
    card: Json = {}
    if isinstance(made, Trained):
        extractor = Extractor(NAMES[name], folder / "classifier.safetensors")
        card["test_accuracy"] = made.write(extractor.weights, name.replace("_", " "), on)
    else:
        extractor = Extractor(NAMES[name], folder / f"{NAMES[name]}.pth")
        with replacing(extractor.weights) as temporary:
            shutil.copyfile(made, temporary)
    card |= {
        "extractor": extractor.name,
        "weights": extractor.weights.name,
        "weights_sha256": extractor.hash,
    }
    if read_json(paths.DATA / "card.json")["train"]:  # none of a pipeline without real images
        card |= _of_real_images(params, Instrument(extractor, folder / "reference", judge), on)
    write_json(folder / "card.json", card)


def _of_real_images(params: Params, instrument: Instrument, on: torch.device) -> Json:
    """Real against real: fills the cache that every evaluation reads, and tells how small the
    distance is for images that are not generated at all."""
    train_images, test_images = read_images("train").images, read_images("test").images
    found = evaluate_images(
        test_images,
        train_images[: params.evaluate.reference_samples],
        instrument.extractor,
        cache=instrument.cache,
        kid_subset_size=min(params.evaluate.kid_subset_size, len(test_images)),
        batch_size=params.evaluate.batch_size,
        seed=params.seed,
        device=on,
        precision_recall=not instrument.judge,
    )
    return {"test_samples": len(test_images), "test_against_reference": found}


if __name__ == "__main__":
    run_stage(main, trains=trains)
