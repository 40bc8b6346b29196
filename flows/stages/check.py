"""Check all parameters, and the inputs they name as far as that is quick, before any work."""

from pathlib import Path

from boss_core.errors import InputError
from boss_core.files import write_bytes
from flows import paths
from flows.config import Params
from flows.runtime import run_stage


def check(params: Params) -> None:
    """InputError when the inputs that the parameters name cannot serve."""
    images, labelled = _count_images(params)
    training = images - max(1, round(images * params.data.test_fraction))
    if training < params.evaluate.reference_samples:
        raise InputError(
            f"params.yaml: evaluate.reference_samples: {params.evaluate.reference_samples}, but"
            f" {training} of the {images} images are for training; at most that many needed"
        )
    if params.features.extractor == "classifier" and not labelled:
        raise InputError(
            f"params.yaml: features.extractor: classifier needs labels, and the images in"
            f" {params.data.path} ({params.data.source}) have none; inception needs none"
        )
    if params.teacher.source == "train" and params.teacher.conditional and not labelled:
        raise InputError(
            f"params.yaml: teacher.conditional: true needs labels, and the images in"
            f" {params.data.path} are not in sub-folders named by class; false needs none"
        )
    if params.features.extractor == "inception":
        from boss_core.tensor_files import read_tensors

        weights = inception_weights(Path(params.features.path))
        read_tensors(weights, "the Inception weights of torch-fidelity")
    if params.schedule.objective == "lpips":
        from boss_core.perceptual import weights_files

        weights_files(Path(params.schedule.lpips))
    if params.teacher.source == "checkpoint":
        from flows.stages.teacher import read_teacher

        read_teacher(params.teacher)
    elif params.teacher.config is not None:  # to train
        from flows.stages.teacher import config_to_train

        config_to_train(params.teacher)
    _check_watched(params)


def _check_watched(params: Params) -> None:
    """DVC has all of these for dependencies, used or not."""
    watched = {
        "data.path": params.data.path,
        "features.path": params.features.path,
        "teacher.path": params.teacher.path,
        "schedule.lpips": params.schedule.lpips,
    }
    for name, path in watched.items():
        if not Path(path).exists():
            raise InputError(
                f"params.yaml: {name}: {path}: no such file or folder; one that is there needed,"
                " as DVC watches it whether it is used or not"
            )


def inception_weights(folder: Path) -> Path:
    """The one weights file in the folder."""
    found = sorted(folder.glob("*.pth"))
    if len(found) != 1:
        raise InputError(
            f"{folder}: {len(found)} .pth files; exactly one, the Inception weights of"
            " torch-fidelity, needed for features.extractor: inception"
        )
    return found[0]


def _count_images(params: Params) -> tuple[int, bool]:
    """How many images there are, and whether they have labels."""
    if params.data.source == "digits":
        return 1797, True
    from flows.sources import open_source

    source = open_source(params.data)
    return len(source), source.labels is not None


def main(params: Params) -> None:
    check(params)
    # The same bytes whatever the parameters: stages after this run only for what they use.
    write_bytes(paths.CHECKED, b"params.yaml is valid\n")


if __name__ == "__main__":
    run_stage(main)
