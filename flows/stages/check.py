"""Check all parameters, and the inputs they name as far as that is quick, before any work: what a
stage would refuse, hours later maybe, is refused here."""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from boss_core.data.images import ImageSource, Shape, image_shape
from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from flows import paths
from flows.config import NEAREST, SECOND, Params, Teacher
from flows.records.json_files import write_json
from flows.stages.inception import inception_weights
from flows.stages.pipelines.revision import revision_now
from flows.stages.runner import check_device, run_stage

# Images that are opened for their size and colour; `prepare`, which is next, opens the others.
LOOKED_AT = 10_000
CLASSES = 2**16  # that networks are made for
SMALLEST = 4  # pixels: of a U-Net
GROUPS = 8  # of channels that a U-Net normalises together
LPIPS_SMALLEST = 16  # pixels: VGG-16 halves an image four times


@dataclass(frozen=True)
class Found:
    """What is known of the images. kinds: different labels, None where there are none. classes:
    the numbers that these may have, as many as a network of the classes has weights for."""

    count: int
    kinds: int | None
    classes: int
    shape: Shape


def named_inputs(params: Params) -> dict[str, Path]:
    """What the parameters name of files and folders: DVC has all of these for dependencies, used or
    not."""
    return {
        "data.path": Path(params.data.path),
        "features.path": Path(params.features.path),
        "teacher.path": Path(params.teacher.path),
        "teacher.pipeline.prompts": Path(params.teacher.pipeline.prompts),
        "teacher.pipeline.lora": Path(params.teacher.pipeline.lora),
        "schedule.lpips": Path(params.schedule.lpips),
    }


def check(params: Params) -> Found | None:
    """InputError when the inputs that the parameters name cannot serve; what is known of the
    images, None where there are none."""
    watched = named_inputs(params)
    _check_no_outputs(watched)
    of_pipeline = params.teacher.source == "diffusers"
    found = None if params.data.source == "none" else _look_at_images(params)
    if found is not None:
        _check_counts(params, found)
    if found is not None and not of_pipeline:
        _check_labels(params, found)
    _check_weights(params)
    if found is not None and not of_pipeline:
        _check_shape(params, found)
    _check_there(watched)
    if of_pipeline:
        from flows.stages.pipelines.check import check_pipeline

        check_pipeline(params)
    check_device(params)
    return found


def _look_at_images(params: Params) -> Found:
    if params.data.source == "digits":
        size = params.data.image_size
        return Found(1797, 10, 10, (1, size or 8, size or 8))
    from flows.records.sources import open_source

    source = open_source(params.data)
    for remark in source.remarks:
        print(f"check: {remark}", flush=True)
    kinds, classes = None, 0
    if source.labels is not None:
        kinds, classes = len(np.unique(source.labels)), int(source.labels.max()) + 1
    shape = image_shape(_first(source), params.data.image_size)
    return Found(len(source), kinds, classes, shape)


def _first(source: ImageSource) -> ImageSource:
    """The images that are looked at."""
    return replace(source, images=lambda: islice(source.images(), LOOKED_AT))


def split(params: Params, found: Found) -> tuple[int, int]:
    """How many of the images are for training, and how many for testing."""
    test = max(1, round(found.count * params.data.test_fraction))
    return found.count - test, test


def _check_counts(params: Params, found: Found) -> None:
    training, test = split(params, found)
    if training < params.evaluate.reference_samples:
        raise InputError(
            f"params.yaml: evaluate.reference_samples: {params.evaluate.reference_samples}, but"
            f" {training} of the {found.count} images are for training; at most that many needed"
        )
    if test < NEAREST:
        raise InputError(
            f"params.yaml: data.test_fraction: {params.data.test_fraction} of {found.count} images"
            f" keeps {test} for testing; a share that keeps {NEAREST} or more, which the metrics"
            " take, needed"
        )


def _check_labels(params: Params, found: Found) -> None:
    where = f"{params.data.path} ({params.data.source})"
    trained = _classifiers(params)
    for name in trained:
        if found.kinds is None:
            raise InputError(
                f"params.yaml: {name} needs labels, and the images in {where} have none; imagenet"
                " and inception need none"
            )
        if found.kinds < 2:
            raise InputError(
                f"params.yaml: {name} needs two classes or more, and the images in {where} are of"
                " one; imagenet and inception need none"
            )
    conditional = params.teacher.source == "train" and params.teacher.conditional
    if found.classes > CLASSES and (conditional or trained):
        raise InputError(
            f"params.yaml: data.path: the images in {where} are of {found.classes} classes, more"
            f" than {CLASSES}; fewer, or imagenet or inception for features.extractor and"
            " evaluate.judges and teacher.conditional: false, needed"
        )
    if conditional and found.kinds is None:
        raise InputError(
            f"params.yaml: teacher.conditional: true needs labels, and the images in {where} have"
            " none; false needs none"
        )


def _classifiers(params: Params) -> list[str]:
    """The parameters that ask for a classifier to be trained, with their values."""
    found = {
        "features.extractor: classifier": params.features.extractor == "classifier",
        f"evaluate.judges: {SECOND}": SECOND in params.evaluate.judges,
    }
    return [name for name, wanted in found.items() if wanted]


def _check_weights(params: Params) -> None:
    measures: dict[str, str] = {params.features.extractor: "features.extractor"}
    measures |= dict.fromkeys(params.evaluate.judges, "evaluate.judges")
    if "inception" in measures:
        from boss_core.io.tensor_files import read_tensors

        weights = inception_weights(Path(params.features.path))
        read_tensors(weights, "the Inception weights of torch-fidelity")
    if "imagenet" in measures:
        from boss_core.networks.efficientnet import check_efficientnet, published_weights

        try:
            check_efficientnet(published_weights())
        except InputError as error:
            raise InputError(f"params.yaml: {measures['imagenet']}: imagenet: {error}") from error
    if params.schedule.objective == "lpips":
        from boss_core.search.lpips import weights_files

        weights_files(Path(params.schedule.lpips))


def _check_shape(params: Params, found: Found) -> None:
    """Whether the networks take such images."""
    _, height, width = found.shape
    teacher = params.teacher
    if teacher.source == "checkpoint":
        from flows.stages.teacher import check_shape, read_teacher

        check_shape(read_teacher(teacher).config.sample_shape, found.shape, teacher)
    elif teacher.config is not None:
        from flows.stages.teacher import check_shape, config_to_train

        check_shape(config_to_train(teacher).sample_shape, found.shape, teacher)
    else:
        _check_levels(teacher, height, width)
    if params.schedule.objective == "lpips" and min(height, width) < LPIPS_SMALLEST:
        raise InputError(
            f"params.yaml: schedule.objective: lpips with images of {width}x{height}; sides of"
            f" {LPIPS_SMALLEST} or more, or another objective, needed"
        )
    if _classifiers(params):
        _check_classifier(params, height, width)


def _check_levels(teacher: Teacher, height: int, width: int) -> None:
    """Whether the levels of the U-Net that is trained fit images of this size."""
    halvings = len(teacher.channel_multipliers) - 1
    if min(height, width) < SMALLEST or height % 2**halvings or width % 2**halvings:
        raise InputError(
            f"params.yaml: teacher.channel_multipliers: {len(teacher.channel_multipliers)}"
            f" levels halve images {halvings} times, and these are {width}x{height}; sides of"
            f" {SMALLEST} or more that are multiples of {2**halvings}, by data.image_size, or"
            " other levels needed"
        )
    widths = [1, *teacher.channel_multipliers][-2:]
    if height * width == 4**halvings and teacher.base_channels * min(widths) == GROUPS:
        raise InputError(
            f"params.yaml: teacher.base_channels: {teacher.base_channels} with"
            f" {len(teacher.channel_multipliers)} levels for images of {width}x{height}, of"
            f" which the last is one pixel of {GROUPS} channels, each normalised to 0 by"
            " itself; more channels or fewer levels needed"
        )
    sides = [max(height, width) >> k for k in range(halvings + 1)]
    if others := sorted(set(teacher.attention_sizes) - set(sides)):
        print(
            f"check: teacher.attention_sizes: {', '.join(map(str, others))} of none of the"
            f" levels, {', '.join(map(str, sides))} pixels: no attention there",
            flush=True,
        )


def _check_classifier(params: Params, height: int, width: int) -> None:
    """Whether the residual one's last layers have more than one number of a channel to normalise:
    one of the two is residual, the second where the first is small."""
    share = params.features.training.batch_size // params.compute.processes
    asked = params.features.extractor == "classifier", SECOND in params.evaluate.judges
    first = params.features.network == "resnet"
    residual = asked[0] if first else asked[1]
    if residual and max(height, width) <= SMALLEST and share < 2:
        mend = "network small" if first else f"evaluate.judges without {SECOND}"
        raise InputError(
            f"params.yaml: features.training.batch_size: {share} for a process with images of"
            f" {width}x{height}, of which resnet's last layers keep a single pixel to normalise; 2"
            f" or more, or {mend}, needed"
        )


def _check_no_outputs(watched: dict[str, Path]) -> None:
    for name, path in watched.items():
        output = _output_at(path)
        if output is not None:
            raise InputError(
                f"params.yaml: {name}: {path}: what the pipeline makes itself, in {output}, and so"
                " made again with every run; a copy of it elsewhere, as in inputs/, needed"
            )


def _check_there(watched: dict[str, Path]) -> None:
    for name, path in watched.items():
        if not path.exists():
            raise InputError(
                f"params.yaml: {name}: {path}: no such file or folder; one that is there needed,"
                " as DVC watches it whether it is used or not"
            )


def _output_at(path: Path) -> str | None:
    """The folder of outputs that a path leads into, or that lies in it."""
    for output in paths.OUTPUTS:
        # As it is written, and where links lead.
        for here, there in (
            (path.absolute(), output.absolute()),
            (path.resolve(), output.resolve()),
        ):
            if here == there or there in here.parents or here in there.parents:
                return f"{output}/"
    return None


def main(params: Params) -> None:
    check(params)
    write_json(paths.HUB, revision_now(params))
    # The same bytes whatever the parameters: stages after this run only for what they use.
    write_bytes(paths.CHECKED, b"params.yaml is valid\n")


if __name__ == "__main__":
    run_stage(main)
